"""CSV, Excel and Parquet files to numbered lines of text, within bounds of memory and time."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

Lines = Iterator[tuple[int, list[str]]]
"""A line's number and its stripped values, the header's first."""

MAX_COLUMNS = 16_384
"""Of any table, as many as Excel has."""
MAX_VALUE = 2**17
"""Characters of one value, as many as Python's CSV reader takes."""
_MAX_ROWS = 20_000_000
_FREE_ROWS = 100_000
_ROWS_PER_BYTE = 4
"""Names of images do not compress to less than 2 bits, so that more rows are no table of images."""

_BROKEN_PARQUET = (
    pa.ArrowException,
    OSError,
    ValueError,  # text that is not UTF-8
    OverflowError,
    LookupError,
    TypeError,
)
"""What pyarrow raises on damaged files, the values of their columns included."""
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
"""Byte order marks, which say how text is encoded."""
_OTHER_KINDS = (
    (b"PK\x03\x04", "a workbook or a ZIP archive; name it .xlsx or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as .xlsx or CSV"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"%PDF", "a PDF document; export its table as CSV"),
    (b"SQLite format 3", "a database; export its table as CSV"),
)
_DELIMITERS = ",;\t"
_SEP_LINE = re.compile(r'\s*"?sep=(?P<mark>\\t|.)"?[ ,;\t]*', re.IGNORECASE)


def csv_lines(store: Store, name: str) -> Lines:
    """Yield the lines of a CSV file, parted by commas, semicolons or tabs as its header is.

    A first line such as `sep=;`, by which Excel is told the delimiter, is taken as that. Text is
    UTF-8, or what a byte order mark says.

    Raises:
        DataError: if it is missing, is no such text, or is no CSV.
    """
    text = decode(read(store, name, "a CSV file"), f"{store.uri}/{name}")
    first, _, _ = text.lstrip("\r\n").partition("\n")
    first = first.partition("\r")[0]
    sep = _SEP_LINE.fullmatch(first)
    skipped = 0
    if sep is not None:
        delimiter = "\t" if sep["mark"] == "\\t" else sep["mark"]
        before, _, text = text.partition(first)
        end = re.match(r"\r\n|\r|\n|", text)
        assert end is not None
        text = text[end.end() :]
        skipped = len(before.splitlines()) + 1
    else:
        delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            line = reader.line_num + skipped
            if len(values) > MAX_COLUMNS:
                raise DataError(too_many_columns(name, len(values)))
            yield line, [value.strip() for value in values]
    except csv.Error as error:
        raise DataError(
            f"Line {reader.line_num + skipped} of {name} is no CSV: {error}; correct it."
        ) from None


def decode(data: bytes, name: str) -> str:
    """Return a file's text.

    Raises:
        DataError: if it is not text in UTF-8 or in what its byte order mark says.
    """
    for magic, kind in _OTHER_KINDS:
        if data.startswith(magic):
            raise DataError(f"A table must be UTF-8 text, but {name} is {kind}.")
    encoding = next((code for mark, code in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"A table must be UTF-8 text, but {name} is not: its line {line} has the byte "
            f"0x{data[error.start]:02x}, as text in Latin-1, Windows-1252 or GBK; save it as UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"A table must be UTF-8 text, but {name} has a NUL byte in line {line}, as UTF-16 "
            "without a byte order mark; save it as UTF-8."
        )
    return text


def parquet_lines(store: Store, name: str) -> Lines:
    """Return the rows of a Parquet file, without columns that cannot be said in words.

    Raises:
        DataError: if it is missing, damaged, or larger than a table of images can be.
    """
    data = read(store, name, "a Parquet file")
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        columns = [field.name for field in schema if _is_text_like(field)]
        texts = [field.name for field in schema if _is_text(field.type)]
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        _check_size(file.metadata, len(data), name)
        table = file.read(columns, use_threads=False).select(columns)
        _check_values(table, name)
        return iter(list(_parquet_rows(table)))
    except _BROKEN_PARQUET as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as a Parquet file: {reason[:200]}; write it again."
        ) from None


def _check_size(metadata: pq.FileMetaData, num_bytes: int, name: str) -> None:
    """Refuse a file whose few bytes stand for more rows or columns than a table can have."""
    if metadata.num_columns > MAX_COLUMNS:
        raise DataError(too_many_columns(name, metadata.num_columns))
    rows = metadata.num_rows
    if rows > _MAX_ROWS or (rows > _FREE_ROWS and rows > _ROWS_PER_BYTE * num_bytes):
        raise DataError(
            f"A table must have a row an image, but {name} has {rows} rows in {num_bytes} bytes; "
            "write one of at most "
            f"{min(_MAX_ROWS, max(_FREE_ROWS, _ROWS_PER_BYTE * num_bytes))} rows."
        )


def _check_values(table: pa.Table, name: str) -> None:
    for column, values in zip(table.column_names, table.columns, strict=True):
        for chunk in values.chunks:
            held = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            if _is_text(held.type) and len(held):
                longest = pa.compute.max(pa.compute.binary_length(held)).as_py() or 0
                if longest > MAX_VALUE:
                    raise DataError(
                        f"A value of a table must have at most {MAX_VALUE} letters, but {name} has "
                        f"{longest} in {column!r}; remove them."
                    )


def _parquet_rows(table: pa.Table) -> Lines:
    yield 0, [column.strip() for column in table.column_names]
    line = 0
    for batch in table.to_batches():
        columns = [_texts(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            line += 1
            yield line, list(values)


def _texts(column: pa.Array) -> Sequence[str]:
    """Return a column's values as text; equal ones of a dictionary share one string."""
    if not pa.types.is_dictionary(column.type):
        return [as_text(value) for value in column.to_pylist()]
    words = [as_text(value) for value in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    words.append("")
    return [words[code] for code in np.asarray(codes).tolist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text_like(field: pa.Field) -> bool:
    """Say whether a column can be said in words, as pixels and a data frame's index cannot."""
    kind = field.type
    return not (
        field.name.startswith("__")
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_struct(kind)
        or pa.types.is_map(kind)
    )


def as_text(value: object) -> str:
    """Return a value of a workbook or Parquet file as a CSV file would have it."""
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple | set):
        return "|".join(as_text(item) for item in value)
    return str(value).strip()


def too_many_columns(name: str, number: int) -> str:
    """Return why a table with so many columns is refused."""
    return f"A table must have at most {MAX_COLUMNS} columns, but {name} has {number}; remove some."


def read(store: Store, name: str, kind: str) -> bytes:
    """Return a table's bytes.

    Raises:
        DataError: if it is missing.
    """
    try:
        return store.read(name)
    except NotFoundError:
        raise DataError(
            f"A table must be {kind}, but {store.uri}/{name} is a folder or does not exist; name "
            "the file itself."
        ) from None
