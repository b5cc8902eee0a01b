"""Tables of shard rows to batches of arrays, each row copied once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.order import Window, epoch_windows
from mtil.data.dataset.selection import Selection
from mtil.data.dataset.shards import pixels

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
    prior: npt.NDArray[np.uint8] | None = None
    """(b, m, m) the previous round's probability of lesion, 255 being 1; None if there is none."""

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
    batch_size: int | None = None
    """Images of a step over all workers; matters only where they cannot share them evenly."""

    def windows(self, epoch: int) -> list[Window]:
        """Return the epoch's windows."""
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
        """Return the worker's share of the shards that hold a selected row, by the manifest."""
        wanted = [i for i, shard in enumerate(self.manifest.shards) if self.selection.count(shard)]
        return wanted[self.rank :: self.num_workers]


class Rows:
    """The selected rows of some tables, looked at where they lie and numbered through."""

    def __init__(self, tables: Sequence[pa.Table], selection: Selection | None = None) -> None:
        """Take tables with training columns, and all or none of them with `prior`.

        A selection needs the role columns as well.
        """
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

    def everything(self) -> npt.NDArray[np.int64]:
        """Return the numbers of all selected rows, in the tables' order."""
        return self._chosen

    def picked(
        self, tables: npt.NDArray[np.int64], picks: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the number of each table's so-manieth selected row."""
        numbers: npt.NDArray[np.int64] = self._chosen[self._first[tables] + picks]
        return numbers

    def gather(self, numbers: npt.NDArray[np.int64]) -> Batch:
        """Copy rows into a batch."""
        image = np.empty((len(numbers), self._images[0].shape[1]), np.uint8)
        mask = np.empty((len(numbers), self._masks[0].shape[1]), np.uint8)
        label = np.empty(len(numbers), np.int64)
        prior = None
        if self._priors:
            prior = np.empty((len(numbers), self._priors[0].shape[1]), np.uint8)
        ids = []
        pieces = np.searchsorted(self._starts, numbers, side="right") - 1
        places = zip(pieces.tolist(), (numbers - self._starts[pieces]).tolist(), strict=True)
        for out, (piece, row) in enumerate(places):
            image[out] = self._images[piece][row]
            mask[out] = self._masks[piece][row]
            label[out] = self._labels[piece][row]
            if prior is not None:
                prior[out] = self._priors[piece][row]
            ids.append(self._ids[piece][row].as_py())
        return Batch(ids, squares(image), mask, label, None if prior is None else squares(prior))


def squares(rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return square images (b, s, s) that are given as rows of bytes (b, s * s)."""
    side = int(rows.shape[1] ** 0.5)
    return rows.reshape(-1, side, side)


Part = tuple[Rows, npt.NDArray[np.int64]]
"""Some rows, and the numbers of those that are wanted, in order."""


def cut(parts: Iterable[Part], batch_size: int, *, whole: bool) -> Iterator[Batch]:
    """Cut a stream of rows into batches; with `whole`, drop a short last one."""
    held: list[Batch] = []
    room = batch_size
    for rows, numbers in parts:
        start = 0
        while len(numbers) - start >= room:
            held.append(rows.gather(numbers[start : start + room]))
            yield _joined(held)
            held, room, start = [], batch_size, start + room
        if start < len(numbers):
            held.append(rows.gather(numbers[start:]))
            room -= len(held[-1])
    if held and not whole:
        yield _joined(held)


def _joined(batches: Sequence[Batch]) -> Batch:
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
