"""What a group of workers is asked to train."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mtil.run.plan import Train
from mtil.run.priors import PriorMaps


@dataclass(frozen=True)
class FoldJob:
    """One training, and what all of its processes are given for it."""

    run_uri: str
    data_uri: str
    train: Train
    held: list[ray.ObjectRef[Any]] | None
    """The data set's tables in the object store, or None to stream the training rows."""
    priors: PriorMaps | None = None
    """The maps of the round before, which held tables have already."""
    should_continue: Callable[[Sequence[Mapping[str, Any]]], bool] | None = None
    """Asked by one process after each epoch with the history so far; False ends the training, whose
    best epoch is committed."""
    num_threads: int | None = None
    """CPU threads of each process; by default as many as PyTorch takes."""
