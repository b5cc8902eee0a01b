"""The order of training rows: index arithmetic on (seed, epoch), the same wherever rows come from.

An epoch visits the shards in a random order and each shard's rows in a random order. That
sequence is cut into one equal range per worker, so that a worker reads only the shards that its
range touches. Within a range, the rows of a few consecutive shards (a window) are mixed. What
cannot be divided evenly is left out of this epoch, and another remainder out of the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class _Stream(IntEnum):
    """Independent streams of random numbers."""

    SHARDS = 0
    ROWS = 1
    WINDOW = 2


@dataclass(frozen=True)
class Window:
    """Rows that are read together, in their final order."""

    shards: npt.NDArray[np.int64]
    """(shards,): indices of the shards to read."""
    picks: npt.NDArray[np.int64]
    """(rows, 2): position in `shards`, and which of that shard's selected rows."""


def local_batch(batch_size: int, rank: int, num_workers: int) -> int:
    """Return how many of a step's images are a worker's: the shares differ by one at most."""
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
) -> list[Window]:
    """Return one worker's rows of one epoch, in order.

    Args:
        counts: selected rows of each shard.
        seed: the run's seed, or a later round's.
        epoch: number of the epoch, from 0.
        rank: the worker, from 0 to `num_workers - 1`.
        num_workers: how many workers share the epoch.
        shuffle_shards: how many shards a window mixes.
        batch_size: images of a step over all workers; where these cannot share them evenly, their
            ranges are as unequal as their shares of a step.
    """
    start, stop = _range(sum(counts), rank, num_workers, batch_size)
    pieces: list[tuple[int, npt.NDArray[np.int64]]] = []
    position = 0
    for shard in np.random.default_rng((seed, epoch, _Stream.SHARDS)).permutation(len(counts)):
        low, high = max(start - position, 0), min(stop - position, counts[shard])
        position += counts[shard]
        if low < high:
            rows = np.random.default_rng((seed, epoch, _Stream.ROWS, int(shard)))
            pieces.append((int(shard), rows.permutation(counts[shard])[low:high]))
    return [
        _mix(pieces[first : first + shuffle_shards], (seed, epoch, _Stream.WINDOW, rank, first))
        for first in range(0, len(pieces), shuffle_shards)
    ]


def _range(num_rows: int, rank: int, num_workers: int, batch_size: int | None) -> tuple[int, int]:
    if batch_size is None or batch_size % num_workers == 0:
        share = num_rows // num_workers
        return rank * share, (rank + 1) * share
    steps = num_rows // batch_size
    before, share = batch_size * rank // num_workers, local_batch(batch_size, rank, num_workers)
    return steps * before, steps * (before + share)


def _mix(pieces: Sequence[tuple[int, npt.NDArray[np.int64]]], seed: tuple[int, ...]) -> Window:
    picks = np.concatenate(
        [
            np.stack([np.full(len(rows), index), rows], axis=1)
            for index, (_, rows) in enumerate(pieces)
        ]
    )
    shuffled = np.random.default_rng(seed).permutation(picks)
    return Window(shards=np.array([shard for shard, _ in pieces]), picks=shuffled)
