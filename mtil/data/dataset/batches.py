"""Turn tables of shard rows into batches of arrays; a row is copied once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.order import ShuffleWindow, epoch_windows
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


@dataclass(frozen=True)
class EpochPlan:
    """The parameters that determine the rows of a worker's epoch and the row order."""

    manifest: Manifest
    selection: RowSelection
    seed: int
    rank: int
    num_workers: int
    shuffle_shards: int
    batch_size: int | None = None
    """Images a step over all workers; matters only if not divisible by `num_workers`."""

    def windows(self, epoch: int) -> list[ShuffleWindow]:
        """Return the windows of an epoch, in reading order."""
        return epoch_windows(
            [self.selection.count(shard) for shard in self.manifest.shards],
            seed=self.seed,
            epoch=epoch,
            rank=self.rank,
            num_workers=self.num_workers,
            shuffle_shards=self.shuffle_shards,
            batch_size=self.batch_size,
        )

    def shards(self) -> list[int]:
        """Return the indices of the shards assigned to this worker.

        Only shards with a selected row, according to the manifest, are assigned.
        """
        wanted = [i for i, shard in enumerate(self.manifest.shards) if self.selection.count(shard)]
        return wanted[self.rank :: self.num_workers]


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
        # Record batches are contiguous: a column is viewed without a copy.
        pieces = [piece for table in tables for piece in table.to_batches()]
        self._starts = np.cumsum([0, *(piece.num_rows for piece in pieces)])
        self._ids = [piece.column("sample_id") for piece in pieces]
        self._images = [pixels(piece.column("image")) for piece in pieces]
        self._masks = [pixels(piece.column("mask")) for piece in pieces]
        self._labels = [piece.column("label").to_numpy() for piece in pieces]
        self._priors = [
            pixels(piece.column("prior")) for piece in pieces if "prior" in piece.schema.names
        ]
        assert len(self._priors) in (0, len(pieces))
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
        self, tables: npt.NDArray[np.int64], picks: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Map (table, i) pairs to row numbers; `i` counts the selected rows of the table.

        Args:
            tables: (n,), index of the table.
            picks: (n,), `i` within the table.
        """
        numbers: npt.NDArray[np.int64] = self._chosen[self._first[tables] + picks]
        return numbers

    def gather(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Copy the rows with the given row numbers into a batch, in order."""
        image = np.empty((len(numbers), self._images[0].shape[1]), np.uint8)
        mask = np.empty((len(numbers), self._masks[0].shape[1]), np.uint8)
        label = np.empty(len(numbers), np.int64)
        prior = None
        if self._priors:
            prior = np.empty((len(numbers), self._priors[0].shape[1]), np.uint8)
        ids = []
        pieces = np.searchsorted(self._starts, numbers, side="right") - 1
        positions = zip(pieces.tolist(), (numbers - self._starts[pieces]).tolist(), strict=True)
        for index, (piece, row) in enumerate(positions):
            image[index] = self._images[piece][row]
            mask[index] = self._masks[piece][row]
            label[index] = self._labels[piece][row]
            if prior is not None:
                prior[index] = self._priors[piece][row]
            ids.append(self._ids[piece][row].as_py())
        return Batch(
            ids, to_squares(image), mask, label, None if prior is None else to_squares(prior)
        )


def to_squares(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Reshape rows of bytes (b, s * s) to square images (b, s, s)."""
    side = int(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)


RowSlice = tuple[TableRows, npt.NDArray[np.int64]]
"""Rows of tables and the row numbers to take, in order."""


def cut_batches(parts: Iterable[RowSlice], batch_size: int, *, whole: bool) -> Iterator[Batch]:
    """Cut a stream of rows into batches of `batch_size`; with `whole`, drop a short last batch."""
    # A batch may span parts. The rows of a part are copied before the next part is requested:
    # only the current part has to stay in memory.
    pending: list[Batch] = []
    num_missing = batch_size
    for rows, numbers in parts:
        start = 0
        while len(numbers) - start >= num_missing:
            pending.append(rows.gather(numbers[start : start + num_missing]))
            yield _concatenate(pending)
            pending, num_missing, start = [], batch_size, start + num_missing
        if start < len(numbers):
            pending.append(rows.gather(numbers[start:]))
            num_missing -= len(pending[-1])
    if pending and not whole:
        yield _concatenate(pending)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    priors = [batch.prior for batch in batches if batch.prior is not None]
    assert len(priors) in (0, len(batches))
    return Batch(
        sample_id=[sample_id for batch in batches for sample_id in batch.sample_id],
        image=np.concatenate([batch.image for batch in batches]),
        mask=np.concatenate([batch.mask for batch in batches]),
        label=np.concatenate([batch.label for batch in batches]),
        prior=np.concatenate(priors) if priors else None,
    )
