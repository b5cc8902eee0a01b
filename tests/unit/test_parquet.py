"""Reading Parquet: columns, and no thread that outlives the read."""

import io
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil import parquet

_COUNT = """
import os, pathlib, sys
from mtil import parquet
data = pathlib.Path(sys.argv[1]).read_bytes()
threads = set(os.listdir("/proc/self/task"))
parquet.read(data)
print(len(set(os.listdir("/proc/self/task")) - threads))
"""


def _file(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=10)
    return sink.getvalue()


TABLE = pa.table({"a": range(100), "b": [str(number) for number in range(100)]})


def test_all_columns_or_some_are_read() -> None:
    assert parquet.read(_file(TABLE)).equals(TABLE)
    assert parquet.read(memoryview(_file(TABLE)), ["b"]).equals(TABLE.select(["b"]))


def test_columns_come_in_the_order_in_which_they_are_named() -> None:
    assert parquet.read(_file(TABLE), ["b", "a"]).equals(TABLE.select(["b", "a"]))


def test_a_table_does_not_look_at_the_bytes_that_it_was_read_from() -> None:
    pixels = pa.table({"pixels": pa.array([b"abcd"] * 100, pa.binary(4))})
    sink = io.BytesIO()
    pq.write_table(pixels, sink, compression="none", use_dictionary=False)
    data = bytearray(sink.getvalue())
    table = parquet.read(memoryview(data))
    data[:] = bytes(len(data))  # as `shards.read` does with the next shard
    assert table.equals(pixels)


def test_what_is_no_parquet_or_lacks_a_column_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid):
        parquet.read(_file(TABLE)[:-10])
    with pytest.raises(pa.ArrowException, match="c"):
        parquet.read(_file(TABLE), ["a", "c"])
    twice = pa.table([TABLE["a"], TABLE["a"]], names=["a", "a"])
    with pytest.raises(pa.ArrowException, match="a"):
        parquet.read(_file(twice), ["a"])


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_no_thread_outlives_a_read(tmp_path: Path) -> None:
    (tmp_path / "table.parquet").write_bytes(_file(TABLE))
    command = [sys.executable, "-c", _COUNT, str(tmp_path / "table.parquet")]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["0"]
