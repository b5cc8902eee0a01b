"""Tables of any kind to rows of text: CSV, the first sheet of an Excel workbook, Parquet."""

import csv
import io
import re
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
from openpyxl.utils.exceptions import InvalidFileException

from mtil.data.shards import LABELS
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
    NotImplementedError,
    zlib.error,
)
"""What openpyxl raises on damaged workbooks."""
_MISSING = ("", "nan")
_SAME_KEY = {"bi_rads": "birads", "diagnosis": "histology"}
"""Columns that mean the same thing under another name."""

Lines = Iterator[tuple[int, list[str]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    where: str
    """What to call it in an error, such as `Line 3 of INFO.csv`."""
    values: Mapping[str, str]
    """Stripped text by lower-case column; what is missing is empty."""


def read_rows(
    store: Store, name: str, required: Sequence[str], *, delimiter: str | None = ","
) -> list[Row]:
    """Read a table by its suffix: `.xlsx`, `.parquet`, or else CSV.

    Columns without a name are no data. In a workbook, rows that are empty in the required columns
    are left out, as notes may stand beside the data.

    Args:
        store: what the name is relative to.
        name: the table.
        required: lower-case columns that it must have.
        delimiter: between a CSV file's values; none means a semicolon if the header has one.

    Raises:
        DataError: if it is missing or damaged, lacks a column, or has only its header.
    """
    kind = PurePosixPath(name).suffix.lower()
    if kind == ".xlsx":
        rows = _rows(_xlsx_lines(store, name), name, required, "Row", required)
    elif kind == ".parquet":
        rows = _rows(_parquet_lines(store, name), name, required, "Row", None)
    else:
        rows = _rows(_csv_lines(store, name, delimiter), name, required, "Line", None)
    if not rows:
        raise DataError(f"A table must have lines, but {name} has only its header.")
    return [Row(where, values) for _, where, values in rows]


def read_csv(
    store: Store, name: str, required: tuple[str, ...]
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header into (line number, values by column), without empty lines.

    Raises:
        DataError: if it is missing, is not UTF-8 text, or lacks a column or a value.
    """
    rows = _rows(_csv_lines(store, name, ","), name, required, "Line", None)
    return [(line, values) for line, _, values in rows]


def value(row: Row, column: str) -> str:
    """Return a value that must be there.

    Raises:
        DataError: if it is empty.
    """
    text = row.values[column]
    if text.lower() in _MISSING:
        raise DataError(f"{row.where} must have a value, but its `{column}` is empty.")
    return text


def label(text: str, where: str, classes: Mapping[str, str] | None = None) -> int:
    """Return a class's index into `LABELS`; case does not matter.

    Args:
        text: what the table calls it.
        where: the row, for an error.
        classes: class by lower-case other word for it.

    Raises:
        DataError: if there is no such class.
    """
    word = text.lower()
    known = (classes or {}).get(word, word)
    if known not in LABELS:
        others = "".join(f", {word}" for word in classes or {})
        raise DataError(
            f"{where} must have a label of {', '.join(LABELS)}{others}, but has {text!r}."
        )
    return LABELS.index(known)


def meta(values: Mapping[str, str], without: Collection[str]) -> dict[str, str]:
    """Return what a row says beside the columns that have a role, by key.

    A key is a column in lower-case snake; what means the same has the same key in every layout.
    Empty values are left out.
    """
    found: dict[str, str] = {}
    for column, text in values.items():
        snake = re.sub(r"[^0-9a-z]+", "_", column).strip("_")
        if column not in without and snake and text.lower() not in _MISSING:
            found.setdefault(_SAME_KEY.get(snake, snake), text)
    return found


def number(text: str, where: str, column: str) -> float:
    """Return a positive, finite number.

    Raises:
        DataError: if it is none.
    """
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise DataError(f"{where} must have a positive number in `{column}`, but has {text!r}.")
    return found


def _rows(
    lines: Lines,
    name: str,
    required: Sequence[str],
    word: str,
    deciding: Sequence[str] | None,
) -> list[tuple[int, str, dict[str, str]]]:
    """Return (number, what to call it, values by column) of each row that is not empty.

    A row is empty if it is so in the deciding columns, or everywhere if none decide.
    """
    first = next((values for _, values in lines if any(values)), [])
    header = [column.lower() for column in first]
    _check_header(header, name, required)
    rows = []
    for line, values in lines:
        if not any(values):
            continue
        where = f"{word} {line} of {name}"
        if len(values) != len(header):
            raise DataError(
                f"{where} must have {len(header)} values, as the header, but has {len(values)}; "
                "quote values that hold commas."
            )
        row = {column: text for column, text in zip(header, values, strict=True) if column}
        if any(row[column] for column in (row if deciding is None else deciding)):
            rows.append((line, where, row))
    return rows


def _check_header(header: Sequence[str], name: str, required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(
            f"{name} must have the columns {', '.join(required)}, but lacks "
            f"{', '.join(missing)}; its first line is {','.join(header)[:80]!r}."
        )
    for column in header:
        if column and header.count(column) > 1:
            raise DataError(
                f"A column must be given once, but {name} has {column!r} {header.count(column)} "
                "times; rename or remove one."
            )


def _csv_lines(store: Store, name: str, delimiter: str | None) -> Lines:
    try:
        text = _read(store, name, "a CSV file").decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"A table must be UTF-8 text, but {store.uri}/{name} is not.") from None
    if delimiter is None:
        delimiter = ";" if ";" in text.lstrip().partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for values in reader:
            yield reader.line_num, [value.strip() for value in values]
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of {name} is no CSV: {error}.") from None


def _xlsx_lines(store: Store, name: str) -> Lines:
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


def _parquet_lines(store: Store, name: str) -> Lines:
    data = _read(store, name, "a Parquet file")
    try:
        schema = pq.read_schema(io.BytesIO(data))
        columns = [field.name for field in schema if _is_text_like(field)]
        table = pq.read_table(io.BytesIO(data), columns=columns)
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(
            f"{store.uri}/{name} cannot be read as a Parquet file: {reason[:200]}; write it again."
        ) from None
    return _parquet_rows(table)


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
            f"A table must be {kind}, but {store.uri}/{name} is a folder or does not exist."
        ) from None
