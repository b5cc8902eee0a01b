"""The order of an epoch of any size: equal for any number of workers, no row twice."""

from collections import Counter
from itertools import chain, groupby

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtil.data.dataset.order import epoch_order, list_shard_reads, worker_positions

Row = tuple[int, int]
"""Shard index, and index among the selected rows of the shard."""

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=9)
WORKERS = st.integers(1, 5)
BATCH = st.integers(1, 12)
STREAMS = st.integers(1, 15)
SHUFFLE = st.integers(1, 4)
SEED = st.integers(0, 2**32)
EPOCH = st.integers(0, 1000)


def _order(
    counts: list[int],
    batch_size: int,
    streams: int = 4,
    *,
    shuffle_shards: int = 1,
    seed: int = 0,
    epoch: int = 0,
    positions: list[range] | None = None,
) -> np.ndarray:
    return epoch_order(
        counts,
        seed=seed,
        epoch=epoch,
        batch_size=batch_size,
        streams=streams,
        shuffle_shards=shuffle_shards,
        positions=[range(batch_size)] if positions is None else positions,
    )


def _rows(order: np.ndarray) -> list[Row]:
    return [(int(shard), int(pick)) for shard, pick in order.reshape(-1, 2)]


def _all(counts: list[int]) -> set[Row]:
    return {(shard, row) for shard, count in enumerate(counts) for row in range(count)}


def _reference(
    counts: list[int], batch_size: int, streams: int, shuffle_shards: int, seed: int, epoch: int
) -> list[list[Row]]:
    """List the epoch, cut the list into streams, mix every stream, fill steps row by row."""
    sequence: list[Row] = []
    for shard in np.random.default_rng((seed, epoch, 0)).permutation(len(counts)).tolist():
        rows = np.random.default_rng((seed, epoch, 1, shard)).permutation(counts[shard])
        sequence += [(shard, row) for row in rows.tolist()]
    num_steps, num_streams = len(sequence) // batch_size, min(streams, batch_size)
    steps: list[list[Row]] = [[] for _ in range(num_steps)]
    for stream in range(num_streams):
        low, high = batch_size * stream // num_streams, batch_size * (stream + 1) // num_streams
        mine = sequence[num_steps * low : num_steps * high]
        pieces = [list(rows) for _, rows in groupby(mine, key=lambda row: row[0])]
        if stream % 2 == 1:
            pieces = pieces[::-1]
        mixed: list[Row] = []
        for first in range(0, len(pieces), shuffle_shards):
            window = [*chain.from_iterable(pieces[first : first + shuffle_shards])]
            random = np.random.default_rng((seed, epoch, 2, stream, first))
            mixed += [window[index] for index in random.permutation(len(window))]
        for step in steps:
            for _ in range(high - low):
                step.append(mixed.pop(0))
    return steps


@given(COUNTS, BATCH, STREAMS, SHUFFLE, SEED, EPOCH)
def test_the_order_equals_a_reference_that_lists_every_row(
    counts: list[int], batch_size: int, streams: int, shuffle_shards: int, seed: int, epoch: int
) -> None:
    order = _order(
        counts, batch_size, streams, shuffle_shards=shuffle_shards, seed=seed, epoch=epoch
    )
    expected = _reference(counts, batch_size, streams, shuffle_shards, seed, epoch)
    assert order.shape == (sum(counts) // batch_size, batch_size, 2)
    assert [_rows(step) for step in order] == expected


@given(COUNTS, BATCH, STREAMS, SHUFFLE, SEED, EPOCH, WORKERS, st.integers(1, 4))
def test_workers_together_hold_the_step_of_one_worker_in_the_same_order(
    counts: list[int],
    batch_size: int,
    streams: int,
    shuffle_shards: int,
    seed: int,
    epoch: int,
    num_workers: int,
    num_micro_batches: int,
) -> None:
    def order(positions: list[range]) -> np.ndarray:
        return _order(
            counts,
            batch_size,
            streams,
            shuffle_shards=shuffle_shards,
            seed=seed,
            epoch=epoch,
            positions=positions,
        )

    alone = order([range(batch_size)])
    together = np.full_like(alone, -1)
    for rank in range(num_workers):
        positions = worker_positions(batch_size, num_micro_batches, rank, num_workers)
        together[:, [place for part in positions for place in part]] = order(positions)
    assert np.array_equal(together, alone)
    seen = _rows(alone)
    assert len(seen) == len(set(seen)) == sum(counts) // batch_size * batch_size
    assert set(seen) <= _all(counts)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 7))
def test_positions_are_dealt_once_and_evenly(
    batch_size: int, num_micro_batches: int, num_workers: int
) -> None:
    ranks = [
        worker_positions(batch_size, num_micro_batches, rank, num_workers)
        for rank in range(num_workers)
    ]
    assert {len(parts) for parts in ranks} == {num_micro_batches}
    # Sorted by micro-batch, then by rank, the positions have no gap.
    by_micro_batch = list(zip(*ranks, strict=True))
    assert [place for parts in by_micro_batch for part in parts for place in part] == list(
        range(batch_size)
    )
    sizes = [sum(len(part) for part in parts) for parts in by_micro_batch]
    assert max(sizes) - min(sizes) <= 1
    for parts in by_micro_batch:
        assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 1


def test_positions_of_a_batch_that_cannot_be_shared_evenly() -> None:
    assert [worker_positions(16, 1, rank, 3) for rank in range(3)] == [
        [range(5)],
        [range(5, 10)],
        [range(10, 16)],
    ]
    assert worker_positions(10, 3, 0, 2) == [range(1), range(3, 4), range(6, 8)]
    assert worker_positions(10, 3, 1, 2) == [range(1, 3), range(4, 6), range(8, 10)]


@given(COUNTS, BATCH, STREAMS, SHUFFLE, SEED, EPOCH)
def test_seed_and_epoch_decide_everything(
    counts: list[int], batch_size: int, streams: int, shuffle_shards: int, seed: int, epoch: int
) -> None:
    def order() -> np.ndarray:
        return _order(
            counts, batch_size, streams, shuffle_shards=shuffle_shards, seed=seed, epoch=epoch
        )

    once = order()
    np.random.default_rng().random()  # unrelated random numbers have no effect
    assert np.array_equal(order(), once)


@given(st.lists(st.integers(0, 12), min_size=3, max_size=9), SEED, EPOCH, SHUFFLE)
def test_another_epoch_or_seed_is_another_order(
    counts: list[int], seed: int, epoch: int, shuffle_shards: int
) -> None:
    assume(sum(counts) >= 30)  # two random orders are equal with probability 1 / 30!
    once, later, other = (
        _rows(_order(counts, 1, shuffle_shards=shuffle_shards, seed=seed + s, epoch=epoch + e))
        for s, e in ((0, 0), (0, 1), (1, 0))
    )
    assert once != later
    assert once != other
    assert set(once) == set(later) == set(other) == _all(counts)


def test_every_row_is_left_out_of_some_epoch_and_seen_in_most() -> None:
    counts, num_epochs = [3, 5, 4, 2], 300  # 14 rows; an epoch omits 4 rows
    missed = Counter[Row]()
    for epoch in range(num_epochs):
        missed.update(_all(counts) - set(_rows(_order(counts, 5, epoch=epoch))))
    assert set(missed) == _all(counts)
    expected = num_epochs * 4 / 14
    assert all(0.5 * expected < number < 1.6 * expected for number in missed.values())


@pytest.mark.parametrize("streams", [1, 4])
def test_a_row_may_come_in_any_step(streams: int) -> None:
    places = Counter[int]()
    for seed in range(400):
        rows = _rows(_order([4, 4, 4, 4], 4, streams, seed=seed))
        places[rows.index((2, 1))] += 1
    assert set(places) == set(range(16))
    assert max(places.values()) < 55  # 25 on average; five standard deviations


def test_a_batch_holds_rows_of_every_stream() -> None:
    """With a shard per stream and eight streams, every step has a row of every shard."""
    for step in _order([25] * 8, 8, 8):
        assert sorted(step[:, 0].tolist()) == list(range(8))


def test_rows_of_a_window_are_mixed_and_windows_are_not() -> None:
    rows = _order([100] * 6, 1, 1, shuffle_shards=3)[:, 0, 0]
    first, second = rows[:300], rows[300:]
    assert not set(first.tolist()) & set(second.tolist())
    halves = [Counter(window[:150].tolist()) for window in (first, second)]
    assert all(30 < number < 70 for half in halves for number in half.values())


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0], [1, 2]])
def test_fewer_rows_than_a_batch_make_no_step(counts: list[int]) -> None:
    order = _order(counts, 4)
    assert order.shape == (0, 4, 2)
    assert len(list_shard_reads(order).shards) == 0


# Reads of a worker


@given(
    COUNTS, BATCH, STREAMS, SHUFFLE, EPOCH, WORKERS, st.integers(1, 3), st.integers(0, 8), st.data()
)
def test_reads_name_each_shard_once_with_the_steps_that_need_the_shard(
    counts: list[int],
    batch_size: int,
    streams: int,
    shuffle_shards: int,
    epoch: int,
    num_workers: int,
    num_micro_batches: int,
    first: int,
    data: st.DataObject,
) -> None:
    rank = data.draw(st.integers(0, num_workers - 1))
    order = _order(
        counts,
        batch_size,
        streams,
        shuffle_shards=shuffle_shards,
        epoch=epoch,
        positions=worker_positions(batch_size, num_micro_batches, rank, num_workers),
    )[first:]
    steps: dict[int, list[int]] = {}  # in the order of first need
    for number, step in enumerate(order):
        for shard in step[:, 0].tolist():
            steps.setdefault(shard, []).append(number)
    reads = list_shard_reads(order)
    assert reads.shards.tolist() == list(steps)
    assert reads.first_steps.tolist() == [min(numbers) for numbers in steps.values()]
    assert reads.last_steps.tolist() == [max(numbers) for numbers in steps.values()]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=30),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 3),
    SEED,
)
def test_workers_with_whole_streams_read_a_shard_twice_at_their_borders_only(
    counts: list[int], num_workers: int, images_per_stream: int, seed: int
) -> None:
    """All workers together need at most one read per shard with rows, plus one per border."""
    batch_size = 8 * images_per_stream
    num_reads = sum(
        len(
            list_shard_reads(
                _order(
                    counts,
                    batch_size,
                    8,
                    seed=seed,
                    positions=worker_positions(batch_size, 1, rank, num_workers),
                )
            ).shards
        )
        for rank in range(num_workers)
    )
    assert num_reads <= np.count_nonzero(counts) + num_workers - 1


@given(st.integers(20, 60), st.integers(40, 90), SEED, st.integers(1, 3))
def test_a_worker_holds_few_shards_at_a_time(
    num_shards: int, rows: int, seed: int, shuffle_shards: int
) -> None:
    """A worker holds a window per stream. Two windows of a stream meet in at most one step."""
    streams = 8
    reads = list_shard_reads(
        _order([rows] * num_shards, 16, streams, seed=seed, shuffle_shards=shuffle_shards)
    )
    steps = np.arange(num_shards * rows // 16)[:, None]
    held = ((reads.first_steps <= steps) & (steps <= reads.last_steps)).sum(axis=1)
    assert held.max() <= 2 * streams * shuffle_shards
    assert held.mean() <= 1.2 * streams * shuffle_shards


def test_streams_that_share_a_cut_shard_need_the_shard_at_the_same_end() -> None:
    """Two streams over three shards of equal size: the second shard is cut in the middle."""
    for seed in range(20):
        order = _order([10, 10, 10], 2, 2, seed=seed)
        cut = set(order[:, 0, 0].tolist()) & set(order[:, 1, 0].tolist())
        assert len(cut) == 1
        assert [set(column.tolist()) for column in order[10:, :, 0].T] == [cut, cut]
        assert list_shard_reads(order).first_steps.tolist() == [0, 0, 10]


def test_the_order_is_the_same_in_every_version() -> None:
    """A later version of mtil resumes a run without a change of the order."""
    order = _order([3, 0, 2, 4], 3, 2, seed=7, epoch=3, shuffle_shards=2)
    assert [_rows(step) for step in order] == [
        [(0, 1), (2, 1), (3, 1)],
        [(0, 2), (3, 0), (2, 0)],
        [(0, 0), (3, 2), (3, 3)],
    ]
