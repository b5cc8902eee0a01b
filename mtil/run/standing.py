"""How far the trainings of a run without a ledger are, by their files. No Ray, no torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtil.run import names
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train

Stage = Literal["done", "training"]


@dataclass(frozen=True)
class Training:
    """What the files of a training say."""

    of: Train
    epochs: int
    """Epochs that are done."""
    step: dict[str, Any] | None
    """Where it is within the next epoch, see `Run.step`; None between epochs."""
    figures: dict[str, float]
    """On the inner validation rows: of the kept epoch of a result, else of the latest one."""
    result: FoldResult | None

    @property
    def stage(self) -> Stage:
        """Whether it has ended."""
        return "training" if self.result is None else "done"


@dataclass
class Watcher:
    """Looks at a run again and again, and so knows whether somebody works on it.

    A training writes its step every two seconds, but nothing while it starts or validates.
    """

    run: Run
    _before: Sequence[Training] | None = field(default=None, init=False)
    has_moved: bool = field(default=False, init=False)
    """Whether the latest look found something other than the one before."""

    def look(self) -> list[Training]:
        """Return the trainings that have begun, in order."""
        found = [_look(self.run, of) for of in begun(self.run)]
        self.has_moved = self._before is not None and found != self._before
        self._before = found
        return found

    def wait_for_a_move(self, sleep: Callable[[float], None], looks: int) -> bool:
        """Look so many more times, a second apart, or until something moves; say whether it did."""
        for _ in range(looks):
            sleep(1.0)
            self.look()
            if self.has_moved:
                return True
        return False


def begun(run: Run) -> list[Train]:
    """Return the trainings that have files, in order."""
    found = {
        of
        for name in run.store.names(names.TRAININGS)
        if (of := names.training_of(name)) is not None
    }
    return sorted(found, key=lambda of: (of.round, of.fold, -1 if of.part is None else of.part))


def _look(run: Run, of: Train) -> Training:
    result = run.result(of)
    if result is not None:
        return Training(of, result.num_epochs, None, dict(result.metrics), result)
    history, step = run.history(of), run.step(of)
    latest = history[-1] if history else {}
    figures = {
        name.removeprefix("validation_"): float(value)
        for name, value in latest.items()
        if name.startswith("validation_")
    }
    is_within = step is not None and step["epoch"] >= len(history)
    return Training(of, len(history), step if is_within else None, figures, None)
