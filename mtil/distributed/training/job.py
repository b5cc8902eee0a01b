"""The job of a worker group: one training and its inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mtil.run.plan import Train
from mtil.run.priors import PriorMaps


@dataclass(frozen=True)
class FoldJob:
    """One training and the inputs shared by all its processes."""

    run_uri: str
    data_uri: str
    train: Train
    resident_tables: list[ray.ObjectRef[Any]] | None
    """Tables of all shards in the object store; None to stream the rows from storage."""
    priors: PriorMaps | None = None
    """Maps of the previous round. `resident_tables` already contain the maps."""
    should_continue: Callable[[Sequence[Mapping[str, Any]]], bool] | None = None
    """Called on rank 0 with the history after each epoch. False ends the training and commits the
    best epoch."""
    num_threads: int | None = None
    """CPU threads of each process. None: `run_training_job` settles the number for a training on
    CPUs, and PyTorch's default holds otherwise."""
