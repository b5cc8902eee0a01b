"""Reading Parquet: columns, bounds, and no thread after the read."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil import parquet

_COUNT = """
import os, pathlib, sys
from mtil import parquet
data = pathlib.Path(sys.argv[1]).read_bytes()
threads = set(os.listdir("/proc/self/task"))
parquet.read_parquet(data)
print(len(set(os.listdir("/proc/self/task")) - threads))
"""


def _file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=10)
    return sink.getvalue()


TABLE = pa.table({"a": range(100), "b": [str(number) for number in range(100)]})


def test_all_columns_or_some_are_read() -> None:
    assert parquet.read_parquet(_file(TABLE)).equals(TABLE)
    assert parquet.read_parquet(memoryview(_file(TABLE)), ["b"]).equals(TABLE.select(["b"]))


def test_columns_come_in_the_order_in_which_they_are_named() -> None:
    assert parquet.read_parquet(_file(TABLE), ["b", "a"]).equals(TABLE.select(["b", "a"]))


def test_a_table_does_not_look_at_the_bytes_that_it_was_read_from() -> None:
    pixels = pa.table({"pixels": pa.array([b"abcd"] * 100, pa.binary(4))})
    sink = io.BytesIO()
    pq.write_table(pixels, sink, compression="none", use_dictionary=False)
    data = bytearray(sink.getvalue())
    table = parquet.read_parquet(memoryview(data))
    data[:] = bytes(len(data))  # as `read_shard` does with the next shard
    assert table.equals(pixels)


def test_what_is_no_parquet_or_lacks_a_column_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        parquet.read_parquet(_file(TABLE)[:-10])
    with pytest.raises(pa.ArrowException, match="c"):
        parquet.read_parquet(_file(TABLE), ["a", "c"])
    twice = pa.table([TABLE["a"], TABLE["a"]], names=["a", "a"])
    with pytest.raises(pa.ArrowException, match="a"):
        parquet.read_parquet(_file(twice), ["a"])


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_outlives_a_read(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(_file(TABLE))
    command = [sys.executable, "-c", _COUNT, str(tmp_path / "table.parquet")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["0"]


def _refused(data: bytes, *args: object) -> str:
    with pytest.raises(pa.ArrowException) as caught:
        parquet.read_parquet(data, *args)  # type: ignore[arg-type]
    return str(caught.value)


def test_more_rows_than_memory_holds_are_refused_by_the_footer() -> None:
    zeros = pa.table({"a": pa.array(np.zeros(parquet.MAX_ROWS + 1, np.int8))})
    sink = io.BytesIO()
    pq.write_table(zeros, sink)
    assert len(sink.getvalue()) < 100_000
    assert f"at most {parquet.MAX_ROWS} rows, but has {parquet.MAX_ROWS + 1}" in _refused(
        sink.getvalue()
    )


def test_values_that_a_dictionary_repeats_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    once = pa.array(["x" * 1000]).dictionary_encode()
    table = pa.table({"a": once.take(pa.array(np.zeros(5000, np.int32)))})
    sink = io.BytesIO()
    pq.write_table(table, sink, store_schema=False)
    data = sink.getvalue()
    assert len(data) < 10_000
    assert parquet.read_parquet(data).column("a").to_pylist() == ["x" * 1000] * 5000
    monkeypatch.setattr(parquet, "MAX_BYTES", 1_000_000)
    monkeypatch.setattr(parquet, "_AT_ONCE_BYTES", 500_000)
    assert "at most 1000000 bytes, but has more" in _refused(data)


def test_batches_are_the_table_with_its_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    table = TABLE.replace_schema_metadata({"about": "x"})
    monkeypatch.setattr(parquet, "_AT_ONCE_BYTES", 100)
    for columns in (None, ["b"]):
        wanted = table if columns is None else table.select(columns)
        found = parquet.read_parquet(_file(table), columns)
        assert found.equals(wanted)
        assert found.schema.metadata == {b"about": b"x"}


def test_columns_must_have_the_types_of_a_schema() -> None:
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    assert parquet.read_parquet(_file(TABLE), None, schema).equals(TABLE)
    assert parquet.read_parquet(_file(TABLE), ["b"], schema).equals(TABLE.select(["b"]))
    texts = pa.table({"a": TABLE["b"], "b": TABLE["b"]})
    assert "column a must be int64, but is string" in _refused(_file(texts), None, schema)
    assert parquet.read_parquet(_file(texts), ["b"], schema).num_rows == 100
    lacking = TABLE.select(["b"])
    assert "column a must be int64, but is missing" in _refused(_file(lacking), None, schema)
    empty = pa.table({"a": pa.array([1, None]), "b": ["x", "y"]})
    assert "column a must have no empty value" in _refused(_file(empty), None, schema)


def test_a_text_that_is_no_utf_8_is_refused() -> None:
    data = _file(pa.table({"a": ["plain text"]}))
    assert "UTF8" in _refused(data.replace(b"plain text", b"plain\xfftext"))
