"""Rows with the maps of the round before, joined within the task that reads a shard.

Apart from `mtil.circle.inputs`, which says whose maps they are: the processes that read need no
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pyarrow as pa

from mtil.data.dataset import shards
from mtil.data.dataset.batches import ROLE_COLUMNS, TRAINING_COLUMNS
from mtil.data.dataset.manifest import Shard
from mtil.data.dataset.selection import Selection
from mtil.errors import NotFoundError, TooLargeError
from mtil.run import maps
from mtil.run.maps import Origin
from mtil.storage import Store, open_store


@dataclass(frozen=True)
class MapSource:
    """The maps of one action's folder, and the rows that they are of."""

    folder: str
    origin: Origin
    """Of all of its shards; the shard's name is that of each."""
    rows: Selection

    def name(self, shard: Shard) -> str:
        """Return the name of the map shard of a shard of the data set."""
        return f"{self.folder}/{PurePosixPath(shard.path).name}"

    def origin_of(self, shard: Shard) -> Origin:
        """Return the origin of the map shard of a shard of the data set."""
        return replace(self.origin, shard=shard.path)


@dataclass(frozen=True)
class PriorMaps:
    """The maps of the round before that rows come with."""

    run_uri: str
    sources: tuple[MapSource, ...]
    needed: Selection
    """The rows that must have one; any other gets zeros."""

    def join(self, table: pa.Table, shard: Shard) -> pa.Table:
        """Return a shard's rows with a column `prior`.

        Raises:
            MapError: naming a map shard that is missing, damaged or another's.
        """
        store = open_store(self.run_uri)
        found = [
            maps.read(
                store,
                source.name(shard),
                source.origin_of(shard),
                table.column("sample_id").take(pa.array(source.rows.rows(table))),
            )
            for source in self.sources
        ]
        return maps.join(table, found, self.needed.rows(table))


def are_whole(run_uri: str, source: MapSource, data_shards: Sequence[Shard]) -> list[bool]:
    """Say of which shards of a data set the map shard is there, undamaged and of its origin."""
    store = open_store(run_uri)
    return [_is_whole(store, source.name(shard), source.origin_of(shard)) for shard in data_shards]


def _is_whole(store: Store, name: str, origin: Origin) -> bool:
    try:
        found, _ = maps.decode(store.read(name, max_bytes=maps.MAX_BYTES))
    except (NotFoundError, TooLargeError, ValueError):
        return False
    return found == origin


def read_with_priors(data_uri: str, shard: Shard, priors: PriorMaps | None) -> pa.Table:
    """Read a shard's training columns, with a column `prior` if `priors` are given.

    Raises:
        DataError: if the shard is missing or differs from its entry in the manifest.
        MapError: if a map shard is missing, damaged or of another origin.
    """
    table = shards.read(open_store(data_uri), shard, (*TRAINING_COLUMNS, *ROLE_COLUMNS))
    return table if priors is None else priors.join(table, shard)
