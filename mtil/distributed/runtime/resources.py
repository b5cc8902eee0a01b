"""CPUs and threads of the trainings of a run."""

import logging
from collections.abc import Sequence

from mtil.config import Config
from mtil.distributed.runtime import cluster, preflight
from mtil.errors import ResourceError
from mtil.run.threads import choose_num_threads

_log = logging.getLogger(__name__)


def plan_reserved_cpus(config: Config) -> float:
    """Return the CPUs reserved by each training worker.

    Raises:
        ResourceError: if the workers do not fit on the cluster, startable nodes included.
    """
    return _reserved_cpus_on(config, cluster.list_nodes())


def report_missing_resources(config: Config) -> None:
    """Log a warning if a training must wait until the cluster has started machines."""
    try:
        _reserved_cpus_on(config, cluster.list_live_nodes())
    except ResourceError:
        _log.warning("The cluster has to start machines for the training, which may take minutes.")


def _reserved_cpus_on(config: Config, nodes: Sequence[preflight.NodeResources]) -> float:
    return preflight.plan_elastic_cpus_per_worker(
        nodes,
        min_workers=config.train.min_workers or config.train.num_workers,
        num_workers=config.train.num_workers,
        cpus=config.train.cpus_per_worker,
        gpus=config.train.gpus_per_worker,
    )


def count_parallel_trainings(config: Config, cpus: float) -> int:
    """Return the number of trainings with room on the cluster at once; at least 1.

    Args:
        config: the run's configuration.
        cpus: CPUs reserved by each worker.
    """
    return preflight.count_parallel_trainings(
        cluster.list_nodes(),
        num_workers=config.train.num_workers,
        cpus=cpus,
        gpus=config.train.gpus_per_worker,
    )


def propose_num_threads(config: Config, cpus: float, num_parallel: int) -> int:
    """Return the number of CPU threads of each worker.

    Args:
        config: the run's configuration.
        cpus: CPUs reserved by each worker.
        num_parallel: trainings that run side by side.
    """
    num_workers, gpus = config.train.num_workers, config.train.gpus_per_worker
    return choose_num_threads(
        config,
        lambda: preflight.plan_threads_per_worker(
            cluster.list_nodes(),
            num_workers=num_workers,
            cpus=cpus,
            gpus=gpus,
            num_trainings=num_parallel,
        ),
    )
