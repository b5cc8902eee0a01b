"""Training progress: choice of the best epoch, detection of stalls, checkpoints."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtil.config import Config
from mtil.data.dataset.batches import Batch
from mtil.metrics import select_epoch
from mtil.run.checkpoint import TrainingCheckpoints
from mtil.storage import LocalStore
from mtil.training.engine import TrainingEngine
from mtil.training.progress import PartialEpoch, TrainingProgress

ToyBatches = Callable[..., list[Batch]]
MakeEngine = Callable[[], TrainingEngine]


@pytest.fixture(scope="module")
def make_engine(make_config: Callable[..., Config]) -> MakeEngine:
    config = make_config(model={"baseline": True})
    return lambda: TrainingEngine(
        config, steps_per_epoch=1, malignant_share=0.5, device=torch.device("cpu")
    )


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> TrainingEngine:
    """Return an engine with arbitrary weights."""
    return make_engine()


@pytest.fixture
def checkpoints(tmp_path: Path) -> TrainingCheckpoints:
    return TrainingCheckpoints(LocalStore(str(tmp_path)), "checkpoints")


def _add(progress: TrainingProgress, engine: TrainingEngine, *scores: float) -> None:
    for score in scores:
        epoch = progress.next_epoch
        record = {"epoch": epoch, "loss_segmentation": 1.5}
        figures = {"dice": score / 2, "score": score}
        progress.add(record, figures, engine)


def _mark(engine: TrainingEngine, number: float) -> None:
    """Set an engine's weights to a known value."""
    with torch.no_grad():
        engine.network.logits["2"].bias.fill_(number)


def test_at_first_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    progress = TrainingProgress()
    assert (progress.next_epoch, progress.history, progress.best) == (0, [], None)
    assert not progress.has_stalled(1)
    assert progress.seconds == 0.0


def test_every_epoch_is_a_record_with_its_validation(engine: TrainingEngine) -> None:
    progress = TrainingProgress()
    _add(progress, engine, 0.5, 0.25)
    assert progress.next_epoch == 2
    assert progress.history[1] == {
        "epoch": 1,
        "loss_segmentation": 1.5,
        "validation_dice": 0.125,
        "validation_score": 0.25,
    }


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.3, 0.6, 0.5], 1),
        ([0.3, 0.6, 0.6, 0.5], 2),  # ties: the last
        ([0.3, 0.6, 0.585, 0.575], 2),  # within 0.02 of the highest
        ([0.6, 0.585, 0.61, 0.58], 2),  # the highest has risen meanwhile
    ],
)
def test_the_last_epoch_that_is_as_good_as_the_best_keeps_its_own_weights(
    engine: TrainingEngine, scores: list[float], kept: int
) -> None:
    progress = TrainingProgress()
    for epoch, score in enumerate(scores):
        _mark(engine, epoch)
        _add(progress, engine, score)
    assert progress.best is not None
    assert progress.best.epoch == kept == select_epoch(scores, 0.02)
    assert progress.best.metrics == {"dice": scores[kept] / 2, "score": scores[kept]}
    assert progress.best.weights["logits.2.bias"].item() == kept


def test_a_first_epoch_of_score_zero_is_the_best_so_far(engine: TrainingEngine) -> None:
    progress = TrainingProgress()
    _add(progress, engine, 0.0)
    assert progress.best is not None
    assert progress.best.epoch == 0


@pytest.mark.parametrize(
    ("scores", "patience", "stalled"),
    [
        ([0.1], 1, False),
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.2], 1, True),
        ([0.3, 0.3], 1, True),  # an equal score is no improvement
        ([0.3, 0.2], 2, False),
        ([0.3, 0.2, 0.1], 2, True),
        ([0.3, 0.2, 0.4], 2, False),
        ([0.3] * 50, 0, False),
    ],
)
def test_a_stall_is_so_many_epochs_without_a_better_score(
    engine: TrainingEngine, scores: list[float], patience: int, stalled: bool
) -> None:
    progress = TrainingProgress()
    _add(progress, engine, *scores)
    assert progress.has_stalled(patience) is stalled


def test_without_a_checkpoint_it_starts_afresh(
    checkpoints: TrainingCheckpoints, engine: TrainingEngine
) -> None:
    before = engine.weights()
    progress = TrainingProgress.load(checkpoints, engine)
    assert progress.next_epoch == 0
    assert all(torch.equal(value, before[name]) for name, value in engine.weights().items())


def test_a_checkpoint_brings_everything_back(
    checkpoints: TrainingCheckpoints, make_engine: MakeEngine, toy_batches: ToyBatches
) -> None:
    progress, engine = TrainingProgress(), make_engine()
    batches = toy_batches(4)
    for epoch, score in enumerate([0.2, 0.7, 0.4]):
        list(engine.train_epoch(batches[epoch : epoch + 1], epoch=epoch))
        _add(progress, engine, score)
    progress.save(checkpoints, engine)

    other = make_engine()
    taken = TrainingProgress.load(checkpoints, other)
    assert taken.history == progress.history
    assert taken.next_epoch == 3
    assert taken.best is not None
    assert progress.best is not None
    assert (taken.best.epoch, taken.best.metrics) == (1, {"dice": 0.35, "score": 0.7})
    assert _same(taken.best.weights, progress.best.weights)
    assert _same(other.weights(), engine.weights())
    assert not _same(other.weights(), taken.best.weights)

    for one in (engine, other):  # both continue identically
        list(one.train_epoch(batches[3:], epoch=3))
    assert _same(other.weights(), engine.weights())


def test_a_checkpoint_within_an_epoch(
    checkpoints: TrainingCheckpoints, make_engine: MakeEngine, engine: TrainingEngine
) -> None:
    """The first epoch is incomplete, without a best epoch. The next epoch starts at step 0."""
    progress = TrainingProgress()
    begun = PartialEpoch(3, {"loss_segmentation": [2.0, 1.5, 1.25]})
    progress.save(checkpoints, engine, begun)
    taken = TrainingProgress.load(checkpoints, make_engine())
    assert (taken.next_epoch, taken.best, taken.history) == (0, None, [])
    assert taken.partial == begun
    _add(taken, engine, 0.5)
    assert taken.partial == PartialEpoch()
    taken.save(checkpoints, engine)
    again = TrainingProgress.load(checkpoints, make_engine())
    assert (again.next_epoch, again.partial) == (1, PartialEpoch())


def test_random_states_of_an_earlier_version_are_ignored(
    checkpoints: TrainingCheckpoints, engine: TrainingEngine
) -> None:
    progress, begun = TrainingProgress(), PartialEpoch(3, {"gradient_norm": [2.0, 1.5, 1.25]})
    progress.save(checkpoints, engine, begun)
    state = checkpoints.load()
    assert state is not None
    state["begun"]["randomness"] = [{"cpu": torch.get_rng_state()}]
    checkpoints.save(0, state)
    assert TrainingProgress.load(checkpoints, engine).partial == begun


def test_time_adds_up_over_processes(
    checkpoints: TrainingCheckpoints, engine: TrainingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = TrainingProgress()
    _add(progress, engine, 0.5)
    now = 107.0
    progress.save(checkpoints, engine)
    now = 5000.0  # time between two processes does not count
    taken = TrainingProgress.load(checkpoints, engine)
    now = 5003.0
    assert taken.seconds == 10.0


def test_nothing_is_saved_before_the_first_epoch(
    checkpoints: TrainingCheckpoints, engine: TrainingEngine
) -> None:
    with pytest.raises(AssertionError):
        TrainingProgress().save(checkpoints, engine)
    assert checkpoints.load() is None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
