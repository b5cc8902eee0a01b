"""How many trials run side by side. No Ray."""

import math
from collections.abc import Sequence

from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import row_bytes
from mtil.distributed.runtime import preflight
from mtil.distributed.runtime.preflight import Node
from mtil.errors import ResourceError


def room(nodes: Sequence[Node], config: Config, wanted: int) -> tuple[int, float]:
    """Return how many trials run side by side, and the CPUs of each of their workers.

    Args:
        nodes: the cluster's.
        config: of a trial.
        wanted: trials at most.

    Raises:
        ResourceError: if there is not even room for one.
    """
    train = config.train
    gpus = train.gpus_per_worker
    if gpus:
        places = sum(math.floor(node.gpus / gpus + 1e-9) for node in nodes)
    else:
        size = train.cpus_per_worker or 1.0
        places = sum(math.floor(node.cpus / size + 1e-9) for node in nodes)
    most = max(1, min(wanted, places // train.num_workers))
    whole = 0.0 if train.num_workers == 1 and gpus % 1 else gpus  # one worker may share a GPU
    for concurrent in range(most, 1, -1):
        try:
            return concurrent, preflight.cpus_per_worker(
                nodes,
                num_workers=concurrent * train.num_workers,
                cpus=train.cpus_per_worker,
                gpus=whole,
            )
        except ResourceError:
            continue
    cpus = preflight.cpus_per_worker(
        nodes, num_workers=train.num_workers, cpus=train.cpus_per_worker, gpus=gpus
    )
    return 1, cpus


def copies(store_bytes: float, manifest: Manifest) -> int:
    """Return how many trials at most may each hold a copy of the data set of their own.

    A circle's training does from the second round on, as the maps of its rows come with it. The
    copy that all share is there as well.
    """
    of_a_map = manifest.image_size**2
    one = manifest.num_rows * (row_bytes(manifest.image_size) + of_a_map)
    return max(1, math.floor(store_bytes / one) - 1)


def threads(nodes: Sequence[Node], config: Config, concurrent: int) -> int:
    """Return how many CPU threads each worker of so many trials has."""
    cpus = sum(node.cpus for node in nodes)
    return max(1, int(cpus / (concurrent * config.train.num_workers)))
