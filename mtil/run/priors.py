"""Join the maps of the previous round to the rows of a shard, in the task that reads the shard.

`mtil.circle.inputs` chooses the maps. The modules are separate because reading processes need no
network.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pyarrow as pa

from mtil.data.dataset import shards
from mtil.data.dataset.batches import ROLE_COLUMNS, TRAINING_COLUMNS
from mtil.data.dataset.manifest import Shard
from mtil.data.dataset.selection import RowSelection
from mtil.errors import NotFoundError, TooLargeError
from mtil.run import maps
from mtil.run.maps import MapOrigin
from mtil.storage import Store, open_store


@dataclass(frozen=True)
class MapSource:
    """The map folder of an action, and the rows with maps."""

    folder: str
    origin: MapOrigin
    """Origin of all map shards; `origin_of` fills in the shard."""
    rows: RowSelection

    def name(self, shard: Shard) -> str:
        """Return the name of the map shard for a data shard."""
        return f"{self.folder}/{PurePosixPath(shard.path).name}"

    def origin_of(self, shard: Shard) -> MapOrigin:
        """Return the origin of the map shard for a data shard."""
        return replace(self.origin, shard=shard.path)


@dataclass(frozen=True)
class PriorMaps:
    """The maps of the previous round, to be joined to rows."""

    run_uri: str
    sources: tuple[MapSource, ...]
    needed: RowSelection
    """Rows that must have a map; a row without a map elsewhere gets zeros."""

    def join(self, table: pa.Table, shard: Shard) -> pa.Table:
        """Return the rows of a shard with the column `prior`.

        Raises:
            MapError: if a map shard is missing, damaged or of a different origin.
            RunError: see `mtil.run.maps.join_maps`.
        """
        store = open_store(self.run_uri)
        tables = [
            maps.read_maps(
                store,
                source.name(shard),
                source.origin_of(shard),
                table.column("sample_id").take(pa.array(source.rows.rows(table))),
            )
            for source in self.sources
        ]
        return maps.join_maps(table, tables, self.needed.rows(table))


def check_map_shards(run_uri: str, source: MapSource, data_shards: Sequence[Shard]) -> list[bool]:
    """Return, by data shard, whether the map shard exists undamaged and with the right origin."""
    store = open_store(run_uri)
    return [_is_whole(store, source.name(shard), source.origin_of(shard)) for shard in data_shards]


def _is_whole(store: Store, name: str, origin: MapOrigin) -> bool:
    try:
        stored_origin, _ = maps.decode_maps(store.read(name, max_bytes=maps.MAX_BYTES))
    except (NotFoundError, TooLargeError, ValueError):
        return False
    return stored_origin == origin


def read_training_table(data_uri: str, shard: Shard, priors: PriorMaps | None) -> pa.Table:
    """Read a shard's training columns, with a column `prior` if `priors` are given.

    Raises:
        DataError: if the shard is missing or differs from its entry in the manifest.
        MapError: if a map shard is missing, damaged or of another origin.
    """
    table = shards.read_shard(open_store(data_uri), shard, (*TRAINING_COLUMNS, *ROLE_COLUMNS))
    return table if priors is None else priors.join(table, shard)
