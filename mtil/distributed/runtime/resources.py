"""What of a cluster a run's trainings take: the CPUs that they reserve, and their threads."""

import logging
from collections.abc import Sequence

from mtil.config import Config
from mtil.distributed.runtime import cluster, preflight
from mtil.errors import ResourceError

_log = logging.getLogger(__name__)


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


def threads(config: Config, cpus: float) -> int:
    """Return the CPU threads of each worker that reserves so many CPUs."""
    asked = config.train.cpus_per_worker
    if asked is not None:
        return max(1, round(asked))
    num_workers, gpus = config.train.num_workers, config.train.gpus_per_worker
    return preflight.threads_per_worker(
        cluster.nodes(), num_workers=num_workers, cpus=cpus, gpus=gpus
    )
