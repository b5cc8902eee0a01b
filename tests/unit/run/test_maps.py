"""Map shards: round trips, refusal of damaged or foreign files, and joins in row order."""

import dataclasses
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil import __version__, errors
from mtil.data.dataset import shards
from mtil.data.dataset.batches import ROLE_COLUMNS, TRAINING_COLUMNS, TableRows, gather_rows
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select_rows
from mtil.errors import MapError, RunError, StorageError
from mtil.run.maps import (
    NUM_LEVELS,
    MapOrigin,
    decode_maps,
    default_map_size,
    encode_maps,
    join_maps,
    quantise_probabilities,
    read_maps,
)
from mtil.storage import LocalStore

SIZE = 8
PATH = "maps/0/fold-1/part-00000.parquet"
ORIGIN = MapOrigin(
    fingerprint="f" * 64,
    shard="shards/part-00000.parquet",
    model_sha256="a" * 64,
    config_digest="c" * 64,
    round=0,
    fold=1,
    part=None,
    size=SIZE,
)


def _maps(num_rows: int, size: int = SIZE, seed: int = 0) -> np.ndarray:
    return quantise_probabilities(np.random.default_rng(seed).random((num_rows, size, size)))


def _ids(num_rows: int) -> list[str]:
    return [f"benign ({index})" for index in range(num_rows)]


def _written(folder: Path, num_rows: int = 20) -> LocalStore:
    store = LocalStore(str(folder))
    store.write(PATH, encode_maps(_ids(num_rows), _maps(num_rows), ORIGIN))
    return store


def _read(store: LocalStore, num_rows: int = 20, **changes: Any) -> pa.Table:
    return read_maps(store, PATH, dataclasses.replace(ORIGIN, **changes), pa.array(_ids(num_rows)))


def test_probabilities_are_rounded_to_the_nearest_level() -> None:
    given = np.array([0, 1, 1 / 127, 0.25, 0.0039, 0.0040, 0.999])
    # 127 steps: 0.25 is 31.75 steps, rounded to 32, or 64.25 of 255.
    assert quantise_probabilities(given).tolist() == [0, 255, 2, 64, 0, 2, 255]
    every = quantise_probabilities(np.linspace(0, 1, 5001))
    assert len(np.unique(every)) == NUM_LEVELS
    assert (np.diff(every.astype(int)) >= 0).all()
    off = np.abs(every / 255 - np.linspace(0, 1, 5001))
    assert off.max() <= 0.5 / 127 + 0.5 / 255


def test_maps_are_kept_at_the_stride_of_the_finest_logits() -> None:
    assert default_map_size(256) == 128


@pytest.mark.parametrize("num_rows", [0, 1, 700])
def test_what_was_written_is_read(tmp_path: Path, num_rows: int) -> None:
    store = _written(tmp_path, num_rows)
    table = _read(store, num_rows)
    assert table.column_names == ["sample_id", "map"]
    assert table["sample_id"].to_pylist() == _ids(num_rows)
    np.testing.assert_array_equal(
        shards.pixels(table["map"]).reshape(-1, SIZE, SIZE), _maps(num_rows)
    )
    origin, _ = decode_maps(store.read(PATH))
    assert origin == ORIGIN
    assert origin.version == __version__


def test_the_same_maps_give_the_same_bytes() -> None:
    one = encode_maps(_ids(9), _maps(9), ORIGIN)
    assert one == encode_maps(_ids(9), _maps(9).copy(order="F"), ORIGIN)
    assert one != encode_maps(_ids(9), _maps(9, seed=1), ORIGIN)
    assert one != encode_maps(_ids(9), _maps(9), dataclasses.replace(ORIGIN, round=1))


def test_a_lesion_s_map_of_an_image_of_256_pixels_takes_less_than_four_kibibytes() -> None:
    """Maps with a soft ellipse on a slightly uneven background."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    maps = []
    for _ in range(64):
        top, left, height, width = rng.uniform((-0.5, -0.5, 0.2, 0.2), (0.5, 0.5, 0.5, 0.6))
        inside = 1 - ((rows - top) / height) ** 2 - ((columns - left) / width) ** 2
        uneven = np.kron(rng.normal(0, 0.5, (16, 16)), np.ones((8, 8)))
        maps.append(1 / (1 + np.exp(-(np.clip(8 * inside, -4, 6) + uneven))))
    origin = dataclasses.replace(ORIGIN, size=128)
    assert len(encode_maps(_ids(64), quantise_probabilities(np.array(maps)), origin)) / 64 < 4096


def test_a_missing_map_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapError, match=rf"^Map shard {PATH} of {tmp_path} is missing") as caught:
        _read(LocalStore(str(tmp_path)))
    assert caught.value.path == PATH


def test_a_truncated_map_shard_is_named(tmp_path: Path) -> None:
    store = _written(tmp_path)
    data = store.read(PATH)
    for length in (0, 3, 8, len(data) // 2, len(data) - 9, len(data) - 1):
        store.write(PATH, data[:length])
        with pytest.raises(MapError, match="is damaged") as caught:
            _read(store)
        assert caught.value.path == PATH


@pytest.mark.slow
def test_no_flipped_bit_changes_what_is_read() -> None:
    """A bit without meaning, for example in the writing library's name, may flip unnoticed."""
    data = encode_maps(_ids(20), _maps(20), ORIGIN)
    origin, whole = decode_maps(data)
    noticed = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with suppress(ValueError):
            found, table = decode_maps(bytes(damaged))
            assert (found, table) == (origin, whole)
            continue
        noticed += 1
    assert noticed > 0.7 * len(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", "e" * 64),
        ("shard", "shards/part-00001.parquet"),
        ("model_sha256", "b" * 64),
        ("round", 1),
        ("fold", 0),
        ("part", 2),
        ("size", 16),
    ],
)
def test_a_map_shard_of_another_origin_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    store = _written(tmp_path)
    with pytest.raises(MapError, match=f"must have the {name} {value!r}, but has") as caught:
        _read(store, **{name: value})
    assert caught.value.path == PATH


def test_maps_of_another_version_of_this_tool_are_read(tmp_path: Path) -> None:
    assert _read(_written(tmp_path), version="0.0.0").num_rows == 20


@pytest.mark.parametrize(
    ("wanted", "odd"),
    [(_ids(19), r"benign \(19\)"), (_ids(21), r"benign \(20\)"), ([*_ids(19), "x"], r"benign")],
    ids=["more", "fewer", "other"],
)
def test_maps_of_other_images_are_refused(tmp_path: Path, wanted: list[str], odd: str) -> None:
    with pytest.raises(MapError, match=rf"of {len(wanted)} images, but holds 20 \({odd}"):
        read_maps(_written(tmp_path), PATH, ORIGIN, pa.array(wanted))


def test_a_map_shard_that_holds_an_image_twice_is_refused(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write(PATH, encode_maps([*_ids(19), "benign (0)"], _maps(20), ORIGIN))
    with pytest.raises(MapError, match="one twice"):
        read_maps(store, PATH, ORIGIN, pa.array(_ids(19)))


def test_other_files_are_not_map_shards(tmp_path: Path) -> None:
    store = _written(tmp_path)
    table = _read(store)
    pq.write_table(table, tmp_path / PATH)  # equal columns, but no origin
    with pytest.raises(MapError, match="is damaged"):
        _read(store)
    for text in ("{}", "[]", "null", '{"format": 2}', "{"):
        pq.write_table(table.replace_schema_metadata({"mtil_map": text}), tmp_path / PATH)
        with pytest.raises(MapError, match="is damaged"):
            _read(store)


def test_a_storage_that_cannot_be_read_is_not_a_damaged_map_shard(tmp_path: Path) -> None:
    class Broken(LocalStore):
        def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
            raise StorageError(f"{name} cannot be read: Input/output error.")

    with pytest.raises(StorageError, match="Input/output"):
        _read(Broken(str(tmp_path)))


def test_a_map_shard_s_error_keeps_its_path_on_the_way_between_processes(tmp_path: Path) -> None:
    with pytest.raises(MapError) as caught:
        _read(LocalStore(str(tmp_path)))
    assert pickle.loads(pickle.dumps(caught.value)).path == PATH
    assert getattr(errors, "MapError")(str(caught.value)).path == PATH  # noqa: B009


def _shards(num_shards: int, num_rows: int = 12) -> list[pa.Table]:
    """Return tables of rows with unordered ids. The label numbers the rows."""
    ids = np.random.default_rng(num_shards).permutation(num_shards * num_rows)
    return [
        pa.table(
            {
                "sample_id": [f"{number:05d}" for number in ids[start : start + num_rows]],
                "label": pa.array(range(start, start + num_rows), pa.int64()),
            }
        )
        for start in range(0, len(ids), num_rows)
    ]


def _map_of(sample_id: str) -> np.ndarray:
    return np.random.default_rng(int(sample_id)).integers(1, 256, (SIZE, SIZE), np.uint8)


def _mapped(ids: list[str]) -> pa.Table:
    maps = np.array([_map_of(name) for name in ids]).reshape(-1, SIZE, SIZE)
    return decode_maps(encode_maps(ids, maps, ORIGIN))[1]


@pytest.mark.parametrize("num_shards", [1, 7, 100])
@pytest.mark.parametrize("num_parts", [1, 3])
def test_joining_neither_moves_nor_drops_a_row(num_shards: int, num_parts: int) -> None:
    """Every fourth row has no map, like rows of the test fold."""
    seen = []
    for table in _shards(num_shards):
        needed = np.flatnonzero(np.arange(table.num_rows) % 4)
        ids = table["sample_id"].take(pa.array(needed)).to_pylist()
        maps = [_mapped(ids[part::num_parts][::-1]) for part in range(num_parts)]
        joined = join_maps(table, maps, needed)
        assert joined.drop_columns("prior").equals(table)
        assert joined.schema.field("prior").type == pa.binary(SIZE**2)
        for position, row in enumerate(joined.to_pylist()):
            expected = _map_of(row["sample_id"]).tobytes() if position % 4 else bytes(SIZE**2)
            assert row["prior"] == expected
        seen += joined["label"].to_pylist()
    assert seen == list(range(12 * num_shards))


def test_a_shard_without_needed_rows_and_maps_gets_zeros() -> None:
    (table,) = _shards(1)
    joined = join_maps(table, [_mapped([]), _mapped([])], np.array([], np.int64))
    assert joined["prior"].to_pylist() == [bytes(SIZE**2)] * 12
    empty = join_maps(table.slice(0, 0), [_mapped([])], np.array([], np.int64))
    assert empty.num_rows == 0
    assert empty.schema == joined.schema


def test_a_row_that_is_trained_on_must_have_a_map() -> None:
    (table,) = _shards(1)
    ids = table["sample_id"].to_pylist()
    with pytest.raises(RunError, match=rf"but 2 of 12 have none \(the first is {ids[3]}\)"):
        join_maps(table, [_mapped(ids[:3] + ids[4:11])], np.arange(12))
    assert join_maps(table, [_mapped(ids[:3])], np.arange(3)).num_rows == 12


def test_every_map_must_have_one_row_and_no_row_two_maps() -> None:
    (table,) = _shards(1)
    ids = table["sample_id"].to_pylist()
    with pytest.raises(RunError, match="of 13 maps 12 found theirs"):
        join_maps(table, [_mapped([*ids, "99999"])], np.arange(12))
    with pytest.raises(RunError, match="of 13 maps 12 found theirs"):
        join_maps(table, [_mapped(ids), _mapped(ids[5:6])], np.arange(12))
    with pytest.raises(RunError, match="must belong to one row"):
        join_maps(pa.concat_tables([table, table.slice(2, 1)]), [_mapped(ids)], np.arange(12))


def test_a_batch_s_prior_maps_are_those_of_its_images(data_uri: str, manifest: Manifest) -> None:
    store, selection = LocalStore(data_uri), select_rows(manifest, 1, "train")
    columns = (*TRAINING_COLUMNS, *ROLE_COLUMNS)
    tables = [shards.read_shard(store, shard, columns) for shard in manifest.shards]
    numbers = {
        name: n for n, name in enumerate(n for t in tables for n in t["sample_id"].to_pylist())
    }
    joined = []
    for table in tables:
        needed = selection.rows(table)
        ids = table["sample_id"].take(pa.array(needed)).to_pylist()
        maps = np.array([np.full((SIZE, SIZE), numbers[name]) for name in ids], np.uint8)
        part = decode_maps(encode_maps(ids, maps.reshape(-1, SIZE, SIZE), ORIGIN))[1]
        joined.append(join_maps(table, [part], needed))
    rows, plain = TableRows(joined, selection), TableRows(tables, selection)
    order = np.random.default_rng(0).permutation(rows.all_row_numbers())
    batch, without = rows.gather(order), plain.gather(order)
    assert without.prior is None
    assert batch.sample_id == without.sample_id
    np.testing.assert_array_equal(batch.image, without.image)
    assert batch.prior.shape == (len(batch), SIZE, SIZE)
    assert [set(prior.ravel()) for prior in batch.prior] == [
        {numbers[name]} for name in batch.sample_id
    ]


def _with_pixels(table: pa.Table) -> pa.Table:
    image, mask = (pa.array([bytes(width)] * 12, pa.binary(width)) for width in (4, 1))
    return table.append_column("image", image).append_column("mask", mask)


def test_rows_with_and_without_maps_do_not_mix() -> None:
    table = _with_pixels(*_shards(1))
    with_maps = join_maps(table, [_mapped(table["sample_id"].to_pylist())], np.arange(12))
    with pytest.raises(AssertionError):
        TableRows([with_maps, table])


def test_a_batch_of_several_tables_has_the_maps_of_each() -> None:
    tables = [
        join_maps(table, [_mapped(table["sample_id"].to_pylist())], np.arange(12))
        for table in map(_with_pixels, _shards(3))
    ]
    places = [
        place
        for rows in map(TableRows, ([table] for table in tables))
        for place in rows.locate(rows.all_row_numbers())
    ]
    batch = gather_rows(places[::-5])
    assert len(set(batch.sample_id)) == len(batch) == 8
    np.testing.assert_array_equal(batch.prior, [_map_of(name) for name in batch.sample_id])
