"""The order of training rows: index arithmetic on (seed, epoch), independent of the data source.

An epoch visits the shards in random order, and the rows of a shard in random order. The sequence of
rows is cut into ranges called streams. Within a stream, the rows of a few consecutive shards (a
window) are mixed. A stream fills fixed positions of every step with the next rows of the stream.
Rows left over by the division are skipped in the epoch; every epoch skips different rows.

Workers divide the positions of a step. The number of workers is no part of the order, so a step
holds the same rows in the same order for any number of workers. A worker reads only the shards of
the streams at the worker's positions.

Streams with an odd index run backwards. The two streams that share a cut shard then need the shard
at the same time: both at the start of the epoch, or both at the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt


class _Purpose(IntEnum):
    """Purposes of random numbers; the number is part of the seed and keeps the purposes apart."""

    SHARDS = 0
    ROWS = 1
    WINDOW = 2


def worker_positions(
    batch_size: int, num_micro_batches: int, rank: int, num_workers: int
) -> list[range]:
    """Return a worker's positions in a step, one range per micro-batch.

    A step is cut into micro-batches, and a micro-batch into the shares of the workers. Sizes differ
    by at most 1 image.

    Args:
        batch_size: images of a step over all workers.
        num_micro_batches: forward passes of a step.
        rank: index of the worker, from 0 to `num_workers - 1`.
        num_workers: number of workers.
    """
    cuts = [batch_size * index // num_micro_batches for index in range(num_micro_batches + 1)]
    return [
        range(
            start + (stop - start) * rank // num_workers,
            start + (stop - start) * (rank + 1) // num_workers,
        )
        for start, stop in pairwise(cuts)
    ]


def epoch_order(
    counts: Sequence[int],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    streams: int,
    shuffle_shards: int,
    positions: Sequence[range],
) -> npt.NDArray[np.int32]:
    """Return the rows of an epoch at the given positions of every step.

    The rows at a position do not depend on the other positions.

    Args:
        counts: number of selected rows, by shard.
        seed: the seed of the run or of a later round.
        epoch: index of the epoch, from 0.
        batch_size: images of a step over all workers.
        streams: number of streams; at most `batch_size` streams are used.
        shuffle_shards: number of consecutive shards mixed in a stream.
        positions: positions in the step, from 0 to `batch_size - 1`.

    Returns:
        (steps, positions, 2): shard, and index among the selected rows of the shard.
    """
    places = np.array([place for part in positions for place in part], np.int64)
    num_steps = sum(counts) // batch_size
    order = np.empty((num_steps, len(places), 2), np.int32)
    if not num_steps:
        return order
    num_streams = min(streams, batch_size)
    cuts = batch_size * np.arange(num_streams + 1) // num_streams
    sequence = _ShardSequence(counts, seed, epoch)
    stream_of = np.searchsorted(cuts, places, side="right") - 1
    for stream in np.unique(stream_of).tolist():
        start, stop = cuts[stream : stream + 2].tolist()
        rows = sequence.stream_rows(stream, num_steps * start, num_steps * stop, shuffle_shards)
        columns = np.flatnonzero(stream_of == stream)
        order[:, columns] = rows.reshape(num_steps, stop - start, 2)[:, places[columns] - start]
    return order


@dataclass(frozen=True)
class ShardReads:
    """The shards that a worker reads in an epoch, each once, in the order of need."""

    shards: npt.NDArray[np.int64]
    """(reads,), indices of the shards."""
    first_steps: npt.NDArray[np.int64]
    """(reads,), first step with a row of the shard; counted from the first step of the order."""
    last_steps: npt.NDArray[np.int64]
    """(reads,), last step with a row of the shard."""


def list_shard_reads(order: npt.NDArray[np.int32]) -> ShardReads:
    """List the shards of an order by first step, then by position in the first step.

    Args:
        order: (steps, positions, 2), from `epoch_order`; a slice for a resumed epoch.
    """
    flat = order[:, :, 0].ravel()
    places = np.arange(len(flat))
    first, last = np.full((2, flat.max(initial=-1) + 1), -1)
    # Of several values for an index, NumPy keeps the last. Much faster than `np.unique`.
    first[flat[::-1]] = places[::-1]
    last[flat] = places
    shards = np.flatnonzero(first >= 0)
    shards = shards[np.argsort(first[shards])]
    width = order.shape[1]
    return ShardReads(shards, first[shards] // width, last[shards] // width)


class _ShardSequence:
    """The selected rows of all shards in the order of an epoch, before streams mix rows."""

    def __init__(self, counts: Sequence[int], seed: int, epoch: int) -> None:
        self._counts, self._seed = counts, (seed, epoch)
        self._shards = self._generator(_Purpose.SHARDS).permutation(len(counts))
        self._starts = np.cumsum([0, *np.array(counts)[self._shards]])

    def _generator(self, purpose: _Purpose, *indices: int) -> np.random.Generator:
        return np.random.default_rng((*self._seed, purpose, *indices))

    def stream_rows(
        self, stream: int, start: int, stop: int, shuffle_shards: int
    ) -> npt.NDArray[np.int32]:
        """Return the rows from `start` to `stop` of the sequence, mixed: (rows, 2)."""
        pieces = self._cut(start, stop)
        if stream % 2:
            pieces.reverse()
        return np.concatenate(
            [
                self._generator(_Purpose.WINDOW, stream, first).permutation(
                    np.concatenate(pieces[first : first + shuffle_shards])
                )
                for first in range(0, len(pieces), shuffle_shards)
            ]
        )

    def _cut(self, start: int, stop: int) -> list[npt.NDArray[np.int32]]:
        """Return the rows from `start` to `stop`, by shard: (rows, 2) each."""
        pieces = []
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        for shard, begin in zip(
            self._shards[first:last].tolist(), self._starts[first:last].tolist(), strict=True
        ):
            # Seeded by the shard, not by the stream: streams with parts of a shard cut the same
            # permutation, and no row is read twice.
            rows = self._generator(_Purpose.ROWS, shard).permutation(self._counts[shard])
            rows = rows[max(start - begin, 0) : stop - begin]
            if len(rows):
                pieces.append(np.stack([np.full_like(rows, shard), rows], axis=1).astype(np.int32))
        return pieces
