"""How far a fold's training has come, and taking it up again. No Ray."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from mtil.config import NonNegative, NonNegativeInt
from mtil.documents import MIB, Document, shorten_text
from mtil.errors import CheckpointError
from mtil.metrics import select_epoch
from mtil.run.checkpoint import TrainingCheckpoints
from mtil.training.engine import TrainingEngine

_MAX_HISTORY_BYTES = 64 * MIB
_Records = list[dict[str, int | float]]
_HISTORY: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(_Records)
_SCORES: TypeAdapter[list[float]] = TypeAdapter(list[float])
_SECONDS: TypeAdapter[float] = TypeAdapter(NonNegative)
_EPOCH: TypeAdapter[int] = TypeAdapter(NonNegativeInt)


@dataclass(frozen=True)
class BestEpoch:
    """The epoch that is kept so far."""

    epoch: int
    metrics: dict[str, float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class PartialEpoch:
    """An epoch of which some steps have been taken."""

    steps: int = 0
    """How many, from the epoch's first on."""
    terms: dict[str, list[float]] = field(default_factory=dict)
    """The first process's loss terms and gradient norm at each of them."""
    randomness: Sequence[dict[str, Tensor]] = ()
    """Where the random numbers of each process stand after them."""


class TrainingProgress:
    """What a fold's training has come to: its history, its best epoch, the time it took."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.best: BestEpoch | None = None
        self.begun = PartialEpoch()
        self._seconds_before = 0.0
        self._start = time.monotonic()

    @classmethod
    def load(cls, checkpoints: TrainingCheckpoints, engine: TrainingEngine) -> "TrainingProgress":
        """Take up the latest checkpoint, if there is one, and put the engine where it was."""
        progress = cls()
        state = checkpoints.load()
        if state is None:
            return progress
        document = Document(
            f"The checkpoint of {checkpoints.uri}",
            "delete the folder to train again from the start",
            CheckpointError,
            max_bytes=_MAX_HISTORY_BYTES,
            finite=False,
        )
        try:
            history, best, begun = state["history"], state["best"], state["begun"]
            progress._seconds_before = document.validate(_SECONDS, state["seconds"])
            progress.history = document.validate(_HISTORY, document.json(history.encode()))
            progress.best = None if best is None else BestEpoch(**best)
            progress.begun = PartialEpoch(**begun)
            document.validate(_SCORES, progress._scores)
            if progress.best is not None:
                document.validate(_EPOCH, progress.best.epoch)
            document.validate(_EPOCH, progress.begun.steps)
            engine.restore(state["engine"])
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            document.refuse(
                "must be one of this training and of this version of mtil, but is another "
                f"({shorten_text(' '.join(str(error).split()))})"
            )
        return progress

    def save(
        self,
        checkpoints: TrainingCheckpoints,
        engine: TrainingEngine,
        begun: PartialEpoch | None = None,
    ) -> None:
        """Commit a checkpoint, after an epoch or within the next: plain values and tensors only."""
        assert self.best is not None or begun is not None
        checkpoints.save(
            self.next_epoch - 1 if begun is None else self.next_epoch,
            {
                "engine": engine.state(),
                "history": json.dumps(self.history),
                "best": None if self.best is None else vars(self.best),
                "begun": vars(begun or PartialEpoch()),
                "seconds": self.seconds,
            },
        )

    @property
    def next_epoch(self) -> int:
        """The epoch that comes next, from 0."""
        return len(self.history)

    @property
    def seconds(self) -> float:
        """Time spent in all processes that got as far as a checkpoint, one after the other."""
        return self._seconds_before + time.monotonic() - self._start

    def has_stalled(self, patience: int) -> bool:
        """Say whether the score has not risen for so many epochs; never if `patience` is 0."""
        scores = self._scores
        return bool(patience and scores and len(scores) - 1 - scores.index(max(scores)) >= patience)

    def add(
        self, record: dict[str, Any], figures: dict[str, float], engine: TrainingEngine
    ) -> None:
        """Add an epoch, and keep its weights if its score is as good as the highest."""
        validated = {f"validation_{name}": value for name, value in figures.items()}
        self.history.append(record | validated)
        self.begun = PartialEpoch()
        epoch = self.next_epoch - 1
        if select_epoch(self._scores, engine.config.train.score_tolerance) == epoch:
            self.best = BestEpoch(epoch, figures, engine.weights())

    @property
    def _scores(self) -> list[float]:
        return [record["validation_score"] for record in self.history]
