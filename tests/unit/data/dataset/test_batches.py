"""Rows to batches: resident and streaming workers get equal bytes in equal order."""

import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtil.data.dataset import epochs
from mtil.data.dataset.batches import (
    ROLE_COLUMNS,
    TRAINING_COLUMNS,
    Batch,
    EpochPlan,
    RowPlace,
    TableRows,
)
from mtil.data.dataset.epochs import (
    iterate_epoch_shards,
    iterate_resident_epoch,
    iterate_streamed_epochs,
)
from mtil.data.dataset.manifest import Cell, Manifest
from mtil.data.dataset.order import list_shard_reads
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
    """Return all rows as plain values, by sample id."""
    return {row["sample_id"]: row for table in tables for row in table.to_pylist()}


@pytest.fixture
def make_plan(manifest: Manifest) -> MakePlan:
    def make(*, role: Role = "train", normals: bool = True, **values: int) -> EpochPlan:
        defaults = {
            "seed": 5,
            "rank": 0,
            "num_workers": 1,
            "batch_size": 1,
            "streams": 1,
            "shuffle_shards": 2,
        }
        return EpochPlan(
            manifest=manifest,
            selection=select_rows(manifest, 1, role, normals=normals),
            **(defaults | values),
        )

    return make


def _held(tables: list[pa.Table], plan: EpochPlan, epoch: int, first: int = 0) -> list[Batch]:
    """Return the batches of an epoch of a resident data set."""
    return list(iterate_resident_epoch(TableRows(tables, plan.selection), plan, epoch, first))


def _streamed(
    data_uri: str, plan: EpochPlan, epoch_range: range, first: int = 0
) -> Iterator[tuple[list[Batch], list[int]]]:
    """Yield the batches of each epoch, and the shards read until the end of the epoch."""
    store, read = LocalStore(data_uri), list[int]()

    def arriving() -> Iterator[pa.Table]:
        for shard in chain.from_iterable(iterate_epoch_shards(plan, epoch_range, first)):
            read.append(shard)
            table = read_shard(store, plan.manifest.shards[shard], COLUMNS)
            yield table.slice(0, 4)  # Ray may split a shard
            yield table.slice(4)

    stream = iterate_streamed_epochs(arriving(), plan, epoch_range, first)
    for batches in stream:
        yield list(batches), [*read]


def _same(one: Batch, other: Batch) -> bool:
    return one.sample_id == other.sample_id and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("image", "mask", "label")
    )


def _ids(batches: list[Batch]) -> list[str]:
    return [name for batch in batches for name in batch.sample_id]


@pytest.mark.parametrize("streams", [1, 3, 64])  # fewer and more streams than shards
@pytest.mark.parametrize("shuffle_shards", [1, 2, 99])
@pytest.mark.parametrize(
    ("num_workers", "batch_size", "num_micro_batches"), [(1, 4, 1), (2, 5, 2), (3, 3, 1), (4, 9, 2)]
)
def test_held_and_streamed_batches_are_the_same_to_the_bit(
    tables: list[pa.Table],
    data_uri: str,
    manifest: Manifest,
    make_plan: MakePlan,
    num_workers: int,
    batch_size: int,
    num_micro_batches: int,
    shuffle_shards: int,
    streams: int,
) -> None:
    assert 3 < len(manifest.shards) < 64
    epoch_range, first = range(2), 2
    steps: dict[int, list[set[str]]] = {}
    for rank in range(num_workers):
        plan = make_plan(
            rank=rank,
            num_workers=num_workers,
            batch_size=batch_size,
            num_micro_batches=num_micro_batches,
            shuffle_shards=shuffle_shards,
            streams=streams,
        )
        for epoch, (streamed, _) in enumerate(_streamed(data_uri, plan, epoch_range, first)):
            held = _held(tables, plan, epoch, 0 if epoch else first)
            assert all(_same(one, other) for one, other in zip(held, streamed, strict=True))
            assert {len(batch) for batch in held} == {plan.local_batch_size}
            for step, batch in enumerate(held):
                steps.setdefault(epoch, [set() for _ in held])[step] |= set(batch.sample_id)
    num_steps = count_rows(manifest, make_plan().selection) // batch_size
    assert [len(steps[epoch]) for epoch in epoch_range] == [num_steps - first, num_steps]
    assert {len(ids) for epoch in epoch_range for ids in steps[epoch]} == {batch_size}
    assert len(set.union(*steps[1])) == num_steps * batch_size


def _numbered(counts: list[int]) -> list[pa.Table]:
    """Make a table per shard. A number belongs to a training row and the following test row."""
    tables, number = [], 0
    for shard, count in enumerate(counts):
        numbers = np.arange(number, number + count).repeat(2)
        number += count
        tables.append(
            pa.table(
                {
                    "sample_id": [f"{shard}-{place}" for place in range(2 * count)],
                    "image": pa.array([bytes([i]) * 64 for i in numbers], pa.binary(64)),
                    "mask": pa.array([bytes([i]) * 8 for i in numbers], pa.binary(8)),
                    "label": pa.array(numbers % 3, pa.int8()),
                    "fold": pa.array(np.tile([1, 0], count), pa.int8()),
                    "part": pa.array(np.zeros(2 * count), pa.int8()),
                }
            )
        )
    return tables


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(0, 9),
    st.integers(1, 3),
    st.integers(1, 15),
    st.integers(1, 3),
    st.integers(0, 9),
    st.data(),
)
def test_any_worker_streams_the_rows_that_a_resident_worker_takes(
    manifest: Manifest,
    counts: list[int],
    num_workers: int,
    more: int,
    num_micro_batches: int,
    streams: int,
    shuffle_shards: int,
    first: int,
    data: st.DataObject,
) -> None:
    tables = _numbered(counts)
    shards = tuple(
        replace(
            manifest.shards[0],
            rows=2 * count,
            cells=tuple(Cell(fold=fold, part=0, label=0, rows=count) for fold in (0, 1)),
        )
        for count in counts
    )
    plan = EpochPlan(
        manifest=replace(manifest, shards=shards),
        selection=RowSelection(fold=1, role="test", num_parts=2),
        seed=3,
        rank=data.draw(st.integers(0, num_workers - 1)),
        num_workers=num_workers,
        batch_size=num_micro_batches * num_workers + more,
        streams=streams,
        shuffle_shards=shuffle_shards,
        num_micro_batches=num_micro_batches,
    )
    arriving = (
        tables[shard] for shard in chain.from_iterable(iterate_epoch_shards(plan, range(3), first))
    )
    stream = iterate_streamed_epochs(arriving, plan, range(3), first)
    for epoch, streamed in enumerate(stream):
        order = plan.order(epoch)[0 if epoch else first :]
        held = _held(tables, plan, epoch, 0 if epoch else first)
        for picks, one, other in zip(order.tolist(), held, streamed, strict=True):
            # Selected row i of a shard is row 2 i.
            assert one.sample_id == [f"{shard}-{2 * pick}" for shard, pick in picks]
            assert _same(one, other)
            numbers = [sum(counts[:shard]) + pick for shard, pick in picks]
            assert one.image[:, 0, 0].tolist() == numbers
    assert next(arriving, None) is None


@pytest.mark.parametrize("streams", [1, 4, 64])
def test_workers_that_come_and_go_within_an_epoch_go_on_in_the_global_order(
    tables: list[pa.Table], data_uri: str, make_plan: MakePlan, streams: int
) -> None:
    batch_size = 4
    alone = [
        batch.sample_id
        for batch in _held(tables, make_plan(batch_size=batch_size, streams=streams), 1)
    ]
    assert len(alone) > 5
    seen: list[list[str]] = []
    for first, stop, num_workers in ((0, 2, 2), (2, 3, 1), (3, 5, 3), (5, len(alone), 2)):
        plans = [
            make_plan(rank=rank, num_workers=num_workers, batch_size=batch_size, streams=streams)
            for rank in range(num_workers)
        ]
        parts = [next(_streamed(data_uri, plan, range(1, 2), first))[0] for plan in plans]
        seen += [
            [name for batch in step for name in batch.sample_id]
            for step in zip(*parts, strict=True)
        ][: stop - first]
    assert seen == alone


def test_a_resumed_epoch_reads_no_shard_of_the_steps_before(
    data_uri: str, manifest: Manifest, make_plan: MakePlan
) -> None:
    plan = make_plan(batch_size=2, streams=1, shuffle_shards=1)
    ((batches, whole),) = _streamed(data_uri, plan, range(1))
    assert sorted(whole) == list(range(len(manifest.shards)))
    ((_, last),) = _streamed(data_uri, plan, range(1), len(batches) - 1)
    assert last == whole[-len(last) :]
    assert len(last) <= 2


@pytest.mark.parametrize("first", [0, 5])
def test_a_stream_holds_a_shard_until_the_last_step_that_needs_the_shard(
    data_uri: str, make_plan: MakePlan, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    read: list[weakref.ref[Any]] = []

    class Rows(TableRows):
        def locate(self, numbers: np.ndarray) -> list[RowPlace]:
            places = super().locate(numbers)
            read.append(weakref.ref(places[0][0]))
            return places

    monkeypatch.setattr(epochs, "TableRows", Rows)
    plan, store = make_plan(batch_size=2, streams=2, shuffle_shards=1), LocalStore(data_uri)
    reads = list_shard_reads(plan.order(0)[first:])
    arriving = (read_shard(store, plan.manifest.shards[shard], COLUMNS) for shard in reads.shards)
    (batches,) = iterate_streamed_epochs(arriving, plan, range(1), first)
    for step, _ in enumerate(batches):
        held = [rows() is not None for rows in read]
        assert len(held) == np.count_nonzero(reads.first_steps <= step)
        assert held == [step < last for last in reads.last_steps[: len(held)]]


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
    batches = _held(tables, plan, 0)
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
        _ids(_held(tables, make_plan(seed=seed), epoch)) for seed, epoch in ((5, 0), (5, 1), (6, 0))
    ]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == _ids(_held(tables, make_plan(seed=5), 0))


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


def test_tables_may_come_in_pieces_and_may_be_empty(
    tables: list[pa.Table], make_plan: MakePlan
) -> None:
    """Ray passes tables as several blocks, slices, and blocks without rows."""
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


def test_shards_without_selected_rows_are_not_read(
    tables: list[pa.Table], manifest: Manifest, make_plan: MakePlan
) -> None:
    """Rows are sorted by id: the last shard holds normal images only."""
    plan = make_plan(normals=False)
    counts = [plan.selection.count(shard) for shard in manifest.shards]
    assert counts[-1] == 0
    assert len(manifest.shards) - 1 not in next(iterate_epoch_shards(plan, range(1)))
    batches = _held(tables, plan, 0)
    assert len(batches) == sum(counts)
    assert {int(batch.label[0]) for batch in batches} == {0, 1}


# Shards that contradict the manifest


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
        list(_streamed(copy.uri, make_plan(), range(1)))
    copy.write(victim, source.read(victim))
    assert list(_streamed(copy.uri, make_plan(), range(1)))


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
