"""The order of training rows: index arithmetic on (seed, epoch), independent of the data source.

An epoch visits the shards in random order, and the rows of a shard in random order. The sequence
is cut into one equal range per worker. A worker reads only the shards in the range. Within a range,
the rows of a few consecutive shards (a window) are mixed. Rows left over by the division are
skipped in the epoch; every epoch skips different rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class _Stream(IntEnum):
    """Streams of random numbers; the number is part of the seed and keeps the streams apart."""

    SHARDS = 0
    ROWS = 1
    WINDOW = 2


@dataclass(frozen=True)
class ShuffleWindow:
    """Rows read together, in training order."""

    shards: npt.NDArray[np.int64]
    """(shards,), indices of the shards to read."""
    picks: npt.NDArray[np.int64]
    """(rows, 2), position in `shards` and index among the selected rows of the shard."""


def local_batch_size(batch_size: int, rank: int, num_workers: int) -> int:
    """Return a worker's number of images in a step; workers differ by at most 1 image."""
    return batch_size * (rank + 1) // num_workers - batch_size * rank // num_workers


def epoch_windows(
    counts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    rank: int,
    num_workers: int,
    shuffle_shards: int,
    batch_size: int | None = None,
) -> list[ShuffleWindow]:
    """Return the rows of an epoch for one worker, as windows in training order.

    Args:
        counts: number of selected rows, by shard.
        seed: the seed of the run or of a later round.
        epoch: index of the epoch, from 0.
        rank: index of the worker, from 0 to `num_workers - 1`.
        num_workers: number of workers in the epoch.
        shuffle_shards: number of shards mixed in a window.
        batch_size: images a step over all workers. If not divisible by `num_workers`, the ranges
            are proportional to `local_batch_size`. If None, all ranges are equal.
    """
    start, stop = _row_range(sum(counts), rank, num_workers, batch_size)
    pieces: list[tuple[int, npt.NDArray[np.int64]]] = []
    position = 0
    for shard in np.random.default_rng((seed, epoch, _Stream.SHARDS)).permutation(len(counts)):
        low, high = max(start - position, 0), min(stop - position, counts[shard])
        position += counts[shard]
        # Seeded by the shard, not by the worker: workers with parts of a shard cut the same
        # permutation, and no row is read twice.
        if low < high:
            generator = np.random.default_rng((seed, epoch, _Stream.ROWS, int(shard)))
            pieces.append((int(shard), generator.permutation(counts[shard])[low:high]))
    return [
        _shuffle_window(
            pieces[first : first + shuffle_shards], (seed, epoch, _Stream.WINDOW, rank, first)
        )
        for first in range(0, len(pieces), shuffle_shards)
    ]


def _row_range(
    num_rows: int, rank: int, num_workers: int, batch_size: int | None
) -> tuple[int, int]:
    if batch_size is None or batch_size % num_workers == 0:
        share = num_rows // num_workers
        return rank * share, (rank + 1) * share
    # Equal ranges would run out at different steps when local batches differ in size. Every worker
    # must have the same number of steps, because all workers synchronise gradients in a step.
    steps = num_rows // batch_size
    before, share = (
        batch_size * rank // num_workers,
        local_batch_size(batch_size, rank, num_workers),
    )
    return steps * before, steps * (before + share)


def _shuffle_window(
    pieces: Sequence[tuple[int, npt.NDArray[np.int64]]], seed: tuple[int, ...]
) -> ShuffleWindow:
    picks = np.concatenate(
        [
            np.stack([np.full(len(rows), index), rows], axis=1)
            for index, (_, rows) in enumerate(pieces)
        ]
    )
    shuffled = np.random.default_rng(seed).permutation(picks)
    return ShuffleWindow(shards=np.array([shard for shard, _ in pieces]), picks=shuffled)
