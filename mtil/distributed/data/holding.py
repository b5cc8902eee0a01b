"""Shards in object storage to tables in Ray's object store, by tasks that load nothing else."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from mtil.data.dataset.manifest import Manifest, Shard
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.run.priors import PriorMaps, read_with_priors

_PORTION_BYTES = 64 * 2**20
"""Stored bytes of shards that one task reads to hold them."""


def hold(
    data_uri: str, manifest: Manifest, priors: PriorMaps | None = None
) -> list[ray.ObjectRef[Any]]:
    """Read every shard once into the object store and return references to its tables, in order.

    Plain tasks, since the actors that Ray Data leaves behind wake a hundred times a second each.

    Raises:
        DataError: wrapped by Ray, if a shard is missing or not the one that the manifest names.
        MapError: wrapped by Ray, if a map shard is.
    """
    task: Any = ray.remote(num_cpus=DATA_TASK_CPUS)(_read_to_hold)
    tables: list[ray.ObjectRef[Any]] = []
    read_rows: list[ray.ObjectRef[int]] = []
    for shards in _portions(manifest.shards):
        *found, num_rows = task.options(num_returns=len(shards) + 1).remote(
            data_uri, shards, priors
        )
        tables += found
        read_rows.append(num_rows)
    ray.get(read_rows)  # raises what a task raised
    return tables


def _portions(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Divide shards into what one task reads: a process for each takes longer to start."""
    portions: list[list[Shard]] = []
    room = 0
    for shard in shards:
        if room < shard.bytes:
            portions.append([])
            room = _PORTION_BYTES
        portions[-1].append(shard)
        room -= shard.bytes
    return portions


def _read_to_hold(
    data_uri: str, shards: Sequence[Shard], priors: PriorMaps | None
) -> tuple[pa.Table | int, ...]:
    tables = [read_with_priors(data_uri, shard, priors) for shard in shards]
    return (*tables, sum(table.num_rows for table in tables))
