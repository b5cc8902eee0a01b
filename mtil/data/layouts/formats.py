"""Read CSV and Parquet files into numbered lines of text, within bounds of memory and time."""

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

TableLines = Iterator[tuple[int, list[str]]]
"""Line number and stripped values of every line, header first."""

MAX_COLUMNS = 16_384
"""Most columns of a table, as in Excel."""
MAX_VALUE_LENGTH = 2**17
"""Longest value in characters, as in Python's CSV reader."""
_MAX_ROWS = 20_000_000
_MAX_UNCHECKED_ROWS = 100_000
"""Most rows accepted regardless of file size."""
# Names of images do not compress to less than 2 bits: a file with more rows per byte is no table of
# images, but may unfold to fill the memory.
_MAX_ROWS_PER_BYTE = 4

_PARQUET_ERRORS = (
    pa.ArrowException,
    OSError,
    ValueError,  # text that is not UTF-8
    OverflowError,
    LookupError,
    TypeError,
)
"""Exceptions raised by pyarrow on damaged files and damaged values."""
# The marks of UTF-32 come first, since the mark of UTF-16 is a prefix of UTF-32's.
_BYTE_ORDER_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
"""Byte order mark and encoding."""
_OTHER_FORMATS = (
    (b"PK\x03\x04", "a workbook or a ZIP archive; name it .xlsx or unpack it"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; save it as .xlsx or CSV"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"PAR1", "a Parquet file; name it .parquet"),
    (b"%PDF", "a PDF document; export its table as CSV"),
    (b"SQLite format 3", "a database; export its table as CSV"),
)
"""First bytes of other file formats, with a description and a remedy."""
_DELIMITERS = ",;\t"
_SEP_LINE = re.compile(r'\s*"?sep=(?P<mark>\\t|.)"?[ ,;\t]*', re.IGNORECASE)


def read_csv_lines(store: Store, name: str) -> TableLines:
    """Yield the lines of a CSV file.

    The delimiter is the most frequent of comma, semicolon and tab in the header, or the character
    given in a first line like `sep=;` (a convention of Excel). The encoding is UTF-8 unless a
    byte order mark gives UTF-16 or UTF-32.

    Raises:
        DataError: if the file is missing, has a different encoding, or is not CSV.
    """
    text = decode_csv(read_table_bytes(store, name, "a CSV file"), f"{store.uri}/{name}")
    first, _, _ = text.lstrip("\r\n").partition("\n")
    first = first.partition("\r")[0]
    sep_line = _SEP_LINE.fullmatch(first)
    num_skipped = 0
    if sep_line is not None:
        delimiter = "\t" if sep_line["mark"] == "\\t" else sep_line["mark"]
        before, _, text = text.partition(first)
        line_end = re.match(r"\r\n|\r|\n|", text)
        assert line_end is not None
        text = text[line_end.end() :]
        num_skipped = len(before.splitlines()) + 1
    else:
        delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            line = reader.line_num + num_skipped
            if len(values) > MAX_COLUMNS:
                raise DataError(describe_too_many_columns(name, len(values)))
            yield line, [value.strip() for value in values]
    except csv.Error as error:
        raise DataError(
            f"Line {reader.line_num + num_skipped} of {name} is not CSV: {error}; correct the line."
        ) from None


def decode_csv(data: bytes, name: str) -> str:
    """Return the text of a CSV file, in UTF-8 or in the encoding of a byte order mark.

    Raises:
        DataError: if the bytes are no text in the encoding, or are a known binary format.
    """
    # Check for binary formats first: the advice is more useful than a decoding error.
    for magic, kind in _OTHER_FORMATS:
        if data.startswith(magic):
            raise DataError(f"A table must be UTF-8 text, but {name} is {kind}.")
    encoding = next((code for mark, code in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"A table must be UTF-8 text, but {name} is not: line {line} has the byte "
            f"0x{data[error.start]:02x}, as text in Latin-1, Windows-1252 or GBK; save the file as "
            "UTF-8."
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"A table must be UTF-8 text, but {name} has a NUL byte in line {line}, as UTF-16 "
            "without a byte order mark; save the file as UTF-8."
        )
    return text


def read_parquet_lines(store: Store, name: str) -> TableLines:
    """Return the lines of a Parquet file, without columns of bytes, structs or maps.

    Raises:
        DataError: if the file is missing, damaged, or too large for a table of images.
    """
    data = read_table_bytes(store, name, "a Parquet file")
    try:
        schema = pq.read_schema(pa.BufferReader(data))
        columns = [field.name for field in schema if _is_text_like(field)]
        texts = [field.name for field in schema if _is_text(field.type)]
        # Dictionaries keep a text once, however often a small file repeats a long text.
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=texts)
        _check_size(file.metadata, len(data), name)
        # Threads of a read could abort a process during exit (see `mtil.parquet`).
        table = file.read(columns, use_threads=False).select(columns)
        _check_value_lengths(table, name)
        # Convert all rows here, since damaged values only raise on conversion.
        return iter(list(_parquet_rows(table)))
    except _PARQUET_ERRORS as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as a Parquet file: {reason[:200]}; "
            "write the file again."
        ) from None


def _check_size(metadata: pq.FileMetaData, num_bytes: int, name: str) -> None:
    """Raise `DataError` for more rows or columns than a table of images can have."""
    if metadata.num_columns > MAX_COLUMNS:
        raise DataError(describe_too_many_columns(name, metadata.num_columns))
    num_rows = metadata.num_rows
    if num_rows > _MAX_ROWS or (
        num_rows > _MAX_UNCHECKED_ROWS and num_rows > _MAX_ROWS_PER_BYTE * num_bytes
    ):
        raise DataError(
            f"A table must have a row an image, but {name} has {num_rows} rows in {num_bytes} "
            "bytes; write a table of at most "
            f"{min(_MAX_ROWS, max(_MAX_UNCHECKED_ROWS, _MAX_ROWS_PER_BYTE * num_bytes))} rows."
        )


def _check_value_lengths(table: pa.Table, name: str) -> None:
    for column, values in zip(table.column_names, table.columns, strict=True):
        for chunk in values.chunks:
            texts = chunk.dictionary if pa.types.is_dictionary(chunk.type) else chunk
            if _is_text(texts.type) and len(texts):
                longest = pa.compute.max(pa.compute.binary_length(texts)).as_py() or 0
                if longest > MAX_VALUE_LENGTH:
                    raise DataError(
                        f"A value of a table must have at most {MAX_VALUE_LENGTH} letters, but "
                        f"{name} has "
                        f"{longest} in {column!r}; shorten the value."
                    )


def _parquet_rows(table: pa.Table) -> TableLines:
    yield 0, [column.strip() for column in table.column_names]
    line = 0
    for batch in table.to_batches():
        columns = [_column_to_texts(column) for column in batch.columns]
        for values in zip(*columns, strict=True):
            line += 1
            yield line, list(values)


def _column_to_texts(column: pa.Array) -> Sequence[str]:
    """Return a column's values as text; equal values of a dictionary share a string object."""
    if not pa.types.is_dictionary(column.type):
        return [format_cell(value) for value in column.to_pylist()]
    words = [format_cell(value) for value in column.dictionary.to_pylist()]
    codes = column.indices.fill_null(len(words)).to_numpy(zero_copy_only=False)
    words.append("")
    return [words[code] for code in np.asarray(codes).tolist()]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_text_like(field: pa.Field) -> bool:
    """Return whether a column can be text, unlike pixels and a data frame's index."""
    kind = field.type
    return not (
        field.name.startswith("__")  # pandas' `__index_level_0__`
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_struct(kind)
        or pa.types.is_map(kind)
    )


def format_cell(value: object) -> str:
    """Return a value of a workbook or Parquet file as text, as written in a CSV file."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    # Whole numbers often arrive as floats; patient 7 must not become "7.0".
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple | set):
        return "|".join(format_cell(item) for item in value)
    return str(value).strip()


def describe_too_many_columns(name: str, num_columns: int) -> str:
    """Return the error message for a table with more than `MAX_COLUMNS` columns."""
    return (
        f"A table must have at most {MAX_COLUMNS} columns, but {name} has {num_columns}; "
        "remove some."
    )


def read_table_bytes(store: Store, name: str, kind: str) -> bytes:
    """Return the bytes of a table.

    Args:
        store: store of the table.
        name: name of the table in the store.
        kind: expected kind of file with article, for the error.

    Raises:
        DataError: if the file is missing.
    """
    try:
        return store.read(name)
    except NotFoundError:
        raise DataError(
            f"A table must be {kind}, but {store.uri}/{name} is a folder or does not exist; name "
            "the file itself."
        ) from None
