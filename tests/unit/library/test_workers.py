"""Complete trainings by any number of processes, without Ray, give equal models."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtil.config import Config
from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.data.dataset.manifest import Manifest
from mtil.library import fold
from mtil.library.fold import FoldTraining
from mtil.library.samples import Epochs, StoredSamples
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.training.group import Group
from tests.unit.groups import run_group

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., Config]
Step = tuple[int, int]
"""Epoch and step."""
TRAINING = Train(0, 0)
EPOCHS = 2


class _LoggedSamples:
    """Samples from storage that record ids by step and raise an error at step `lost_before`."""

    def __init__(self, data_uri: str, lost_before: Step | None) -> None:
        self._samples, self._lost_before = StoredSamples(data_uri), lost_before
        self.ids: dict[Step, list[str]] = {}

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        for epoch, batches in self._samples.epochs(plan, epochs, first):
            yield epoch, self._log(epoch, first if epoch == epochs[0] else 0, batches)

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        return self._samples.validation(plan, batch_size)

    def _log(self, epoch: int, first: int, batches: Iterator[Batch]) -> Iterator[Batch]:
        for step, batch in enumerate(batches, first):
            if (epoch, step) == self._lost_before:
                raise ConnectionError("a machine is gone")
            self.ids[epoch, step] = batch.sample_id
            yield batch


def _train(
    run_uri: str,
    data_uri: str,
    num_workers: int,
    *,
    lost_before: Step | None = None,
) -> dict[Step, list[str]]:
    """Train to the end or to the error of the samples. Return the ids by step, in worker order."""

    def work(group: Group) -> dict[Step, list[str]]:
        logging.disable(logging.CRITICAL)
        run = Run.open(run_uri)
        samples = _LoggedSamples(data_uri, lost_before)
        warned = replace(group, is_leaving=lambda: True)
        training = FoldTraining(
            run, TRAINING, run.manifest(data_uri), samples, torch.device("cpu"), group=warned
        )
        if lost_before is None:
            training.finish()
        else:
            with pytest.raises(ConnectionError):
                training.finish()
        return samples.ids

    workers = run_group(num_workers, work)
    logging.disable(logging.NOTSET)
    return {step: [name for ids in workers for name in ids[step]] for step in workers[0]}


def _weights(run_uri: str) -> dict[str, Tensor]:
    return Run.open(run_uri).model(TRAINING).weights


def _largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference of a tensor, relative to the norm of the tensor."""
    assert one.keys() == other.keys()
    return max(
        float((one[name].double() - other[name].double()).norm())
        / max(float(other[name].double().norm()), 1e-6)
        for name in one
    )


@pytest.fixture
def make_run(
    tmp_path: Path, data_uri: str, manifest: Manifest, make_config: MakeConfig
) -> Callable[..., str]:
    def make(name: str, **train: object) -> str:
        config = make_config(model={"head": {"dropout": 0.3}}, train={"num_epochs": EPOCHS} | train)
        Run.create(str(tmp_path / name), config, data_uri, manifest.fingerprint)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("micro_batch_size", [None, 6])
def test_several_workers_train_the_weights_of_one(
    make_run: Callable[..., str], data_uri: str, num_workers: int, micro_batch_size: int | None
) -> None:
    """Trainings have augmentation, dropout and uneven shares of a step."""
    train = {"precision": "fp64", "batch_size": 7, "micro_batch_size": micro_batch_size}
    alone, together = make_run("alone", **train), make_run("together", **train)
    expected = _train(alone, data_uri, 1)
    ids = _train(together, data_uri, num_workers)
    # With micro-batches, the workers' shares of a step are not contiguous.
    assert {step: sorted(names) for step, names in ids.items()} == {
        step: sorted(names) for step, names in expected.items()
    }
    if micro_batch_size is None:
        assert ids == expected
    assert _largest_difference(_weights(together), _weights(alone)) < 1e-6


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-6), ("fp32", 1e-4)])
def test_a_run_that_loses_and_gains_a_worker_goes_on_in_the_global_order(
    make_run: Callable[..., str],
    data_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    tolerance: float,
) -> None:
    """Epoch 1 runs with 2 workers, then 1, then 2."""
    monkeypatch.setattr(fold, "_PREEMPTION_CHECK_STEPS", 2)
    alone, changing = (make_run(name, precision=precision) for name in ("alone", "changing"))
    expected = _train(alone, data_uri, 2)
    assert len(expected) > 2 * 6
    parts = [
        _train(changing, data_uri, 2, lost_before=(1, 3)),  # saved after two steps
        _train(changing, data_uri, 1, lost_before=(1, 5)),  # saved after four
        _train(changing, data_uri, 2),
    ]
    assert [min(part) for part in parts] == [(0, 0), (1, 2), (1, 4)]
    for part in parts:
        assert all(ids == expected[step] for step, ids in part.items())
    assert set().union(*parts) == set(expected)
    for epoch in range(EPOCHS):
        seen = [name for step, ids in expected.items() if step[0] == epoch for name in ids]
        assert len(seen) == len(set(seen))
    assert _largest_difference(_weights(changing), _weights(alone)) < tolerance
