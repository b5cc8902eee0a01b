"""Load all shards of a data set into the Ray object store."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from mtil.data.dataset.manifest import Manifest, Shard
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.run.priors import PriorMaps, read_training_table

_PORTION_BYTES = 64 * 2**20
"""Stored bytes of the shards read by a task."""


def load_resident_tables(
    data_uri: str, manifest: Manifest, priors: PriorMaps | None = None
) -> list[ray.ObjectRef[Any]]:
    """Read every shard into the object store. Return references to the tables, in manifest order.

    Raises:
        DataError: wrapped by Ray, if a shard is missing or differs from the manifest.
        MapError: wrapped by Ray, if a map shard is missing or damaged.
    """
    # Plain tasks instead of Ray Data: idle actors left by Ray Data wake up a hundred times a second
    # each.
    task: Any = ray.remote(num_cpus=DATA_TASK_CPUS)(_read_portion)
    tables: list[ray.ObjectRef[Any]] = []
    row_counts: list[ray.ObjectRef[int]] = []
    for shards in _split_into_portions(manifest.shards):
        *shard_tables, num_rows = task.options(num_returns=len(shards) + 1).remote(
            data_uri, shards, priors
        )
        tables += shard_tables
        row_counts.append(num_rows)
    # Raises errors of the tasks. Row counts suffice: tables stay on the nodes of the tasks.
    ray.get(row_counts)
    return tables


def _split_into_portions(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Group shards into portions of about `_PORTION_BYTES`.

    Starting a process per shard would take longer than reading the shard.
    """
    portions: list[list[Shard]] = []
    bytes_left = 0
    for shard in shards:
        if bytes_left < shard.bytes:
            portions.append([])
            bytes_left = _PORTION_BYTES
        portions[-1].append(shard)
        bytes_left -= shard.bytes
    return portions


def _read_portion(
    data_uri: str, shards: Sequence[Shard], priors: PriorMaps | None
) -> tuple[pa.Table | int, ...]:
    tables = [read_training_table(data_uri, shard, priors) for shard in shards]
    return (*tables, sum(table.num_rows for table in tables))
