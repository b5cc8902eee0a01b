"""CPUs and threads of the trainings of a run."""

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

_THREADS_FILE = "threads.json"
_MAX_THREADS = 4096
_THREADS_SCHEMA: TypeAdapter[dict[str, int]] = TypeAdapter(
    dict[str, Annotated[int, Field(ge=1, le=_MAX_THREADS)]]
)


def reserved_cpus(config: Config) -> float:
    """Return the CPUs reserved by each training worker.

    Raises:
        ResourceError: if the workers do not fit on the cluster, startable nodes included.
    """
    return _reserved_cpus_on(config, cluster.nodes())


def tell_of_waiting(config: Config) -> None:
    """Log a warning if a training must wait until the cluster has started machines."""
    try:
        _reserved_cpus_on(config, cluster.live_nodes())
    except ResourceError:
        _log.warning("The cluster has to start machines for the training, which may take minutes.")


def _reserved_cpus_on(config: Config, nodes: Sequence[preflight.Node]) -> float:
    return preflight.elastic_cpus_per_worker(
        nodes,
        min_workers=config.train.min_workers or config.train.num_workers,
        num_workers=config.train.num_workers,
        cpus=config.train.cpus_per_worker,
        gpus=config.train.gpus_per_worker,
    )


def num_threads(run: Run, proposed: int) -> int:
    """Return the number of CPU threads of every training process in the run.

    The first proposal is stored in the run and used from then on.

    Raises:
        DataError: if the stored file is malformed.
    """
    # Floating-point sums depend on the thread count in their last digits, so every resumed process
    # must use the stored count, on any machine. `create` keeps an existing file.
    run.store.create(_THREADS_FILE, json.dumps({"threads": proposed}).encode())
    document = Document(
        f"{run.uri}/{_THREADS_FILE}",
        'write {"threads": N} with the first thread count of the run, or choose a new --run',
    )
    values = document.validate(
        _THREADS_SCHEMA, document.object(document.read(run.store, _THREADS_FILE))
    )
    if values.keys() != {"threads"}:
        document.refuse("must hold only `threads`")
    return values["threads"]


def threads(config: Config, cpus: float) -> int:
    """Return the number of CPU threads of each worker.

    Args:
        config: the run's configuration.
        cpus: CPUs reserved by each worker.
    """
    configured_cpus = config.train.cpus_per_worker
    if configured_cpus is not None:
        return max(1, round(configured_cpus))
    num_workers, gpus = config.train.num_workers, config.train.gpus_per_worker
    return preflight.threads_per_worker(
        cluster.nodes(), num_workers=num_workers, cpus=cpus, gpus=gpus
    )
