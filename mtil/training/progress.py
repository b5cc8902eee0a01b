"""Progress of a fold's training: save to a checkpoint and resume. No Ray."""

import json
import time
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
    """The epoch selected by `select_epoch` so far, with figures and weights."""

    epoch: int
    metrics: dict[str, float]
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class PartialEpoch:
    """The finished steps of an unfinished epoch."""

    steps: int = 0
    """Number of finished steps."""
    terms: dict[str, list[float]] = field(default_factory=dict)
    """Loss terms and gradient norm of rank 0 by name, a value per finished step."""


class TrainingProgress:
    """History, best epoch, unfinished epoch and duration of a training."""

    def __init__(self) -> None:
        self.history: list[dict[str, Any]] = []
        self.best: BestEpoch | None = None
        self.partial = PartialEpoch()
        self._seconds_before = 0.0
        self._start = time.monotonic()

    @classmethod
    def load(cls, checkpoints: TrainingCheckpoints, engine: TrainingEngine) -> "TrainingProgress":
        """Load the latest checkpoint, and restore the engine from it.

        Without a checkpoint, return empty progress and leave the engine unchanged.

        Raises:
            CheckpointError: if the checkpoint is damaged, or of another training or version.
        """
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
            history, best, partial = state["history"], state["best"], state["begun"]
            progress._seconds_before = document.validate(_SECONDS, state["seconds"])
            progress.history = document.validate(_HISTORY, document.json(history.encode()))
            progress.best = None if best is None else BestEpoch(**best)
            # By key: checkpoints of earlier versions also hold states of random generators.
            progress.partial = PartialEpoch(partial["steps"], partial["terms"])
            document.validate(_SCORES, progress._scores)
            if progress.best is not None:
                document.validate(_EPOCH, progress.best.epoch)
            document.validate(_EPOCH, progress.partial.steps)
            engine.restore(state["engine"])
        # A checkpoint of another training fails in many ways: missing keys, wrong types, or weights
        # of other shapes, which PyTorch reports as RuntimeError.
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            document.refuse(
                "must be of this training and this version of mtil, but cannot be restored "
                f"({shorten_text(' '.join(str(error).split()))})"
            )
        return progress

    def save(
        self,
        checkpoints: TrainingCheckpoints,
        engine: TrainingEngine,
        partial: PartialEpoch | None = None,
    ) -> None:
        """Commit a checkpoint, after an epoch or within the next epoch.

        Args:
            checkpoints: where to commit.
            engine: the engine whose state is stored.
            partial: the finished steps of an unfinished epoch; None after an epoch.
        """
        assert self.best is not None or partial is not None
        checkpoints.save(
            self.next_epoch - 1 if partial is None else self.next_epoch,
            # Only plain values and tensors: `torch.load(weights_only=True)` accepts no others.
            {
                "engine": engine.state(),
                "history": json.dumps(self.history),
                "best": None if self.best is None else vars(self.best),
                "begun": vars(partial or PartialEpoch()),
                "seconds": self.seconds,
            },
        )

    @property
    def next_epoch(self) -> int:
        """Index of the next epoch, from 0."""
        return len(self.history)

    @property
    def seconds(self) -> float:
        """Training time up to now, over all processes of an interrupted training.

        Time after the last checkpoint of an interrupted process does not count.
        """
        return self._seconds_before + time.monotonic() - self._start

    def has_stalled(self, patience: int) -> bool:
        """Return whether the score has not risen for `patience` epochs; False for `patience` 0."""
        scores = self._scores
        return bool(patience and scores and len(scores) - 1 - scores.index(max(scores)) >= patience)

    def add(
        self, record: dict[str, Any], figures: dict[str, float], engine: TrainingEngine
    ) -> None:
        """Add a finished epoch, and keep the weights if `select_epoch` selects the epoch.

        Args:
            record: figures of the training steps.
            figures: figures on the validation rows, with `score`.
            engine: provides weights and configuration.
        """
        validated = {f"validation_{name}": value for name, value in figures.items()}
        self.history.append(record | validated)
        self.partial = PartialEpoch()
        epoch = self.next_epoch - 1
        if select_epoch(self._scores, engine.config.train.score_tolerance) == epoch:
            self.best = BestEpoch(epoch, figures, engine.weights())

    @property
    def _scores(self) -> list[float]:
        return [record["validation_score"] for record in self.history]
