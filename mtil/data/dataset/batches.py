"""Turn tables of shard rows into batches of arrays; a row is copied once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.order import epoch_order, worker_positions
from mtil.data.dataset.selection import RowSelection
from mtil.data.dataset.shards import pixels

TRAINING_COLUMNS = ("sample_id", "image", "mask", "label")
ROLE_COLUMNS = ("fold", "part")


@dataclass(frozen=True)
class Batch:
    """Rows as arrays, at the stored side length `s` in pixels."""

    sample_id: list[str]
    image: npt.NDArray[np.uint8]
    """(b, s, s), gray values from 0 to 255."""
    mask: npt.NDArray[np.uint8]
    """(b, s * s / 8), eight mask pixels packed into a byte."""
    label: npt.NDArray[np.int64]
    """(b,): 0 benign, 1 malignant, 2 normal."""
    prior: npt.NDArray[np.uint8] | None = None
    """(b, m, m), lesion probability of the previous round, 0 to 255; None without prior maps."""

    def __len__(self) -> int:
        return len(self.sample_id)


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """The parameters that determine the rows of a worker's epoch and the row order."""

    manifest: Manifest
    selection: RowSelection
    seed: int
    rank: int
    num_workers: int
    batch_size: int
    """Images of a step over all workers."""
    streams: int
    shuffle_shards: int
    num_micro_batches: int = 1
    """Forward passes of a step."""

    @property
    def local_batch_size(self) -> int:
        """This worker's number of images in a step."""
        return sum(len(part) for part in self._positions())

    def order(self, epoch: int) -> npt.NDArray[np.int32]:
        """Return this worker's rows of every step of an epoch.

        Returns:
            (steps, local batch size, 2): shard, and index among the selected rows of the shard.
        """
        return epoch_order(
            [self.selection.count(shard) for shard in self.manifest.shards],
            seed=self.seed,
            epoch=epoch,
            batch_size=self.batch_size,
            streams=self.streams,
            shuffle_shards=self.shuffle_shards,
            positions=self._positions(),
        )

    def _positions(self) -> list[range]:
        return worker_positions(
            self.batch_size, self.num_micro_batches, self.rank, self.num_workers
        )

    def shards(self) -> list[int]:
        """Return the indices of the shards assigned to this worker.

        Only shards with a selected row, according to the manifest, are assigned.
        """
        wanted = [i for i, shard in enumerate(self.manifest.shards) if self.selection.count(shard)]
        return wanted[self.rank :: self.num_workers]


@dataclass(frozen=True)
class _Piece:
    """A record batch, viewed in place. A record batch is contiguous."""

    sample_id: pa.Array
    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    label: npt.NDArray[np.int8]
    prior: npt.NDArray[np.uint8] | None

    @classmethod
    def view(cls, rows: pa.RecordBatch) -> "_Piece":
        return cls(
            sample_id=rows.column("sample_id"),
            image=pixels(rows.column("image")),
            mask=pixels(rows.column("mask")),
            label=rows.column("label").to_numpy(),
            prior=pixels(rows.column("prior")) if "prior" in rows.schema.names else None,
        )


RowPlace = tuple[_Piece, int]
"""A record batch, and the index of a row in the record batch."""


class TableRows:
    """The selected rows of several tables, viewed in place.

    A row number counts all rows of the tables in order, selected or not.
    """

    def __init__(self, tables: Sequence[pa.Table], selection: RowSelection | None = None) -> None:
        """Index the rows of `tables`.

        Args:
            tables: tables with `TRAINING_COLUMNS`; `prior` must be in all tables or in no table.
            selection: the rows to select; all rows if None. Needs `ROLE_COLUMNS` in the tables.
        """
        self._pieces = [_Piece.view(piece) for table in tables for piece in table.to_batches()]
        self._starts = np.cumsum([0, *(len(piece.image) for piece in self._pieces)])
        assert len({piece.prior is None for piece in self._pieces}) <= 1
        starts = np.cumsum([0, *(table.num_rows for table in tables)])
        chosen = [
            start + (np.arange(table.num_rows) if selection is None else selection.rows(table))
            for start, table in zip(starts, tables, strict=False)
        ]
        self._chosen = np.concatenate([np.empty(0, np.int64), *chosen])
        self._first = np.cumsum([0, *(len(rows) for rows in chosen)])

    def all_row_numbers(self) -> npt.NDArray[np.int64]:
        """Return the row numbers of all selected rows, in table order."""
        return self._chosen

    def map_to_row_numbers(
        self, tables: npt.NDArray[np.integer], picks: npt.NDArray[np.integer]
    ) -> npt.NDArray[np.int64]:
        """Map (table, i) pairs to row numbers; `i` counts the selected rows of the table.

        Args:
            tables: (n,), index of the table.
            picks: (n,), `i` within the table.
        """
        numbers: npt.NDArray[np.int64] = self._chosen[self._first[tables] + picks]
        return numbers

    def locate(self, numbers: npt.NDArray[np.int64]) -> list[RowPlace]:
        """Return the places of the rows with the given row numbers, in order."""
        pieces = np.searchsorted(self._starts, numbers, side="right") - 1
        rows = (numbers - self._starts[pieces]).tolist()
        return [(self._pieces[piece], row) for piece, row in zip(pieces, rows, strict=True)]

    def gather(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Copy the rows with the given row numbers into a batch, in order; at least 1 row."""
        return gather_rows(self.locate(numbers))


def gather_rows(places: Sequence[RowPlace]) -> Batch:
    """Copy rows of any tables into a batch, in order; at least 1 row."""
    like = places[0][0]
    image = np.empty((len(places), like.image.shape[1]), np.uint8)
    mask = np.empty((len(places), like.mask.shape[1]), np.uint8)
    label = np.empty(len(places), np.int64)
    prior = None if like.prior is None else np.empty((len(places), like.prior.shape[1]), np.uint8)
    ids = []
    for index, (piece, row) in enumerate(places):
        image[index] = piece.image[row]
        mask[index] = piece.mask[row]
        label[index] = piece.label[row]
        assert (prior is None) == (piece.prior is None)
        if prior is not None and piece.prior is not None:
            prior[index] = piece.prior[row]
        ids.append(piece.sample_id[row].as_py())
    return Batch(ids, to_squares(image), mask, label, None if prior is None else to_squares(prior))


def to_squares(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Reshape rows of bytes (b, s * s) to square images (b, s, s)."""
    side = int(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)
