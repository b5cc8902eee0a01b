"""Training of small networks: learning, determinism and resumption."""

import copy
import io
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics import DiceMetric

from mtil.config import Config
from mtil.data.dataset.batches import Batch
from mtil.models import TwoTaskNetwork
from mtil.training.engine import (
    StepResult,
    TrainingEngine,
    TrainingStep,
    ValidationScore,
    dice_per_image,
    learning_rate_factor,
    make_optimizer,
    summarise_validation,
)
from mtil.training.losses import TrainingObjective

MakeConfig = Callable[..., Config]
ToyBatches = Callable[..., list[Batch]]
CPU = torch.device("cpu")
STEPS = 2


def _engine(config: Config, steps: int = STEPS) -> TrainingEngine:
    return TrainingEngine(config, steps_per_epoch=steps, malignant_share=0.5, device=CPU)


def _train(engine: TrainingEngine, batches: list[Batch], epochs: range) -> list[StepResult]:
    """Train on different batches in every epoch, as with a data set."""
    steps: list[StepResult] = []
    for epoch in epochs:
        mine = batches[STEPS * epoch : STEPS * (epoch + 1)]
        steps += list(engine.train_epoch(mine, epoch=epoch))
    return steps


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_training_learns_a_simple_task(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    config = make_config(
        seed=2,
        augment={"enabled": False},
        model={"encoder": {"drop_path": 0.0}, "head": {"dropout": 0.0}},
        loss={"deep_supervision": 0.0, "label_smoothing": 0.0},
        train={"learning_rate": 0.01, "encoder_learning_rate": 0.01, "num_epochs": 14},
    )
    batches = toy_batches(STEPS, size=8)
    engine = _engine(config)
    before = summarise_validation(engine.validate(batches), 0.5)
    losses = [
        float(sum(step.terms.values()))
        for epoch in range(14)
        for step in engine.train_epoch(batches, epoch=epoch)
    ]
    after = summarise_validation(engine.validate(batches), 0.5)
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert before["dice"] < 0.2
    assert after["dice"] > 0.6
    assert after["auc"] > 0.9


def test_a_step_says_what_it_did(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    steps = _train(_engine(make_config()), toy_batches(2), range(1))
    assert [step.index for step in steps] == [0, 1]
    for step in steps:
        assert set(step.terms) == {"segmentation", "classification", "presence"}
        for value in (*step.terms.values(), step.gradient_norm):
            assert value.shape == ()
            assert not value.requires_grad
            assert float(value) > 0


def test_the_same_seed_gives_the_same_weights(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(2)
    first, again, other = (_engine(make_config(seed=seed)) for seed in (7, 7, 8))
    assert _equal(first.weights(), again.weights())
    assert not _equal(first.weights(), other.weights())
    _train(first, batches, range(1))
    torch.rand(5)  # draws in between have no influence
    _train(again, batches, range(1))
    assert _equal(first.weights(), again.weights())
    assert _equal(first.network.state_dict(), again.network.state_dict())


def test_epochs_draw_other_augmentations(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    config, batches = make_config(), toy_batches(1)
    losses = {
        (epoch, first): float(
            next(_engine(config).train_epoch(batches, epoch=epoch, first=first)).terms[
                "segmentation"
            ]
        )
        for epoch, first in ((0, 0), (0, 3), (1, 0))
    }
    assert losses[0, 0] == losses[0, 3]
    assert losses[1, 0] != losses[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("maps", ["in_sample", "recycle", "corrupted"])
def test_an_epoch_goes_on_where_it_was_interrupted(
    make_config: MakeConfig, toy_batches: ToyBatches, maps: str
) -> None:
    """Losses and weights are equal bit for bit."""
    config = make_config(circle={"maps": maps}, model={"encoder": {"name": "efficientnet_lite0"}})
    batches = toy_batches(4)

    def engine() -> TrainingEngine:
        return TrainingEngine(
            config, steps_per_epoch=4, malignant_share=0.5, device=CPU, num_passes=2
        )

    whole = engine()
    steps = list(whole.train_epoch(batches, epoch=1))
    first = engine()
    some = first.train_epoch(batches, epoch=1)
    next(some), next(some), next(some)
    state = copy.deepcopy(first.state())
    torch.rand(5)
    rest = engine()
    rest.restore(state)
    later = list(rest.train_epoch(batches[3:], epoch=1, first=3))
    assert [step.index for step in later] == [3]
    assert [step.terms for step in later] == [step.terms for step in steps[3:]]
    assert _equal(rest.weights(), whole.weights())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "changes"),
    [
        (1, {}),
        (2, {"loss": {"weighting": "uncertainty"}}),
        (1, {"train": {"ema_decay": 0.0}, "model": {"baseline": True}}),
        (2, {"train": {"precision": "bf16", "channels_last": False}}),
    ],
    ids=["usual", "uncertainty", "no average", "bf16"],
)
def test_a_restored_training_ends_with_the_same_bits(
    make_config: MakeConfig, toy_batches: ToyBatches, stop: int, changes: dict[str, Any]
) -> None:
    config, batches = make_config(**changes), toy_batches(3 * STEPS)
    whole = _engine(config)
    expected = [float(step.terms["segmentation"]) for step in _train(whole, batches, range(3))]

    stopped = _engine(config)
    before = _train(stopped, batches, range(stop))
    file = io.BytesIO()
    torch.save(stopped.state(), file)
    file.seek(0)
    torch.rand(3)
    resumed = _engine(config)
    resumed.restore(torch.load(file, weights_only=True))
    assert resumed.rates() == stopped.rates()
    after = _train(resumed, batches, range(stop, 3))

    assert [float(step.terms["segmentation"]) for step in before + after] == expected
    assert _equal(resumed.weights(), whole.weights())
    assert _equal(resumed.network.state_dict(), whole.network.state_dict())
    assert resumed.rates() == whole.rates()
    assert resumed.validate(batches[:1]) == whole.validate(batches[:1])


def test_weights_are_a_copy(make_config: MakeConfig, toy_batches: ToyBatches) -> None:
    batches = toy_batches(2 * STEPS)
    engine = _engine(make_config())
    _train(engine, batches, range(1))
    weights = engine.weights()
    kept = copy.deepcopy(weights)
    _train(engine, batches, range(1, 2))
    assert _equal(weights, kept)
    assert not _equal(engine.weights(), kept)


def test_the_averaged_weights_are_kept_unless_they_are_switched_off(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(STEPS)
    averaged = _engine(make_config(train={"ema_decay": 0.9}))
    assert averaged.averaged() is averaged.network  # no average before the first step
    _train(averaged, batches, range(1))
    assert not _equal(averaged.weights(), averaged.network.state_dict())
    plain = _engine(make_config(train={"ema_decay": 0.0}))
    _train(plain, batches, range(1))
    assert _equal(plain.weights(), plain.network.state_dict())
    assert _equal(plain.network.state_dict(), averaged.network.state_dict())


def test_the_averaged_weights_follow_the_network_s(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """Compare with a plain loop over the networks of all steps."""
    decay, batches = 0.25, toy_batches(5)
    engine = _engine(make_config(train={"ema_decay": decay}), steps=5)
    expected: dict[str, Tensor] = {}
    for step in engine.train_epoch(batches, epoch=0):
        now = {name: value.clone() for name, value in engine.network.state_dict().items()}
        share = min(decay, (1 + step.index) / (10 + step.index))
        for name, value in now.items():
            if step.index == 0 or not value.is_floating_point():
                expected[name] = value
            else:
                expected[name] = share * expected[name] + (1 - share) * value
    weights = engine.weights()
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "warmup", "total", "expected"),
    [
        (0, 2, 10, 0.001 / 2.001),
        (1, 2, 10, 1.001 / 2.001),
        (2, 2, 10, 1.0),
        (6, 2, 10, 0.01 + 0.99 / 2),
        (4, 2, 10, 0.01 + 0.99 * (0.5 + math.sqrt(0.5) / 2)),
        (10, 2, 10, 0.01),
        (12, 2, 10, 0.01),
        (0, 0, 4, 1.0),
        (2, 0, 4, 0.505),
        (5, 5, 5, 1.0),  # warm-up only
        (1, 3, 2, 1.001 / 3.001),
    ],
)
def test_rates_rise_linearly_and_fall_along_a_cosine(
    epochs: float, warmup: float, total: int, expected: float
) -> None:
    assert learning_rate_factor(epochs, warmup, total) == pytest.approx(expected)


def test_rates_never_jump() -> None:
    factors = [learning_rate_factor(step / 50, 1.5, 10) for step in range(500)]
    assert max(abs(np.diff(factors))) < 0.02
    assert max(factors) == 1
    assert min(factors) > 0


def test_the_schedule_moves_with_every_step(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    config = make_config(
        train={
            "learning_rate": 0.01,
            "encoder_learning_rate": 0.002,
            "warmup_epochs": 1.0,
            "num_epochs": 2,
        }
    )
    engine = _engine(config)
    seen = [engine.rates()]
    for batch in toy_batches(2 * STEPS):
        list(engine.train_epoch([batch], epoch=0))
        seen.append(engine.rates())
    for step, rates in enumerate(seen):
        factor = learning_rate_factor(step / STEPS, 1.0, 2)
        assert rates == pytest.approx({"rest": 0.01 * factor, "encoder": 0.002 * factor})
    assert seen[STEPS] == pytest.approx({"rest": 0.01, "encoder": 0.002})


def _network(config: Config) -> TwoTaskNetwork:
    torch.manual_seed(0)
    return TwoTaskNetwork(config.model)


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty"])
def test_every_parameter_is_in_the_group_of_its_kind(
    make_config: MakeConfig, weighting: str
) -> None:
    config = make_config(
        train={"learning_rate": 0.5, "encoder_learning_rate": 0.25, "weight_decay": 0.125},
        loss={"weighting": weighting},
    )
    network, objective = _network(config), TrainingObjective(config.loss, 0.5)
    optimizer = make_optimizer(network, objective, config.train)
    group_of = {
        id(parameter): group for group in optimizer.param_groups for parameter in group["params"]
    }
    named = [*network.named_parameters(), *objective.named_parameters()]
    assert len(named) == sum(len(group["params"]) for group in optimizer.param_groups)
    for name, parameter in named:
        group = group_of[id(parameter)]
        assert group["lr"] == (0.25 if name.startswith("encoder.") else 0.5), name
        assert group["weight_decay"] == (0.125 if parameter.ndim > 1 else 0), name
    assert [name for name, p in named if p.ndim <= 1 and name.endswith("weight")]  # norms
    learned = [name for name, _ in objective.named_parameters()]
    assert len(learned) == (2 if weighting == "uncertainty" else 0)


def test_the_optimiser_computes_what_pytorch_s_does(make_config: MakeConfig) -> None:
    """PyTorch's AdamW can load the state."""
    config = make_config(train={"learning_rate": 0.5, "encoder_learning_rate": 0.25})
    ours, theirs = _network(config), _network(config)
    theirs.load_state_dict(ours.state_dict())
    objective = TrainingObjective(config.loss, 0.5)
    optimizer = make_optimizer(ours, objective, config.train)
    twin = make_optimizer(theirs, objective, config.train)
    groups = [
        {key: group[key] for key in ("params", "lr", "weight_decay")} for group in twin.param_groups
    ]
    plain = torch.optim.AdamW(
        groups, **{key: optimizer.defaults[key] for key in ("fused", "foreach")}
    )
    for seed in range(3):
        for network, steps in ((ours, optimizer), (theirs, plain)):
            torch.manual_seed(seed)
            for parameter in network.parameters():
                parameter.grad = torch.rand_like(parameter)
            assert steps.step() is None
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters())
        assert torch.is_grad_enabled()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    plain.load_state_dict(optimizer.state_dict())
    assert plain.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()


def test_rates_follow_the_square_root_of_the_batch_size(make_config: MakeConfig) -> None:
    rates = {"learning_rate": 0.5, "encoder_learning_rate": 0.25, "rates_for_batch_size": 4}
    for batch_size, factor in ((4, 1.0), (16, 2.0), (1, 0.5)):
        config = make_config(train=rates | {"batch_size": batch_size})
        optimizer = make_optimizer(
            _network(config), TrainingObjective(config.loss, 0.5), config.train
        )
        found = {group["name"]: group["lr"] for group in optimizer.param_groups}
        assert found["encoder"] == 0.25 * factor
        assert found["rest"] == 0.5 * factor


def test_frozen_parameters_are_not_optimised(make_config: MakeConfig) -> None:
    config = make_config()
    network = _network(config)
    network.encoder.requires_grad_(requires_grad=False)
    optimizer = make_optimizer(network, TrainingObjective(config.loss, 0.5), config.train)
    assert [group["name"] for group in optimizer.param_groups] == ["rest", "rest_vectors"]


def test_learned_weights_of_the_tasks_move(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    engine = _engine(make_config(loss={"weighting": "uncertainty"}))
    before = copy.deepcopy(engine.state()["objective"])
    _train(engine, toy_batches(STEPS), range(1))
    after = engine.state()["objective"]
    assert len(before) == 2
    assert all(not torch.equal(before[name], after[name]) for name in before)


class _Seen:
    """Record the gradient norm at every optimiser step."""

    def __init__(self, engine: TrainingEngine) -> None:
        self.norms: list[float] = []
        self._parameters = [*engine.network.parameters()]
        optimizer = engine._optimizer  # only the optimiser sees clipped gradients
        optimizer.register_step_pre_hook(lambda *_: self.norms.append(self._norm()))

    def _norm(self) -> float:
        return math.sqrt(
            sum(
                float(parameter.grad.double().square().sum())
                for parameter in self._parameters
                if parameter.grad is not None
            )
        )


@pytest.mark.parametrize("clip_norm", [0.01, 1e6])
def test_gradients_are_bounded_before_the_step(
    make_config: MakeConfig, toy_batches: ToyBatches, clip_norm: float
) -> None:
    engine = _engine(make_config(train={"clip_norm": clip_norm}))
    seen = _Seen(engine)
    steps = _train(engine, toy_batches(STEPS), range(1))
    for step, norm in zip(steps, seen.norms, strict=True):
        before = float(step.gradient_norm)  # before clipping
        assert before > 0.01
        assert norm == pytest.approx(min(before, clip_norm), rel=1e-3)


def test_a_wrapper_gets_network_and_losses_as_one(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    config = make_config(loss={"weighting": "uncertainty"})
    engine = _engine(config, steps=1)
    step = engine._step
    assert isinstance(step, TrainingStep)
    optimised = {id(p) for group in engine._optimizer.param_groups for p in group["params"]}
    assert {id(parameter) for parameter in step.parameters()} == optimised


def test_a_step_in_bf16_is_near_one_in_fp32(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(1)
    steps, logits = {}, {}
    for precision in ("fp32", "bf16"):
        engine = _engine(make_config(train={"precision": precision}))
        kinds: set[torch.dtype] = set()
        layer = engine.network.logits["2"]
        layer.register_forward_hook(lambda *call, kinds=kinds: kinds.add(call[2].dtype))
        logits[precision] = engine.validate(batches)[0].logit
        (steps[precision],) = engine.train_epoch(batches, epoch=0)
        assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
        assert {value.dtype for value in engine.weights().values()} == {torch.float32, torch.int64}
    assert logits["bf16"] == pytest.approx(logits["fp32"], abs=0.05)
    for name, value in steps["fp32"].terms.items():
        assert steps["bf16"].terms[name].dtype == torch.float32
        assert float(steps["bf16"].terms[name]) == pytest.approx(float(value), rel=0.1)
        assert float(steps["bf16"].terms[name]) != float(value)


def test_validation_leaves_everything_as_it_was(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    batches = toy_batches(STEPS)
    engine = _engine(make_config())
    _train(engine, batches, range(1))
    before = copy.deepcopy(engine.state())
    scored = engine.validate(batches)
    again = engine.validate(batches)
    assert scored == again
    after = engine.state()
    assert _equal(before["network"], after["network"])
    assert _equal(before["average"], after["average"])
    assert [row.sample_id for row in scored] == [
        name for batch in batches for name in batch.sample_id
    ]
    assert [row.label for row in scored] == [0, 1, 0, 1] * STEPS


def test_validation_is_at_the_network_s_size(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    """Stored images of a different size are resized, as in training."""
    engine = _engine(make_config())
    sizes: list[tuple[int, ...]] = []
    engine.network.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape))
    engine.validate(toy_batches(1, side=64))
    assert sizes == [(4, 1, 32, 32)]


def test_a_validation_score_is_that_of_the_image_alone(
    make_config: MakeConfig, toy_batches: ToyBatches
) -> None:
    engine = _engine(make_config())
    (batch,) = toy_batches(1)
    together = engine.validate([batch])
    for index, row in enumerate(together):
        part = slice(index, index + 1)
        alone = Batch(batch.sample_id[part], batch.image[part], batch.mask[part], batch.label[part])
        (one,) = engine.validate([alone])
        assert (one.sample_id, one.label) == (row.sample_id, row.label)
        assert one.dice == pytest.approx(row.dice, abs=1e-3)
        assert one.logit == pytest.approx(row.logit, abs=1e-4)


def test_dice_is_worked_by_hand_and_undefined_without_a_lesion() -> None:
    prediction, target = torch.zeros(4, 1, 4, 4), torch.zeros(4, 1, 4, 4)
    prediction[0, :, :2] = 1  # 8 pixels, of which 4 are right
    target[0, :, :, :2] = 1
    target[1, :, 0, 0] = 1  # nothing found
    prediction[2, :, 0] = 1  # no lesion
    dice = dice_per_image(prediction > 0, target > 0).tolist()
    assert dice[:2] == [0.5, 0.0]
    assert math.isnan(dice[2])
    assert math.isnan(dice[3])


def test_dice_is_monai_s() -> None:
    torch.manual_seed(0)
    prediction, target = (torch.rand(6, 1, 16, 16) < 0.4 for _ in range(2))
    target[3] = False
    expected = DiceMetric(reduction="none", ignore_empty=True)(prediction, target)[:, 0]
    torch.testing.assert_close(dice_per_image(prediction, target), expected, equal_nan=True)
    assert expected.isnan().sum() == 1


def _row(label: int, dice: float, logit: float, presence: float = 0.0) -> ValidationScore:
    return ValidationScore("x", label=label, dice=dice, logit=logit, presence=presence)


def test_validation_figures_worked_by_hand() -> None:
    rows = [
        _row(0, 0.5, -1.0, presence=-1.0),
        _row(0, 1.0, 2.0, presence=1.0),
        _row(1, 0.0, 1.0, presence=2.0),
        _row(1, 0.9, 3.0, presence=3.0),
        _row(2, math.nan, 9.0, presence=0.0),  # a normal image counts for presence only
    ]
    figures = summarise_validation(rows, 0.75)
    assert figures == pytest.approx(
        {"dice": 0.6, "auc": 0.75, "f1": 4 / 5, "score": 0.75 * 0.6 + 0.25 * 0.75}
        | {"presence_auc": 3 / 4}
    )
    assert summarise_validation(iter(rows), 1.0)["score"] == pytest.approx(0.6)
    assert summarise_validation(rows, 0.0)["score"] == pytest.approx(0.75)


def test_with_one_class_the_score_is_dice_alone() -> None:
    rows = [_row(1, 0.5, 0.0), _row(1, 0.7, 1.0), _row(2, math.nan, 1.0)]
    undecided = {"presence_auc": 0.5}  # equal logits
    assert summarise_validation(rows, 0.5) == pytest.approx({"dice": 0.6, "score": 0.6} | undecided)
    assert summarise_validation(rows, 0.0) == pytest.approx({"dice": 0.6, "score": 0.0} | undecided)


@pytest.mark.parametrize("rows", [[], [_row(2, math.nan, 1.0)]])
def test_without_tumours_there_is_no_figure_but_a_score(rows: list[ValidationScore]) -> None:
    assert summarise_validation(rows, 0.5) == {"score": 0.0}


@pytest.mark.slow
def test_a_training_loads_no_library_that_it_does_not_need() -> None:
    """Extra libraries would delay the start of every worker by seconds."""
    code = """
import sys
import mtil.training.engine, mtil.metrics
assert not {"scipy", "sklearn", "pandas", "monai", "openpyxl"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
