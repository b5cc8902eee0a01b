"""Tables of shard rows to batches of arrays."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.manifest import Manifest
from mtil.data.order import Window, epoch_windows
from mtil.data.selection import Selection
from mtil.data.shards import pixels, read
from mtil.storage import Store

TRAINING_COLUMNS = ("sample_id", "image", "mask", "label")
ROLE_COLUMNS = ("fold", "part")


@dataclass(frozen=True)
class Batch:
    """Rows as arrays at the stored size `s`."""

    sample_id: list[str]
    image: npt.NDArray[np.uint8]
    """(b, s, s) gray."""
    mask: npt.NDArray[np.uint8]
    """(b, s * s / 8) bits, packed."""
    label: npt.NDArray[np.int64]
    """(b,): 0 benign, 1 malignant, 2 normal."""

    def __len__(self) -> int:
        return len(self.sample_id)


@dataclass(frozen=True)
class Plan:
    """Everything that decides which rows a worker's epoch holds, and in which order."""

    manifest: Manifest
    selection: Selection
    seed: int
    rank: int
    num_workers: int
    shuffle_shards: int

    def windows(self, epoch: int) -> list[Window]:
        """Return the epoch's windows."""
        return epoch_windows(
            [self.selection.count(shard) for shard in self.manifest.shards],
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            num_workers=self.num_workers,
            shuffle_shards=self.shuffle_shards,
        )


def to_batch(table: pa.Table) -> Batch:
    """Turn a table with the training columns into arrays, views where they can be."""
    image = pixels(table.column("image"))
    side = int(image.shape[1] ** 0.5)
    return Batch(
        sample_id=table.column("sample_id").to_pylist(),
        image=image.reshape(-1, side, side),
        mask=pixels(table.column("mask")),
        label=table.column("label").to_numpy().astype(np.int64),
    )


def read_window(store: Store, plan: Plan, window: Window) -> pa.Table:
    """Read a window's shards and return its rows in order, training columns only."""
    parts = []
    for index, shard in enumerate(window.shards):
        table = read(store, plan.manifest.shards[shard], (*TRAINING_COLUMNS, *ROLE_COLUMNS))
        wanted = window.picks[window.picks[:, 0] == index, 1]
        rows = plan.selection.rows(table)[wanted]
        parts.append(table.select(TRAINING_COLUMNS).take(pa.array(rows)))
    if len(parts) == 1:
        return parts[0].combine_chunks()
    # The rows stand shard by shard; put them where the window wants them.
    place = np.argsort(np.argsort(window.picks[:, 0], kind="stable"), kind="stable")
    return pa.concat_tables(parts).take(pa.array(place)).combine_chunks()


def cut(tables: Iterable[pa.Table], batch_size: int, *, whole: bool) -> Iterator[Batch]:
    """Cut a stream of tables into batches; with `whole`, drop a short last one."""
    held: list[pa.Table] = []
    num_held = 0
    for table in tables:
        start = 0
        while num_held + table.num_rows - start >= batch_size:
            wanted = batch_size - num_held
            held.append(table.slice(start, wanted))
            yield to_batch(pa.concat_tables(held) if len(held) > 1 else held[0])
            held, num_held, start = [], 0, start + wanted
        if start < table.num_rows:
            held.append(table.slice(start))
            num_held += table.num_rows - start
    if held and not whole:
        yield to_batch(pa.concat_tables(held))


class Resident:
    """The selected rows of a data set, held in memory as views of its shards' tables."""

    def __init__(self, tables: Sequence[pa.Table], selection: Selection) -> None:
        """Take the tables of all shards, in order, with role and training columns."""
        self._ids = [table.column("sample_id").to_pylist() for table in tables]
        self._images = [pixels(table.column("image")) for table in tables]
        self._masks = [pixels(table.column("mask")) for table in tables]
        self._labels = [table.column("label").to_numpy().astype(np.int64) for table in tables]
        self._rows = [selection.rows(table) for table in tables]
        self._side = int(self._images[0].shape[1] ** 0.5)

    def everything(self) -> "npt.NDArray[np.int64]":
        """Return (rows, 2): shard and row of every selected row, in the shards' order."""
        return np.concatenate(
            [
                np.stack([np.full(len(rows), shard), rows], axis=1)
                for shard, rows in enumerate(self._rows)
            ]
        )

    def ordered(self, windows: Sequence[Window]) -> npt.NDArray[np.int64]:
        """Return (rows, 2): shard and row of the windows' rows, in order."""
        found = []
        for window in windows:
            shards = np.array(window.shards)[window.picks[:, 0]]
            rows = np.array(
                [
                    self._rows[shard][pick]
                    for shard, pick in zip(shards, window.picks[:, 1], strict=True)
                ],
                np.int64,
            )
            found.append(np.stack([shards, rows], axis=1))
        return np.concatenate(found) if found else np.empty((0, 2), np.int64)

    def batch(self, where: npt.NDArray[np.int64]) -> Batch:
        """Copy the rows at (rows, 2) positions into a batch."""
        image = np.empty((len(where), self._side * self._side), np.uint8)
        mask = np.empty((len(where), self._masks[0].shape[1]), np.uint8)
        label = np.empty(len(where), np.int64)
        ids = []
        for out, (shard, row) in enumerate(where):
            image[out] = self._images[shard][row]
            mask[out] = self._masks[shard][row]
            label[out] = self._labels[shard][row]
            ids.append(self._ids[shard][row])
        return Batch(ids, image.reshape(-1, self._side, self._side), mask, label)

    def batches(
        self, where: npt.NDArray[np.int64], batch_size: int, *, whole: bool
    ) -> Iterator[Batch]:
        """Yield batches of the rows at these positions; with `whole`, drop a short last one."""
        stop = len(where) - batch_size + 1 if whole else len(where)
        for start in range(0, stop, batch_size):
            yield self.batch(where[start : start + batch_size])
