"""CSV files, the first sheet of Excel workbooks and Parquet files to numbered lines of text."""

import csv
import io
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.utils.exceptions import InvalidFileException

from mtil import parquet
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

_BROKEN_WORKBOOK = (
    zipfile.BadZipFile,
    InvalidFileException,
    SyntaxError,  # what both XML parsers raise
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    EOFError,
    OSError,
    RuntimeError,  # a workbook with a password
    zlib.error,
)
"""What openpyxl raises on damaged workbooks."""
_BROKEN_PARQUET = (
    pa.ArrowException,
    OSError,
    ValueError,  # text that is not UTF-8
    OverflowError,
    LookupError,
    TypeError,
)
"""What pyarrow raises on damaged files, the values of their columns included."""

Lines = Iterator[tuple[int, list[str]]]
"""A line's number and its stripped values, the header's first."""


def csv_lines(store: Store, name: str) -> Lines:
    """Yield the lines of a CSV file, parted by commas, semicolons or tabs as its header is.

    Raises:
        DataError: if it is missing, is not UTF-8 text, or is no CSV.
    """
    try:
        text = _read(store, name, "a CSV file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(
            f"A table must be UTF-8 text, but {store.uri}/{name} is not; save it as UTF-8."
        ) from None
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            yield reader.line_num, [value.strip() for value in values]
    except csv.Error as error:
        raise DataError(
            f"Line {reader.line_num} of {name} is no CSV: {error}; correct it."
        ) from None


def xlsx_lines(store: Store, name: str) -> Lines:
    """Return the rows of a workbook's first sheet, all of one width.

    Raises:
        DataError: if it is missing or damaged.
    """
    data = _read(store, name, "an Excel workbook")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that it leaves out
            workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheet = workbook.worksheets[0]
            sheet.reset_dimensions()  # what the file claims may be wrong
            rows = [[_text(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
            workbook.close()
    except _BROKEN_WORKBOOK as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as an Excel workbook: {reason}; "
            "fetch it again or save it as .xlsx."
        ) from None
    width = max(map(len, rows), default=0)
    return ((line, row + [""] * (width - len(row))) for line, row in enumerate(rows, start=1))


def parquet_lines(store: Store, name: str) -> Lines:
    """Return the rows of a Parquet file, without columns that cannot be said in words.

    Raises:
        DataError: if it is missing or damaged.
    """
    data = _read(store, name, "a Parquet file")
    try:
        schema = pq.read_schema(io.BytesIO(data))
        columns = [field.name for field in schema if _is_text_like(field)]
        return iter(list(_parquet_rows(parquet.read(data, columns))))
    except _BROKEN_PARQUET as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as a Parquet file: {reason[:200]}; write it again."
        ) from None


def _parquet_rows(table: pa.Table) -> Lines:
    yield 0, [column.strip() for column in table.column_names]
    line = 0
    for batch in table.to_batches():
        columns = [column.to_pylist() for column in batch.columns]
        for values in zip(*columns, strict=True):
            line += 1
            yield line, [_text(value) for value in values]


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


def _text(value: object) -> str:
    if value is None or value != value:  # not a number
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "|".join(_text(item) for item in value)
    return str(value).strip()


def _read(store: Store, name: str, kind: str) -> bytes:
    try:
        return store.read(name)
    except NotFoundError:
        raise DataError(
            f"A table must be {kind}, but {store.uri}/{name} is a folder or does not exist; name "
            "the file itself."
        ) from None
