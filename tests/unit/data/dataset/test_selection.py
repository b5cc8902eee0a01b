"""Selection of rows by role: no row twice, no row lost, no group in two roles."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mtil.data.dataset.manifest import Cell, Manifest, Shard
from mtil.data.dataset.selection import (
    NORMAL,
    InnerDivision,
    Role,
    RowSelection,
    count_rows,
    parse_folds,
    select_rows,
)
from mtil.data.dataset.shards import HOLDOUT, read_shard
from mtil.errors import DataError
from mtil.storage import LocalStore

ROLES: tuple[Role, ...] = ("train", "validation", "test")
COLUMNS = ("sample_id", "group", "fold", "part", "label")


@pytest.fixture(scope="module")
def tables(data_uri: str, manifest: Manifest) -> list[pa.Table]:
    store = LocalStore(data_uri)
    return [read_shard(store, shard, COLUMNS) for shard in manifest.shards]


def _chosen(tables: list[pa.Table], selection: RowSelection) -> pa.Table:
    return pa.concat_tables([table.take(selection.rows(table)) for table in tables])


def _values(rows: pa.Table, name: str) -> list[Any]:
    values: list[Any] = rows.column(name).to_pylist()
    return values


def test_every_row_has_one_role_in_every_fold(tables: list[pa.Table], manifest: Manifest) -> None:
    everything = sorted(_values(pa.concat_tables(tables), "sample_id"))
    assert manifest.num_folds == 3
    assert len(manifest.shards) > 4
    for fold in range(manifest.num_folds):
        roles = {role: _chosen(tables, select_rows(manifest, fold, role)) for role in ROLES}
        ids = [name for rows in roles.values() for name in _values(rows, "sample_id")]
        assert sorted(ids) == everything
        assert set(_values(roles["test"], "fold")) == {fold}
        assert fold not in _values(roles["train"], "fold") + _values(roles["validation"], "fold")
        assert set(_values(roles["validation"], "part")) == {fold % manifest.num_parts}
        assert fold % manifest.num_parts not in _values(roles["train"], "part")
        assert {0, 1, NORMAL} == set(_values(roles["train"], "label"))


def test_every_row_is_tested_once_over_all_folds(
    tables: list[pa.Table], manifest: Manifest
) -> None:
    tested = [
        name
        for fold in range(manifest.num_folds)
        for name in _values(_chosen(tables, select_rows(manifest, fold, "test")), "sample_id")
    ]
    assert len(tested) == len(set(tested)) == manifest.num_rows


def test_no_group_has_two_roles(tables: list[pa.Table], manifest: Manifest) -> None:
    sizes = Counter(_values(pa.concat_tables(tables), "group"))
    assert set(sizes.values()) == {2}
    for fold in range(manifest.num_folds):
        groups = [
            set(_values(_chosen(tables, select_rows(manifest, fold, role)), "group"))
            for role in ROLES
        ]
        assert sum(len(part) for part in groups) == len(set.union(*groups)) == len(sizes)


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("role", ROLES)
def test_the_manifest_counts_what_the_rows_hold(
    tables: list[pa.Table], manifest: Manifest, role: Role, normals: bool
) -> None:
    for fold in range(manifest.num_folds):
        selection = select_rows(manifest, fold, role, normals=normals)
        for shard, table in zip(manifest.shards, tables, strict=True):
            labels = _values(table.take(selection.rows(table)), "label")
            assert selection.count(shard) == len(labels)
            for label in (0, 1, 2):
                assert selection.count(shard, label) == labels.count(label)
        assert count_rows(manifest, selection) == _chosen(tables, selection).num_rows


def test_normals_can_be_left_out_of_training_but_never_of_testing(
    tables: list[pa.Table], manifest: Manifest
) -> None:
    for role in ("train", "validation"):
        whole, tumours = (
            _chosen(tables, select_rows(manifest, 1, role, normals=normals))
            for normals in (True, False)
        )
        expected = whole.filter(pa.compute.not_equal(whole["label"], NORMAL))
        assert 0 < tumours.num_rows < whole.num_rows
        assert tumours.equals(expected)
    tested = [select_rows(manifest, 1, "test", normals=normals) for normals in (True, False)]
    assert _chosen(tables, tested[0]).equals(_chosen(tables, tested[1]))
    assert count_rows(manifest, tested[1], NORMAL) > 0


def test_rows_are_positions_in_the_shard() -> None:
    table = pa.table(
        {
            "fold": pa.array([0, 1, 1, 2, 0, 1], pa.int8()),
            "part": pa.array([1, 0, 1, 1, 0, 0], pa.int8()),
            "label": pa.array([0, 1, 2, 1, 0, 0], pa.int8()),
        }
    )

    def rows(fold: int, role: Role, *, normals: bool = True) -> list[int]:
        selection = RowSelection(fold=fold, role=role, num_parts=2, normals=normals)
        numbers: list[int] = selection.rows(table).tolist()
        return numbers

    assert rows(0, "test") == [0, 4]
    assert rows(0, "validation") == [1, 5]
    assert rows(0, "train") == [2, 3]
    assert rows(0, "train", normals=False) == [3]
    assert rows(1, "validation") == [0, 3]  # part 1
    assert rows(2, "validation") == [1, 4, 5]  # part 0 again: 2 modulo 2
    assert rows(2, "train") == [0, 2]


def test_a_shard_without_cells_counts_nothing() -> None:
    shard = Shard(path="x", rows=1, bytes=1, sha256="0" * 64, cells=())
    assert RowSelection(fold=0, role="train", num_parts=2).count(shard) == 0


def _manifest(manifest: Manifest, *cells: Cell) -> Manifest:
    shard = Shard(path="x", rows=len(cells), bytes=1, sha256="0" * 64, cells=cells)
    return Manifest(**vars(manifest) | {"shards": (shard,), "num_folds": 3, "num_parts": 2})


@pytest.mark.parametrize(
    ("fold", "part", "role"), [(1, 0, "validation"), (1, 1, "train"), (0, 0, "test")]
)
def test_a_role_must_have_rows(manifest: Manifest, fold: int, part: int, role: Role) -> None:
    made = _manifest(manifest, Cell(fold=1 - fold, part=part, label=0, rows=5))
    with pytest.raises(DataError, match=f"Fold {fold} must have {role} rows, but has none"):
        select_rows(made, fold, role)


def test_a_role_of_normals_only_is_empty_without_them(manifest: Manifest) -> None:
    made = _manifest(manifest, Cell(fold=1, part=1, label=NORMAL, rows=5))
    assert count_rows(made, select_rows(made, 0, "train")) == 5
    with pytest.raises(DataError, match="Fold 0 must have train rows"):
        select_rows(made, 0, "train", normals=False)


@pytest.mark.parametrize("fold", [-1, 3, 100])
def test_a_fold_that_is_not_there_is_refused(manifest: Manifest, fold: int) -> None:
    with pytest.raises(DataError, match=f"one of 0 to 2 in this data set, but got {fold}"):
        select_rows(manifest, fold, "train")


@pytest.mark.parametrize(
    ("text", "folds"),
    [
        ("all", [0, 1, 2, 3, 4]),
        ("0", [0]),
        ("0,2", [0, 2]),
        ("4, 1", [1, 4]),
        ("3,3,0", [0, 3]),
    ],
)
def test_folds_are_read(text: str, folds: list[int]) -> None:
    assert parse_folds(text, 5) == folds


@pytest.mark.parametrize("text", ["", "ALL", "0-2", "1.0", "0,", "all,1", "one"])
def test_nonsense_is_no_fold(text: str) -> None:
    with pytest.raises(DataError, match=f"`all` or numbers like 0,1, but got '{text}'"):
        parse_folds(text, 5)


@pytest.mark.parametrize(("text", "wrong"), [("5", 5), ("0,7", 7), ("-1", -1), ("-1,9", -1)])
def test_folds_must_be_there(text: str, wrong: int) -> None:
    with pytest.raises(DataError, match=f"one of 0 to 4 in this data set, but got {wrong}"):
        parse_folds(text, 5)


def test_a_holdout_is_tested_and_nothing_else(manifest: Manifest) -> None:
    def held_out(cell: Cell) -> bool:
        return (cell.fold + cell.part) % 2 == 0

    shards = [
        replace(
            shard,
            cells=tuple(replace(c, fold=HOLDOUT) if held_out(c) else c for c in shard.cells),
        )
        for shard in manifest.shards
    ]
    held = replace(manifest, shards=tuple(shards))
    cells = [cell for shard in manifest.shards for cell in shard.cells]
    number = sum(cell.rows for cell in cells if held_out(cell))
    assert count_rows(held, select_rows(held, HOLDOUT, "test")) == number > 0
    rest = sum(cell.rows for cell in cells if not held_out(cell))
    for fold in range(3):
        counts = [count_rows(held, RowSelection(fold=fold, role=role, num_parts=held.num_parts))
                  for role in ROLES]  # fmt: skip
        assert sum(counts) == rest
    with pytest.raises(DataError, match="A fold must be one of"):
        select_rows(held, HOLDOUT, "train")


def test_a_data_set_without_a_holdout_says_so(manifest: Manifest) -> None:
    with pytest.raises(DataError, match="has no holdout; prepare one"):
        select_rows(manifest, HOLDOUT, "test")
    assert parse_folds("holdout", 3) == [HOLDOUT]


def test_divisions_share_out_the_training_rows_group_by_group(
    tables: list[pa.Table], manifest: Manifest
) -> None:
    for fold in range(manifest.num_folds):
        whole = _chosen(tables, select_rows(manifest, fold, "train"))
        group = dict(zip(_values(whole, "sample_id"), _values(whole, "group"), strict=True))
        seen: list[str] = []
        of_group: dict[str, int] = {}
        for number in range(3):
            inner = InnerDivision(number, 3)
            only = select_rows(manifest, fold, "train", only=inner)
            ids = _values(_chosen(tables, only), "sample_id")
            others = _chosen(tables, select_rows(manifest, fold, "train", without=inner))
            assert ids
            assert sorted([*ids, *_values(others, "sample_id")]) == sorted(group)
            assert count_rows(manifest, only) == len(ids)
            for name in ids:
                assert of_group.setdefault(group[name], number) == number
            seen += ids
        assert sorted(seen) == sorted(group)


def test_divisions_follow_from_the_parts_by_hand() -> None:
    part = np.array([0, 1, 2, 3, 4, 5, 6, 7], np.int8)
    held = [InnerDivision(number, 3).holds(part, 2).tolist() for number in range(3)]
    # Without part 2, the ranks of the parts are 0, 1, -, 2, 3, 4, 5, 6.
    assert held[0] == [True, False, False, False, True, False, False, True]
    assert held[1] == [False, True, False, False, False, True, False, False]
    assert held[2] == [False, False, False, True, False, False, True, False]


def test_more_divisions_than_parts_are_refused(manifest: Manifest) -> None:
    most = manifest.num_parts - 1
    select_rows(manifest, 0, "train", only=InnerDivision(0, most))
    with pytest.raises(DataError, match=f"at most {most} parts in .* is {most + 1}"):
        select_rows(manifest, 0, "train", without=InnerDivision(0, most + 1))
