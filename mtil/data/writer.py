"""Samples to shards of a bounded size, and back out of it when something goes wrong."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa

from mtil.data import shards
from mtil.data.manifest import Cell, Shard
from mtil.data.samples import Sample
from mtil.errors import DataError, StorageError
from mtil.storage import Store

_ROW_BYTES = 128
"""What a row takes beside its pixels, about."""


def fingerprint(digests: Iterable[bytes]) -> str:
    """Return the data set's fingerprint: sha256 over the sorted row digests."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


class ShardWriter:
    """Collects samples in order and writes a shard whenever there are enough."""

    def __init__(self, store: Store | None, image_size: int, max_bytes: int) -> None:
        """Write to a store, or nowhere: then samples are only counted by the caller."""
        self._store = store
        self._schema = shards.schema(image_size)
        self._max_bytes = max_bytes
        self._held: list[Sample] = []
        self._held_bytes = 0
        self._shards: list[Shard] = []
        self._written: list[str] = []

    def add(self, sample: Sample) -> None:
        """Take one more sample; ids must come sorted."""
        if self._store is None:
            return
        size = len(sample.image) + len(sample.mask) + len(sample.mask_png) + _ROW_BYTES
        if self._held and self._held_bytes + size > self._max_bytes:
            self._flush(self._store)
        self._held.append(sample)
        self._held_bytes += size

    def close(self) -> tuple[Shard, ...]:
        """Write what is left and return all shards."""
        if self._store is not None and self._held:
            self._flush(self._store)
        return tuple(self._shards)

    def undo(self) -> None:
        """Delete every shard that this writer wrote, as far as the store lets it."""
        for path in self._written:
            assert self._store is not None
            with suppress(StorageError):  # what went wrong before is what the user must hear
                self._store.delete(path)
        self._written.clear()

    def _flush(self, store: Store) -> None:
        path = f"shards/part-{len(self._shards):05d}.parquet"
        data = shards.encode(_table(self._held, self._schema))
        self._written.append(path)
        if not store.create(path, data) and store.read(path) != data:
            self._written.pop()
            raise DataError(f"Another data set is being written to {store.uri}; choose another.")
        cells = Counter((s.place.fold, s.place.part, s.label) for s in self._held)
        self._shards.append(
            Shard(
                path=path,
                rows=len(self._held),
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                cells=tuple(
                    Cell(fold=fold, part=part, label=label, rows=rows)
                    for (fold, part, label), rows in sorted(cells.items())
                ),
            )
        )
        self._held, self._held_bytes = [], 0


def _table(samples: list[Sample], schema: pa.Schema) -> pa.Table:
    columns = {
        "sample_id": [sample.sample_id for sample in samples],
        "image": [sample.image for sample in samples],
        "mask": [sample.mask for sample in samples],
        "label": [sample.label for sample in samples],
        "group": [sample.place.group for sample in samples],
        "fold": [sample.place.fold for sample in samples],
        "part": [sample.place.part for sample in samples],
        "height": [sample.height for sample in samples],
        "width": [sample.width for sample in samples],
        "mask_png": [sample.mask_png for sample in samples],
        "sha256": [sample.sha256 for sample in samples],
    }
    return pa.table(columns, schema=schema)
