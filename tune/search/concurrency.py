"""Number of trials a cluster can run side by side. Imports no Ray."""

import math
from collections.abc import Sequence

from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import row_bytes
from mtil.distributed.runtime import preflight
from mtil.distributed.runtime.preflight import NodeResources
from mtil.errors import ResourceError


def plan_concurrency(
    nodes: Sequence[NodeResources], config: Config, wanted: int
) -> tuple[int, float]:
    """Return the number of concurrent trials, and the CPUs of each worker.

    Args:
        nodes: nodes of the cluster.
        config: configuration of a trial.
        wanted: maximum number of trials.

    Raises:
        ResourceError: if the cluster is too small for a single trial.
    """
    train = config.train
    gpus = train.gpus_per_worker
    if gpus:
        # The summand absorbs floating-point rounding of the quotient.
        worker_slots = sum(math.floor(node.gpus / gpus + 1e-9) for node in nodes)
    else:
        cpus_per_worker = train.cpus_per_worker or 1.0
        worker_slots = sum(math.floor(node.cpus / cpus_per_worker + 1e-9) for node in nodes)
    max_trials = max(1, min(wanted, worker_slots // train.num_workers))
    # Preflight refuses GPU fractions for several workers, but trials of one worker may share a
    # GPU.
    reserved_gpus = 0.0 if train.num_workers == 1 and gpus % 1 else gpus
    # Slots are only an upper bound: CPUs may allow fewer trials.
    for concurrent in range(max_trials, 1, -1):
        try:
            return concurrent, preflight.plan_cpus_per_worker(
                nodes,
                num_workers=concurrent * train.num_workers,
                cpus=train.cpus_per_worker,
                gpus=reserved_gpus,
            )
        except ResourceError:
            continue
    cpus = preflight.plan_cpus_per_worker(
        nodes, num_workers=train.num_workers, cpus=train.cpus_per_worker, gpus=gpus
    )
    return 1, cpus


def count_dataset_copies(store_bytes: float, manifest: Manifest) -> int:
    """Return how many trials can hold a separate copy of the data set.

    From the second round on, a circle's training holds a copy of the data set with the maps of the
    rows. The copy shared by all trials stays in memory as well.
    """
    map_bytes = manifest.image_size**2
    copy_bytes = manifest.num_rows * (row_bytes(manifest.image_size) + map_bytes)
    return max(1, math.floor(store_bytes / copy_bytes) - 1)


def count_worker_threads(nodes: Sequence[NodeResources], config: Config, concurrent: int) -> int:
    """Return the CPU threads per worker with `concurrent` trials."""
    cpus = sum(node.cpus for node in nodes)
    return max(1, int(cpus / (concurrent * config.train.num_workers)))
