"""What of a cluster a run's trainings take: the CPUs that they reserve, and their threads."""

import json
import logging
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, TypeAdapter

from mtil.config import Config
from mtil.distributed.runtime import cluster, preflight
from mtil.documents import Document
from mtil.errors import ResourceError
from mtil.run.folder import Run

_log = logging.getLogger(__name__)

_THREADS = "threads.json"
_MAX_THREADS = 4096
_NUMBERS: TypeAdapter[dict[str, int]] = TypeAdapter(
    dict[str, Annotated[int, Field(ge=1, le=_MAX_THREADS)]]
)


def reserved_cpus(config: Config) -> float:
    """Return the CPUs that each of a training's workers reserves.

    Raises:
        ResourceError: if the cluster has no room for them, and cannot make any.
    """
    return _reserved(config, cluster.nodes())


def tell_of_waiting(config: Config) -> None:
    """Say so where a training has to wait for machines that the cluster starts for it."""
    try:
        _reserved(config, cluster.live_nodes())
    except ResourceError:
        _log.warning("The cluster has to start machines for this, which may take minutes.")


def _reserved(config: Config, nodes: Sequence[preflight.Node]) -> float:
    return preflight.elastic_cpus_per_worker(
        nodes,
        min_workers=config.train.min_workers or config.train.num_workers,
        num_workers=config.train.num_workers,
        cpus=config.train.cpus_per_worker,
        gpus=config.train.gpus_per_worker,
    )


def num_threads(run: Run, proposed: int) -> int:
    """Return the CPU threads of each training process of a run: what was proposed first.

    Sums depend on it in their last digits: whoever goes on, and wherever, computes with as many.

    Raises:
        DataError: if the run's file of it holds something else.
    """
    run.store.create(_THREADS, json.dumps({"threads": proposed}).encode())
    document = Document(
        f"{run.uri}/{_THREADS}",
        'write {"threads": N} with the number that the run began with, or name another --run',
    )
    values = document.validate(_NUMBERS, document.object(document.read(run.store, _THREADS)))
    if values.keys() != {"threads"}:
        document.refuse("must hold `threads` alone")
    return values["threads"]


def threads(config: Config, cpus: float) -> int:
    """Return the CPU threads of each worker that reserves so many CPUs."""
    asked = config.train.cpus_per_worker
    if asked is not None:
        return max(1, round(asked))
    num_workers, gpus = config.train.num_workers, config.train.gpus_per_worker
    return preflight.threads_per_worker(
        cluster.nodes(), num_workers=num_workers, cpus=cpus, gpus=gpus
    )
