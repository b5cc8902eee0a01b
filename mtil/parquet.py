"""A Parquet file's bytes to a table, within bounds, for everybody who reads one."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROWS = 5_000_000
"""Run-length encoding puts 200 million rows into two megabytes."""
MAX_VALUES = 4 * MAX_ROWS
"""Of a column; lists have several a row."""
MAX_BYTES = 2**30
"""Of the decoded values together."""
_AT_ONCE_BYTES = MAX_BYTES // 2
"""Of values that may be decoded before their size is looked at."""
_LONGEST_NUMBER = 16


def read(
    data: bytes | memoryview, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Read a Parquet file that lies in memory, on this thread.

    Not by `read_table`: the threads that it starts may outlive it, and a process that ends then
    aborts or never does (apache/arrow#34314, #50482).

    Args:
        data: the file.
        columns: the columns to read, in this order; all by default.
        schema: types that columns must have, whichever of them are read; others may have any.

    Raises:
        pyarrow.ArrowException: if the bytes are none, a column is missing, there twice or of
            another type, a text is no UTF-8, or the table has more than `MAX_ROWS` rows or
            `MAX_BYTES` bytes.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        wanted = list(columns) if columns is not None else None
        num_rows = file.metadata.num_rows
        if num_rows > MAX_ROWS:
            raise pa.ArrowInvalid(f"it must have at most {MAX_ROWS} rows, but has {num_rows}")
        if schema is not None:
            _check_types(file.schema_arrow, schema, wanted)
        table = _read(file, wanted)
        table.validate(full=True)
    except pa.ArrowException:
        raise
    except KeyError as error:
        raise pa.ArrowKeyError(*error.args) from None
    except (OSError, ValueError, OverflowError) as error:  # of a footer that is damaged
        raise pa.ArrowInvalid(str(error)) from None
    if schema is not None:
        _check_nulls(table, schema)
    return table


def _read(file: pq.ParquetFile, columns: list[str] | None) -> pa.Table:
    """Read columns: at once, or batch by batch where encodings may hide their size."""
    row_bytes = _row_bytes(file, columns)
    if file.metadata.num_rows * row_bytes <= _AT_ONCE_BYTES:
        table = file.read(columns, use_threads=False)
    else:
        table = _in_batches(file, columns, max(1, _AT_ONCE_BYTES // row_bytes))
    return table if columns is None else table.select(columns)


def _in_batches(file: pq.ParquetFile, columns: list[str] | None, num_rows: int) -> pa.Table:
    batches, size = [], 0
    for batch in file.iter_batches(num_rows, columns=columns, use_threads=False):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise pa.ArrowInvalid(f"it must have at most {MAX_BYTES} bytes, but has more")
        batches.append(batch)
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).replace_schema_metadata(
        file.schema_arrow.metadata
    )


def _row_bytes(file: pq.ParquetFile, columns: list[str] | None) -> int:
    """Return the most bytes that one row can have.

    A value of fixed length has that length, and another at most its column chunk's.
    """
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    row_bytes = 0
    for index in range(file.metadata.num_columns):
        column = file.schema.column(index)
        if columns is not None and column.path.partition(".")[0] not in columns:
            continue
        chunks = [group.column(index) for group in groups]
        if sum(chunk.num_values for chunk in chunks) > MAX_VALUES:
            raise pa.ArrowInvalid(f"column {column.path} must have at most {MAX_VALUES} values")
        if column.physical_type != "BYTE_ARRAY" and not column.max_repetition_level:
            row_bytes += max(column.length, _LONGEST_NUMBER)
        else:
            row_bytes += max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    return row_bytes


def _check_types(found: pa.Schema, schema: pa.Schema, columns: list[str] | None) -> None:
    for field in schema:
        if columns is not None and field.name not in columns:
            continue
        kinds = [one.type for one in found if one.name == field.name]
        if kinds != [field.type]:
            held = " and ".join(map(str, kinds)) or "missing"
            raise pa.ArrowInvalid(f"column {field.name} must be {field.type}, but is {held}")


def _check_nulls(table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        if field.nullable or field.name not in table.column_names:
            continue
        if table.column(field.name).null_count:
            raise pa.ArrowInvalid(f"column {field.name} must have no empty value, but has some")
