"""Rows to batches: resident and streaming workers get the same bytes in the same order."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtil.data.dataset.batches import (
    ROLE_COLUMNS,
    TRAINING_COLUMNS,
    Batch,
    EpochPlan,
    TableRows,
    cut_batches,
)
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role, RowSelection, count_rows, select_rows
from mtil.data.dataset.shards import read_shard
from mtil.errors import DataError
from mtil.storage import LocalStore

COLUMNS = (*TRAINING_COLUMNS, *ROLE_COLUMNS)
MakePlan = Callable[..., EpochPlan]


@pytest.fixture(scope="module")
def tables(data_uri: str, manifest: Manifest) -> list[pa.Table]:
    store = LocalStore(data_uri)
    return [read_shard(store, shard, COLUMNS) for shard in manifest.shards]


@pytest.fixture(scope="module")
def stored(tables: list[pa.Table]) -> dict[str, dict[str, Any]]:
    """All rows as plain values, by id."""
    return {row["sample_id"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture
def make_plan(manifest: Manifest) -> MakePlan:
    def make(
        rank: int = 0,
        num_workers: int = 1,
        shuffle_shards: int = 2,
        *,
        role: Role = "train",
        normals: bool = True,
        seed: int = 5,
    ) -> EpochPlan:
        selection = select_rows(manifest, 1, role, normals=normals)
        return EpochPlan(manifest, selection, seed, rank, num_workers, shuffle_shards)

    return make


def _held(tables: list[pa.Table], plan: EpochPlan, epoch: int, batch_size: int) -> Iterator[Batch]:
    """An epoch of a resident data set."""
    rows = TableRows(tables, plan.selection)
    parts = [
        (
            rows,
            rows.map_to_row_numbers(
                np.asarray(window.shards)[window.picks[:, 0]], window.picks[:, 1]
            ),
        )
        for window in plan.windows(epoch)
    ]
    return cut_batches(parts, batch_size, whole=True)


def _streamed(data_uri: str, plan: EpochPlan, epoch: int, batch_size: int) -> Iterator[Batch]:
    """An epoch of shards read window by window."""
    store = LocalStore(data_uri)

    def parts() -> Iterator[tuple[TableRows, np.ndarray]]:
        for window in plan.windows(epoch):
            shards = [
                read_shard(store, plan.manifest.shards[shard], COLUMNS) for shard in window.shards
            ]
            rows = TableRows(shards, plan.selection)
            yield rows, rows.map_to_row_numbers(window.picks[:, 0], window.picks[:, 1])

    return cut_batches(parts(), batch_size, whole=True)


def _same(one: Batch, other: Batch) -> bool:
    return one.sample_id == other.sample_id and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("image", "mask", "label")
    )


def _ids(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_id]


@pytest.mark.parametrize("shuffle_shards", [1, 2, 99])
@pytest.mark.parametrize(("num_workers", "batch_size"), [(1, 4), (2, 5), (3, 1)])
def test_held_and_streamed_batches_are_the_same_to_the_bit(
    tables: list[pa.Table],
    data_uri: str,
    manifest: Manifest,
    make_plan: MakePlan,
    num_workers: int,
    batch_size: int,
    shuffle_shards: int,
) -> None:
    for epoch in range(2):
        seen = []
        for rank in range(num_workers):
            plan = make_plan(rank, num_workers, shuffle_shards)
            held = list(_held(tables, plan, epoch, batch_size))
            streamed = list(_streamed(data_uri, plan, epoch, batch_size))
            rows = count_rows(manifest, plan.selection) // num_workers
            assert len(held) == len(streamed) == rows // batch_size > 0
            assert all(_same(one, other) for one, other in zip(held, streamed, strict=True))
            assert all(len(batch) == batch_size for batch in held)
            seen += _ids(held)
        assert len(seen) == len(set(seen))


@pytest.mark.parametrize("role", ["train", "validation", "test"])
@pytest.mark.parametrize("normals", [True, False])
def test_batches_hold_what_is_stored_under_their_ids(
    tables: list[pa.Table],
    stored: dict[str, dict[str, Any]],
    manifest: Manifest,
    make_plan: MakePlan,
    role: Role,
    normals: bool,
) -> None:
    plan = make_plan(role=role, normals=normals)
    batches = list(_held(tables, plan, 0, 1))
    assert len(batches) == count_rows(manifest, plan.selection)
    for batch in batches:
        (name,) = batch.sample_id
        row = stored[name]
        assert batch.image.shape == (1, 64, 64)
        assert batch.image.tobytes() == row["image"]
        assert batch.mask.tobytes() == row["mask"]
        assert batch.label.tolist() == [row["label"]]
        assert (row["fold"] == 1) == (role == "test")
        assert role == "test" or normals or row["label"] < 2


def test_epochs_and_seeds_have_orders_of_their_own(
    tables: list[pa.Table], make_plan: MakePlan
) -> None:
    orders = [
        _ids(list(_held(tables, make_plan(seed=seed), epoch, 1)))
        for seed, epoch in ((5, 0), (5, 1), (6, 0))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == _ids(list(_held(tables, make_plan(seed=5), 0, 1)))


def test_everything_is_every_selected_row_in_the_order_of_the_shards(
    tables: list[pa.Table], make_plan: MakePlan
) -> None:
    selection = make_plan(role="validation").selection
    rows = TableRows(tables, selection)
    expected = [
        table.column("sample_id")[int(row)].as_py()
        for table in tables
        for row in selection.rows(table)
    ]
    assert rows.gather(rows.all_row_numbers()).sample_id == expected
    whole = TableRows(tables)
    names = [name for table in tables for name in table.column("sample_id").to_pylist()]
    assert whole.gather(whole.all_row_numbers()).sample_id == names


def test_rows_can_be_gathered_in_any_order_and_more_than_once(
    tables: list[pa.Table], stored: dict[str, dict[str, Any]]
) -> None:
    rows = TableRows(tables)
    numbers = np.random.default_rng(0).integers(0, 60, 90)
    names = rows.gather(np.arange(60)).sample_id
    batch = rows.gather(numbers)
    assert batch.sample_id == [names[number] for number in numbers]
    assert batch.label.tolist() == [stored[name]["label"] for name in batch.sample_id]
    assert [image.tobytes() for image in batch.image] == [
        stored[name]["image"] for name in batch.sample_id
    ]


def test_a_batch_is_the_reader_s_own(tables: list[pa.Table]) -> None:
    """Changing a batch does not change the source rows."""
    rows, numbers = TableRows(tables), np.arange(7)
    batch, kept = rows.gather(numbers), rows.gather(numbers)
    for array in (batch.image, batch.mask, batch.label):
        assert array.flags.writeable
        assert array.flags.c_contiguous
        array[...] = 1
    assert _same(rows.gather(numbers), kept)
    assert not _same(batch, kept)
    assert (kept.image.dtype, kept.mask.dtype, kept.label.dtype) == (np.uint8, np.uint8, np.int64)
    assert kept.mask.shape == (7, 64 * 64 // 8)
    assert len(kept) == 7


def test_no_numbers_give_an_empty_batch(tables: list[pa.Table]) -> None:
    batch = TableRows(tables).gather(np.empty(0, np.int64))
    assert len(batch) == 0
    assert (batch.image.shape, batch.mask.shape) == ((0, 64, 64), (0, 512))


def test_tables_may_come_in_pieces_and_may_be_empty(
    tables: list[pa.Table], make_plan: MakePlan
) -> None:
    """Tables as Ray passes them: several blocks, slices, and blocks without rows."""
    selection = make_plan().selection
    pieces = [
        pa.concat_tables([table.slice(0, 2), table.slice(2, 0), table.slice(2, 3), table.slice(5)])
        for table in tables
    ]
    assert pieces[0].column("image").num_chunks > 1
    empty = tables[0].slice(0, 0)
    plain, pieced = TableRows(tables, selection), TableRows([empty, *pieces, empty], selection)
    assert _same(plain.gather(plain.all_row_numbers()), pieced.gather(pieced.all_row_numbers()))
    shards, picks = np.array([0, 1, 1]), np.array([1, 0, 2])
    assert _same(
        plain.gather(plain.map_to_row_numbers(shards, picks)),
        pieced.gather(pieced.map_to_row_numbers(shards + 1, picks)),
    )


def test_workers_share_the_shards_that_hold_selected_rows(make_plan: MakePlan) -> None:
    plan = make_plan(role="test")
    first, *others = plan.manifest.shards
    tested = [cell for cell in first.cells if cell.fold == 1]
    empty = replace(first, cells=tuple(cell for cell in first.cells if cell.fold != 1))
    assert tested
    plan = replace(plan, manifest=replace(plan.manifest, shards=(empty, *others)))
    held = [i for i, s in enumerate(plan.manifest.shards) if any(c.fold == 1 for c in s.cells)]
    shared = [replace(plan, rank=rank, num_workers=2).shards() for rank in (0, 1)]
    assert sorted(shared[0] + shared[1]) == held == list(range(1, len(plan.manifest.shards)))


PARTS = st.lists(st.lists(st.integers(0, 59), max_size=12), max_size=6)


@given(PARTS, st.integers(1, 15), st.booleans())
def test_any_stream_is_cut_into_full_batches(
    small: TableRows, numbers: list[list[int]], batch_size: int, whole: bool
) -> None:
    parts = [(small, np.array(part, np.int64)) for part in numbers]
    batches = list(cut_batches(parts, batch_size, whole=whole))
    flat = [number for part in numbers for number in part]
    expected = small.gather(np.array(flat, np.int64)).sample_id
    if whole:
        expected = expected[: len(flat) // batch_size * batch_size]
        assert {len(batch) for batch in batches} <= {batch_size}
    assert _ids(batches) == expected
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    for batch in batches:
        assert len(batch.image) == len(batch.mask) == len(batch.label) == len(batch)
        assert [int(image[0, 0]) for image in batch.image] == [int(n) for n in batch.sample_id]
        assert batch.label.tolist() == [int(name) % 3 for name in batch.sample_id]


@pytest.fixture(scope="module")
def small() -> TableRows:
    """Sixty rows whose id, first pixel and label are their number."""
    table = pa.table(
        {
            "sample_id": [str(number) for number in range(60)],
            "image": pa.array([bytes([number] * 64) for number in range(60)], pa.binary(64)),
            "mask": pa.array([bytes([number] * 8) for number in range(60)], pa.binary(8)),
            "label": pa.array([number % 3 for number in range(60)], pa.int8()),
        }
    )
    return TableRows([table.slice(0, 7), table.slice(7)])


def test_a_batch_is_cut_as_soon_as_its_rows_are_there(small: TableRows) -> None:
    """Later windows are not read ahead: few windows are in memory at once."""
    read_so_far = 0

    def parts() -> Iterator[tuple[TableRows, np.ndarray]]:
        nonlocal read_so_far
        for start in range(0, 50, 5):
            read_so_far += 1
            yield small, np.arange(start, start + 5)

    batches = cut_batches(parts(), 8, whole=True)
    for expected in (2, 4, 5, 7):  # 8, 16, 24 and 32 rows in parts of 5
        next(batches)
        assert read_so_far == expected


def test_shards_without_selected_rows_give_none(tables: list[pa.Table], manifest: Manifest) -> None:
    """Rows are sorted by id: the last shard holds normal images only."""
    tumours = RowSelection(fold=0, role="train", num_parts=manifest.num_parts, normals=False)
    counts = [tumours.count(shard) for shard in manifest.shards]
    assert counts[-1] == 0
    batches = list(_held(tables, EpochPlan(manifest, tumours, 0, 0, 1, 3), 0, 1))
    assert len(batches) == sum(counts)
    assert {int(batch.label[0]) for batch in batches} == {0, 1}


# Shards that are not what the manifest says


def _spoiled(data: bytes, how: str) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return {
        "cut": data[:-1],
        "empty": b"",
        "longer": data + b"0",
        "altered": bytes(changed),
    }[how]


@pytest.mark.parametrize("how", ["cut", "empty", "longer", "altered"])
def test_a_shard_that_is_not_the_one_that_was_written_is_refused(
    data_uri: str, manifest: Manifest, make_plan: MakePlan, tmp_path: Any, how: str
) -> None:
    source, copy = LocalStore(data_uri), LocalStore(str(tmp_path))
    for name in source.names():
        copy.write(name, source.read(name))
    victim = manifest.shards[3].path
    copy.write(victim, _spoiled(copy.read(victim), how))
    with pytest.raises(DataError, match=f"Shard {victim} of .* bytes differ; prepare the data"):
        list(_streamed(copy.uri, make_plan(), 0, 1))
    copy.write(victim, source.read(victim))
    assert list(_streamed(copy.uri, make_plan(), 0, 1))


def test_a_table_keeps_its_values_when_other_shards_are_read(
    data_uri: str, manifest: Manifest
) -> None:
    store = LocalStore(data_uri)
    first = read_shard(store, manifest.shards[0])
    rows = TableRows([first])
    values, batch = first.to_pylist(), rows.gather(rows.all_row_numbers())
    for shard in manifest.shards[1:]:
        read_shard(store, shard)
    assert first.to_pylist() == values
    assert _same(rows.gather(rows.all_row_numbers()), batch)


def test_shards_can_be_read_side_by_side(data_uri: str, manifest: Manifest) -> None:
    store = LocalStore(data_uri)
    expected = [read_shard(store, shard, COLUMNS) for shard in manifest.shards]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda shard: read_shard(store, shard, COLUMNS), manifest.shards * 5))
    assert len(found) == 5 * len(expected)
    for index, table in enumerate(found):
        assert table.equals(expected[index % len(expected)])
