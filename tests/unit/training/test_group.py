"""A training step by several processes, compared with the step in a single process."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mtil.config import Config, config_from_dict
from mtil.data.dataset.batches import Batch
from mtil.training.engine import TrainingEngine
from mtil.training.group import Group
from tests.unit.groups import run_group

MakeConfig = Callable[..., Config]
CPU = torch.device("cpu")
IMAGES = 9

LABELS = {
    "mixed": [0, 1, 2, 0, 1, 0, 2, 1, 0],
    "all normals on the last worker": [0, 1, 0, 1, 0, 1, 1, 2, 2],
    "the first worker without a tumour": [2, 2, 2, 2, 2, 0, 1, 0, 1],
    "no tumour at all": [2] * IMAGES,
}
"""Labels of the step's images, in order of the workers."""


def _batch(labels: list[int]) -> Batch:
    rng = np.random.default_rng(3)
    mask = np.zeros((IMAGES, 32, 32), np.uint8)
    for index, label in enumerate(labels):
        if label < 2:
            mask[index, 4 : 12 + index, 6 : 14 + 6 * label] = 1
    return Batch(
        sample_id=[str(index) for index in range(IMAGES)],
        image=(rng.integers(0, 90, (IMAGES, 32, 32)) + 150 * mask).astype(np.uint8),
        mask=np.packbits(mask.reshape(IMAGES, -1), axis=1),
        label=np.array(labels, np.int64),
        prior=rng.integers(0, 255, (IMAGES, 32, 32)).astype(np.uint8),
    )


def _slice(batch: Batch, rows: range) -> Batch:
    assert batch.prior is not None
    taken = list(rows)
    return Batch(
        [batch.sample_id[row] for row in taken],
        batch.image[taken], batch.mask[taken], batch.label[taken], batch.prior[taken],
    )  # fmt: skip


def _config(make_config: MakeConfig, **train: Any) -> Config:
    return make_config(
        augment={"enabled": False},
        model={"head": {"dropout": 0.0}, "prior": {"dropout": 0.0, "roughen": 0.0}},
        loss={"weighting": "uncertainty", "boundary": 0.3},
        train={"precision": "fp64", "batch_size": IMAGES, "clip_norm": 1e9} | train,
    )


def _recycling(make_config: MakeConfig, **train: Any) -> Config:
    circle = {"maps": "recycle", "num_passes": 3}
    return config_from_dict({"circle": circle}, _config(make_config, **train))


def _step(config: Config, batch: Batch, group: Group, num_passes: int) -> dict[str, Any]:
    """Return loss terms, gradients and buffers after a step of one worker."""
    engine = TrainingEngine(
        config,
        steps_per_epoch=1,
        malignant_share=0.3,
        device=CPU,
        group=group,
        num_passes=num_passes,
    )
    rows = range(
        IMAGES * group.rank // group.num_workers, IMAGES * (group.rank + 1) // group.num_workers
    )
    (step,) = engine.train_epoch([_slice(batch, rows)], epoch=0)
    gradients: dict[str, Tensor | None] = {
        name: parameter.grad
        for module in (engine.network, engine._objective)
        for name, parameter in module.named_parameters()
    }
    return {
        "terms": dict(step.terms),
        "norm": step.gradient_norm,
        "gradients": gradients,
        "buffers": dict(engine.network.named_buffers()),
        "weights": engine.network.state_dict(),
    }


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of a tensor, relative to the largest value of the tensor."""
    assert one.keys() == other.keys()
    differences = [
        float((one[name] - other[name]).abs().max() / other[name].abs().max().clamp_min(1e-12))
        for name in one
        if other[name] is not None
    ]
    assert all((one[name] is None) == (other[name] is None) for name in one)
    return max(differences)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [2, 3, 4])
def test_the_gradient_is_that_of_one_process(make_config: MakeConfig, num_workers: int) -> None:
    cases = [
        (config, _batch(labels), num_passes)
        for config, num_passes in (
            (_config(make_config, num_workers=num_workers), 1),
            (_recycling(make_config, num_workers=num_workers), 3),
        )
        for labels in LABELS.values()
    ]
    results = run_group(
        num_workers, lambda group: [_step(config, batch, group, n) for config, batch, n in cases]
    )
    for index, (config, batch, num_passes) in enumerate(cases):
        expected = _step(config, batch, Group(), num_passes)
        for result in (worker[index] for worker in results):
            for part in ("terms", "gradients", "buffers"):
                assert _largest_difference(result[part], expected[part]) < 1e-9, (part, index)
            assert float(result["norm"]) == pytest.approx(float(expected["norm"]), rel=1e-9)
