"""The order of an epoch, for any sizes: equal shares, no row twice, reproducible."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mtil.data.dataset.order import ShuffleWindow, epoch_windows, local_batch_size

Row = tuple[int, int]
"""Shard index, and index among the selected rows of the shard."""

COUNTS = st.lists(st.integers(0, 12), min_size=1, max_size=9)
WORKERS = st.integers(1, 5)
SHUFFLE = st.integers(1, 4)
SEED = st.integers(0, 2**32)
EPOCH = st.integers(0, 1000)


def _windows(
    counts: list[int],
    rank: int = 0,
    num_workers: int = 1,
    *,
    seed: int = 0,
    epoch: int = 0,
    shuffle_shards: int = 2,
    batch_size: int | None = None,
) -> list[ShuffleWindow]:
    return epoch_windows(
        counts,
        seed=seed,
        epoch=epoch,
        rank=rank,
        num_workers=num_workers,
        shuffle_shards=shuffle_shards,
        batch_size=batch_size,
    )


def _rows(windows: list[ShuffleWindow]) -> list[Row]:
    return [
        (int(window.shards[position]), int(row))
        for window in windows
        for position, row in window.picks
    ]


def _epoch(counts: list[int], num_workers: int, **options: int) -> list[list[Row]]:
    return [_rows(_windows(counts, rank, num_workers, **options)) for rank in range(num_workers)]


def _all(counts: list[int]) -> set[Row]:
    return {(shard, row) for shard, count in enumerate(counts) for row in range(count)}


@given(COUNTS, WORKERS, SEED, EPOCH, SHUFFLE)
def test_workers_get_equal_shares_and_no_row_is_seen_twice(
    counts: list[int], num_workers: int, seed: int, epoch: int, shuffle_shards: int
) -> None:
    shares = _epoch(counts, num_workers, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards)
    assert {len(share) for share in shares} == {sum(counts) // num_workers}
    seen = Counter(row for share in shares for row in share)
    assert set(seen.values()) <= {1}
    assert set(seen) <= _all(counts)
    assert len(_all(counts)) - len(seen) == sum(counts) % num_workers


@given(COUNTS, WORKERS, SEED, EPOCH, SHUFFLE)
def test_a_window_reads_few_shards_and_only_those_that_it_picks_from(
    counts: list[int], num_workers: int, seed: int, epoch: int, shuffle_shards: int
) -> None:
    for rank in range(num_workers):
        windows = _windows(
            counts, rank, num_workers, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards
        )
        for window in windows:
            assert 1 <= len(window.shards) <= shuffle_shards
            assert set(window.picks[:, 0].tolist()) == set(range(len(window.shards)))
        read = [int(shard) for window in windows for shard in window.shards]
        assert len(read) == len(set(read))  # no shard is read twice in an epoch
        assert all(counts[shard] for shard in read)
        full = [len(window.shards) == shuffle_shards for window in windows[:-1]]
        assert all(full)


@given(COUNTS, WORKERS, SEED, EPOCH, SHUFFLE)
def test_workers_share_at_most_the_shard_at_their_border(
    counts: list[int], num_workers: int, seed: int, epoch: int, shuffle_shards: int
) -> None:
    readers = Counter[int]()
    for share in _epoch(counts, num_workers, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards):
        readers.update({shard for shard, _ in share})
    assert sum(number - 1 for number in readers.values()) <= num_workers - 1


@given(COUNTS, WORKERS, SEED, EPOCH, SHUFFLE)
def test_seed_and_epoch_decide_everything(
    counts: list[int], num_workers: int, seed: int, epoch: int, shuffle_shards: int
) -> None:
    options = {"seed": seed, "epoch": epoch, "shuffle_shards": shuffle_shards}
    once = _epoch(counts, num_workers, **options)
    np.random.default_rng().random()  # other random numbers do not matter
    assert _epoch(counts, num_workers, **options) == once


@given(st.lists(st.integers(0, 12), min_size=3, max_size=9), SEED, EPOCH, SHUFFLE)
def test_another_epoch_or_seed_is_another_order(
    counts: list[int], seed: int, epoch: int, shuffle_shards: int
) -> None:
    assume(sum(counts) >= 30)  # one in 30! orders is the same by chance
    once = _epoch(counts, 1, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards)
    later = _epoch(counts, 1, seed=seed, epoch=epoch + 1, shuffle_shards=shuffle_shards)
    other = _epoch(counts, 1, seed=seed + 1, epoch=epoch, shuffle_shards=shuffle_shards)
    assert once != later
    assert once != other
    assert set(once[0]) == set(later[0]) == set(other[0]) == _all(counts)


def test_every_row_is_left_out_of_some_epoch_and_seen_in_most() -> None:
    counts, num_workers, num_epochs = [3, 5, 4, 2], 5, 300  # 14 rows: 4 are left out each time
    missed = Counter[Row]()
    for epoch in range(num_epochs):
        seen = {row for share in _epoch(counts, num_workers, epoch=epoch) for row in share}
        missed.update(_all(counts) - seen)
    assert set(missed) == _all(counts)
    expected = num_epochs * 4 / 14
    assert all(0.5 * expected < number < 1.6 * expected for number in missed.values())


def test_a_row_may_come_at_any_place_of_a_window() -> None:
    places = Counter[int]()
    for seed in range(400):
        rows = _rows(_windows([4, 4, 4, 4], seed=seed, shuffle_shards=4))
        places[rows.index((2, 1))] += 1
    assert set(places) == set(range(16))
    assert max(places.values()) < 55  # 25 on average; five standard deviations


def test_rows_of_a_window_are_mixed_and_windows_are_not() -> None:
    windows = _windows([100] * 6, shuffle_shards=3)
    assert len(windows) == 2
    first, second = ({int(shard) for shard in window.shards} for window in windows)
    assert not first & second
    halves = [Counter(window.picks[:150, 0].tolist()) for window in windows]
    assert all(30 < number < 70 for half in halves for number in half.values())


def test_shards_without_selected_rows_are_not_read() -> None:
    windows = _windows([0, 3, 0, 0, 2], shuffle_shards=4)
    assert [{int(shard) for shard in window.shards} for window in windows] == [{1, 4}]
    assert sorted(_rows(windows)) == [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1)]


@pytest.mark.parametrize("counts", [[], [0], [0, 0, 0]])
def test_without_rows_there_is_no_window(counts: list[int]) -> None:
    assert _windows(counts) == []


@given(COUNTS, WORKERS, st.integers(1, 12))
def test_any_number_of_workers_makes_the_same_steps(
    counts: list[int], num_workers: int, batch_size: int
) -> None:
    local = [local_batch_size(batch_size, rank, num_workers) for rank in range(num_workers)]
    assert sum(local) == batch_size
    assert max(local) - min(local) <= 1
    shares = _epoch(counts, num_workers, batch_size=batch_size)
    steps = [len(share) // size for share, size in zip(shares, local, strict=True) if size]
    assert set(steps) == {sum(counts) // batch_size}
    seen = [row for share in shares for row in share]
    assert len(seen) == len(set(seen))
    assert set(seen) <= _all(counts)


def test_a_batch_that_cannot_be_shared_evenly() -> None:
    assert [local_batch_size(16, rank, 3) for rank in range(3)] == [5, 5, 6]
    assert [len(share) for share in _epoch([40, 10], 3, batch_size=16)] == [15, 15, 18]
    assert _epoch([40, 10], 2, batch_size=16) == _epoch(
        [40, 10], 2
    )  # where it can, nothing changes


def test_fewer_rows_than_workers_leave_everybody_without() -> None:
    assert _epoch([1, 1], 3) == [[], [], []]


@given(COUNTS, WORKERS, SEED, EPOCH, SHUFFLE)
def test_windows_are_cut_from_one_sequence(
    counts: list[int], num_workers: int, seed: int, epoch: int, shuffle_shards: int
) -> None:
    """Reference implementation: list the whole epoch, cut it, and group it by shards."""
    sequence: list[Row] = []
    for shard in np.random.default_rng((seed, epoch, 0)).permutation(len(counts)).tolist():
        rows = np.random.default_rng((seed, epoch, 1, shard)).permutation(counts[shard])
        sequence += [(shard, row) for row in rows.tolist()]
    share = len(sequence) // num_workers
    for rank in range(num_workers):
        mine = sequence[rank * share : (rank + 1) * share]
        order = list(dict.fromkeys(shard for shard, _ in mine))
        expected = [
            {row for row in mine if row[0] in order[first : first + shuffle_shards]}
            for first in range(0, len(order), shuffle_shards)
        ]
        windows = _windows(
            counts, rank, num_workers, seed=seed, epoch=epoch, shuffle_shards=shuffle_shards
        )
        assert [set(_rows([window])) for window in windows] == expected


def test_the_order_is_the_same_in_every_version() -> None:
    """A run resumed by a later version of mtil continues the same epoch."""
    shares = _epoch([3, 0, 2, 4], 2, seed=7, epoch=3, shuffle_shards=2)
    assert shares == [[(0, 2), (3, 2), (0, 1), (0, 0)], [(3, 3), (2, 0), (3, 0), (3, 1)]]
