"""A Parquet file's bytes to a table, for everybody who reads one."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq


def read(data: bytes | memoryview, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file that lies in memory, on this thread.

    Not by `read_table`: the threads that it starts may outlive it, and a process that ends then
    aborts or never does (apache/arrow#34314, #50482).

    Raises:
        pyarrow.ArrowException: if the bytes are none, or a column is missing or there twice.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    if columns is None:
        return file.read(use_threads=False)
    try:
        return file.read(list(columns), use_threads=False).select(list(columns))
    except KeyError as error:
        raise pa.ArrowKeyError(*error.args) from None
