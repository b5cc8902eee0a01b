"""Read Parquet files from memory within limits on rows, values and bytes."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROWS = 5_000_000
"""Maximum rows of a file. Run-length encoding can put 200 million rows into two megabytes."""
MAX_VALUES = 4 * MAX_ROWS
"""Maximum values of a column; a list column has several values per row."""
MAX_BYTES = 2**30
"""Maximum bytes of all decoded values."""
_AT_ONCE_BYTES = MAX_BYTES // 2
"""Maximum estimated bytes for decoding a file in one call; larger files are read in batches."""
_LONGEST_NUMBER = 16
"""Bytes of the widest number in memory, an upper bound for any column of numbers."""


def read_parquet(
    data: bytes | memoryview, columns: Sequence[str] | None = None, schema: pa.Schema | None = None
) -> pa.Table:
    """Read a Parquet file from memory on the calling thread.

    Args:
        data: bytes of the file.
        columns: columns to read, in the order of the result; all columns by default.
        schema: required types of columns. Only columns that are read are checked; columns outside
            the schema may have any type.

    Raises:
        pyarrow.ArrowException: if the bytes are no Parquet file, a column is missing, repeated,
            of a wrong type or null against the schema, a text is not UTF-8, or the table exceeds
            `MAX_ROWS`, `MAX_VALUES` or `MAX_BYTES`.
    """
    # Not `pq.read_table`: its threads may outlive the call, and a process that exits meanwhile
    # aborts or hangs (apache/arrow#34314, #50482).
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        selected = list(columns) if columns is not None else None
        num_rows = file.metadata.num_rows
        if num_rows > MAX_ROWS:
            raise pa.ArrowInvalid(f"it must have at most {MAX_ROWS} rows, but has {num_rows}")
        if schema is not None:
            _check_types(file.schema_arrow, schema, selected)
        table = _read(file, selected)
        # pyarrow checks UTF-8 only in a full validation.
        table.validate(full=True)
    except pa.ArrowException:
        raise
    except KeyError as error:
        raise pa.ArrowKeyError(*error.args) from None
    except (OSError, ValueError, OverflowError) as error:
        # Callers handle `ArrowException` alone, but a damaged footer raises these errors.
        raise pa.ArrowInvalid(str(error)) from None
    if schema is not None:
        _check_nulls(table, schema)
    return table


def _read(file: pq.ParquetFile, columns: list[str] | None) -> pa.Table:
    """Read columns in one call, or in batches if the decoded size may exceed the limit."""
    row_bytes = _row_bytes(file, columns)
    if file.metadata.num_rows * row_bytes <= _AT_ONCE_BYTES:
        table = file.read(columns, use_threads=False)
    else:
        table = _read_batches(file, columns, max(1, _AT_ONCE_BYTES // row_bytes))
    return table if columns is None else table.select(columns)


def _read_batches(file: pq.ParquetFile, columns: list[str] | None, batch_rows: int) -> pa.Table:
    """Read columns in batches of `batch_rows` rows, and stop above `MAX_BYTES`."""
    batches, size = [], 0
    for batch in file.iter_batches(batch_rows, columns=columns, use_threads=False):
        size += batch.nbytes
        if size > MAX_BYTES:
            raise pa.ArrowInvalid(f"it must have at most {MAX_BYTES} bytes, but has more")
        batches.append(batch)
    schema = batches[0].schema if batches else file.schema_arrow
    return pa.Table.from_batches(batches, schema).replace_schema_metadata(
        file.schema_arrow.metadata
    )


def _row_bytes(file: pq.ParquetFile, columns: list[str] | None) -> int:
    """Return an upper bound of a row's decoded bytes."""
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
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
            # A text, list or byte string has no fixed length, but fits its column chunk.
            row_bytes += max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    return row_bytes


def _check_types(file_schema: pa.Schema, schema: pa.Schema, columns: list[str] | None) -> None:
    for field in schema:
        if columns is not None and field.name not in columns:
            continue
        types = [column.type for column in file_schema if column.name == field.name]
        if types != [field.type]:
            actual = " and ".join(map(str, types)) or "missing"
            raise pa.ArrowInvalid(f"column {field.name} must be {field.type}, but is {actual}")


def _check_nulls(table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        if field.nullable or field.name not in table.column_names:
            continue
        if table.column(field.name).null_count:
            raise pa.ArrowInvalid(f"column {field.name} must have no empty value, but has some")
