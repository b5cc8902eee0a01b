"""Progress of the trainings of a run without a ledger, read from files. No Ray, no PyTorch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtil.run import names
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train

Stage = Literal["done", "training"]


@dataclass(frozen=True)
class TrainingStatus:
    """The progress of a training according to its files."""

    of: Train
    epochs: int
    """Number of finished epochs."""
    step: dict[str, Any] | None
    """Progress within the next epoch, see `Run.step`; None between epochs."""
    figures: dict[str, float]
    """Figures on the inner validation rows: of the best epoch once ended, else of the latest."""
    result: FoldResult | None
    images_per_second: float | None = None
    """Speed of the last finished epoch; None before, and once ended."""
    seconds_left: float | None = None
    """Seconds of the remaining epochs, if they take as long as the last; None before and after."""

    @property
    def stage(self) -> Stage:
        """`done` once the result is committed, else `training`."""
        return "training" if self.result is None else "done"


@dataclass
class ProgressWatcher:
    """Reads the trainings of a run repeatedly and detects progress.

    A training writes `step.json` every two seconds, but nothing during start and validation.
    """

    run: Run
    _previous: Sequence[TrainingStatus] | None = field(default=None, init=False)
    has_moved: bool = field(default=False, init=False)
    """Whether the last two calls of `look` returned different values."""

    def look(self) -> list[TrainingStatus]:
        """Return the started trainings, ordered by round, fold and part."""
        trainings = [
            _read_training(self.run, training) for training in find_started_trainings(self.run)
        ]
        self.has_progressed = self._previous is not None and trainings != self._previous
        self._previous = trainings
        return trainings

    def wait_for_progress(self, sleep: Callable[[float], None], looks: int) -> bool:
        """Look up to `looks` times, a second apart; return True once a training progresses."""
        for _ in range(looks):
            sleep(1.0)
            self.look()
            if self.has_progressed:
                return True
        return False


def find_started_trainings(run: Run) -> list[Train]:
    """Return the trainings with files, ordered by round, fold and part; main models first."""
    started = {
        training
        for name in run.store.names(names.TRAININGS)
        if (training := names.parse_training(name)) is not None
    }
    return sorted(
        started,
        key=lambda training: (
            training.round,
            training.fold,
            -1 if training.part is None else training.part,
        ),
    )


def _read_training(run: Run, training: Train) -> TrainingStatus:
    result = run.result(training)
    if result is not None:
        return TrainingStatus(training, result.num_epochs, None, dict(result.metrics), result)
    history, step = run.history(training), run.step(training)
    latest = history[-1] if history else {}
    figures = {
        name.removeprefix("validation_"): float(value)
        for name, value in latest.items()
        if name.startswith("validation_")
    }
    # `step.json` may be of an epoch that the history already contains.
    is_within = step is not None and step["epoch"] >= len(history)
    remaining = max(0, run.config.train.num_epochs - len(history))
    return TrainingStatus(
        training,
        len(history),
        step if is_within else None,
        figures,
        None,
        images_per_second=latest.get("images_per_second"),
        seconds_left=remaining * latest["seconds"] if "seconds" in latest else None,
    )
