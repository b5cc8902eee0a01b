"""Shards: equal rows give equal bytes, and changed bytes are refused."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Shard
from mtil.errors import DataError
from mtil.storage import LocalStore

SIZE = 16


def _table(num_rows: int, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = [
        {
            "sample_id": f"{index:04d}",
            "image": rng.bytes(SIZE**2),
            "mask": rng.bytes(SIZE**2 // 8),
            "label": index % 3,
            "group": f"{index // 2:04d}",
            "fold": index % 5,
            "part": index % 8,
            "height": 20,
            "width": 30,
            "mask_png": rng.bytes(index % 7),
            "sha256": rng.bytes(32),
            "source": "a" if index % 2 else "b",
            "pixel_size": None if index % 3 else 0.0625,
            "meta": [("birads", "4a")][: index % 2],
        }
        for index in range(num_rows)
    ]
    return pa.Table.from_pylist(values, schema=shards.shard_schema(SIZE))


def _stored(folder: Path, table: pa.Table) -> tuple[LocalStore, Shard]:
    store = LocalStore(str(folder))
    data = shards.encode_shard(table)
    store.write("shards/part-00000.parquet", data)
    shard = Shard(
        path="shards/part-00000.parquet",
        rows=table.num_rows,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        cells=(),
    )
    return store, shard


@pytest.mark.parametrize("step", [1, 100, 256, 300])
def test_rows_that_come_a_few_at_a_time_give_the_same_bytes(step: int) -> None:
    table = _table(600)
    encoder = shards.ShardEncoder(table.schema)
    for start in range(0, 600, step):
        encoder.add(table.slice(start, step))
    assert encoder.close() == shards.encode_shard(table)


def test_rows_come_back_and_columns_can_be_chosen(tmp_path: Path) -> None:
    table = _table(600)  # three row groups
    store, shard = _stored(tmp_path, table)
    assert shards.read_shard(store, shard).equals(table)
    assert shards.read_shard(store, shard, ["label", "mask"]).equals(
        table.select(["label", "mask"])
    )


def test_same_rows_same_bytes() -> None:
    whole = _table(300)
    chunked = pa.concat_tables([whole.slice(0, 7), whole.slice(7)])
    assert (
        shards.encode_shard(whole)
        == shards.encode_shard(_table(300))
        == shards.encode_shard(chunked)
    )
    assert shards.encode_shard(whole) != shards.encode_shard(_table(300, seed=1))


def test_masks_take_little_room_and_images_are_not_compressed() -> None:
    disc = np.hypot(*(np.mgrid[:64, :64] - 32)) < 20
    row = _table(1).to_pylist()[0] | {"image": bytes(64 * 64), "mask": np.packbits(disc).tobytes()}
    table = pa.Table.from_pylist([row] * 256, schema=shards.shard_schema(64))
    columns = pq.ParquetFile(pa.BufferReader(shards.encode_shard(table))).metadata.row_group(0)
    sizes = {
        column.path_in_schema: column.total_compressed_size
        for column in map(columns.column, range(columns.num_columns))
    }
    assert sizes["image"] >= 256 * 64 * 64
    assert sizes["mask"] < 256 * 64 * 64 // 8 / 10


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_a_flipped_bit_is_noticed(tmp_path: Path, position: int) -> None:
    store, shard = _stored(tmp_path, _table(20))
    data = bytearray(store.read(shard.path))
    data[position] ^= 1
    store.write(shard.path, bytes(data))
    with pytest.raises(DataError, match=r"part-00000\.parquet .* bytes differ"):
        shards.read_shard(store, shard)


def test_a_truncated_or_missing_shard_is_noticed(tmp_path: Path) -> None:
    store, shard = _stored(tmp_path, _table(20))
    store.write(shard.path, store.read(shard.path)[:-100])
    with pytest.raises(DataError, match=r"part-00000\.parquet of .* bytes differ"):
        shards.read_shard(store, shard, ["label"])
    store.delete(shard.path)
    with pytest.raises(DataError, match=r"part-00000\.parquet of .* is missing"):
        shards.read_shard(store, shard)


def test_pixels_of_sliced_and_chunked_columns() -> None:
    table = _table(30)
    expected = np.stack([np.frombuffer(row, np.uint8) for row in table["image"].to_pylist()])
    np.testing.assert_array_equal(shards.pixels(table["image"]), expected)
    np.testing.assert_array_equal(shards.pixels(table.slice(4, 9)["image"]), expected[4:13])
    chunked = pa.concat_tables([table.slice(20, 5), table.slice(3, 2)])["image"]
    assert chunked.num_chunks == 2
    np.testing.assert_array_equal(shards.pixels(chunked), expected[[20, 21, 22, 23, 24, 3, 4]])
    np.testing.assert_array_equal(shards.pixels(table["image"].chunk(0).slice(29)), expected[29:])


def test_pixels_are_a_read_only_view() -> None:
    array = _table(5)["image"].combine_chunks()
    pixels = shards.pixels(array)
    assert not pixels.flags.writeable
    assert not pixels.flags.owndata
    assert pixels.ctypes.data == array.buffers()[1].address


@pytest.mark.parametrize("part", ["slice", "no chunk", "empty chunk"])
def test_pixels_of_an_empty_column(part: str) -> None:
    kind = pa.binary(SIZE**2)
    column = {
        "slice": _table(5).slice(5)["image"],
        "no chunk": pa.chunked_array([], kind),
        "empty chunk": pa.chunked_array([pa.array([], kind)]),
    }[part]
    assert shards.pixels(column).shape == (0, SIZE**2)
