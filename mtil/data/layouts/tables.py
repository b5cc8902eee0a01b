"""Tables of any kind to rows of text: CSV, a sheet of an Excel workbook, Parquet."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import without_suffix
from mtil.data.layouts.formats import Lines, csv_lines, parquet_lines
from mtil.data.layouts.record import Record, refused
from mtil.data.layouts.workbooks import UNCOMPUTED, xlsx_lines
from mtil.data.names import composed
from mtil.errors import DataError
from mtil.storage import Store

_MISSING = ("", "nan")
_ERRORS = (
    "#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!",
    "#FIELD!", "#BLOCKED!", "#CONNECT!", "#GETTING_DATA", "#UNKNOWN!", UNCOMPUTED,
)  # fmt: skip
"""What spreadsheet programs write for a formula that has no result."""
_SAME_KEY = {"bi_rads": "birads", "diagnosis": "histology"}
"""Columns that mean the same thing under another name."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    where: str
    """What to call it in an error, such as `Line 3 of INFO.csv`."""
    values: Mapping[str, str]
    """Stripped text by lower-case column; what is missing is empty."""
    wrong: str | None = None
    """Why it cannot be used, if a formula in it has no result."""


def read_rows(
    store: Store,
    name: str,
    required: Sequence[str],
    notes: list[str] | None = None,
    optional: Sequence[str] = (),
    *,
    one_sheet: bool = False,
) -> list[Row]:
    """Read a table by its suffix: `.xlsx`, `.parquet`, or else CSV, which may be parted by tabs.

    Columns without a name are no data. In a workbook, rows that are empty in the required columns
    are left out, as notes may stand beside the data; of columns of one name that are not required
    the first counts there.

    Args:
        store: what the name is relative to.
        name: the table.
        required: lower-case columns that it must have.
        notes: takes sentences about hidden and merged cells.
        optional: more columns with a role, in which the error of a formula is refused too.
        one_sheet: whether a workbook is refused if more than one sheet has the columns, instead of
            taking the first.

    Raises:
        DataError: if it is missing or damaged, lacks a column, or has only its header.
    """
    kind = PurePosixPath(name).suffix.lower()
    roles = (*required, *optional)
    if kind in (".xlsx", ".xlsm"):
        lines = xlsx_lines(
            store, name, required, [] if notes is None else notes, one_sheet=one_sheet
        )
        rows = _rows(lines, name, required, "Row", required, roles)
    elif kind == ".parquet":
        rows = _rows(parquet_lines(store, name), name, required, "Row", None, roles)
    else:
        rows = _rows(csv_lines(store, name), name, required, "Line", None, roles)
    if not rows:
        raise DataError(
            f"A table must have lines, but {name} has only its header; add a line an image."
        )
    return rows


def has_columns(store: Store, name: str, required: Sequence[str]) -> bool:
    """Say whether a file is a table with these lower-case columns."""
    try:
        return bool(read_rows(store, name, required))
    except DataError:
        return False


def read_each(
    rows: Iterable[Row],
    read: Callable[[Row], Record],
    sample_id: Callable[[Row], str],
    files: Callable[[Row], tuple[str, tuple[str, ...]]],
) -> list[Record]:
    """Return a record of each row, refused where the row is wrong.

    Args:
        rows: of one table.
        read: makes the record, or raises a `DataError` that says what is wrong.
        sample_id: the id of a row; empty if it has none.
        files: the image and the masks that a row names, as far as they are there.
    """
    records = []
    for row in rows:
        try:
            if row.wrong is not None:
                raise DataError(row.wrong)
            records.append(read(row))
        except DataError as error:
            records.append(refused(sample_id(row) or row.where, str(error), *files(row)))
    return records


def stem(text: str) -> str:
    """Return an image's name without the suffix that a table may give it."""
    return composed(without_suffix(text))


def value(row: Row, column: str) -> str:
    """Return a value that must be there.

    Raises:
        DataError: if it is empty.
    """
    text = row.values[column]
    if text.lower() in _MISSING:
        raise DataError(f"{row.where} must have a value, but its `{column}` is empty; fill it in.")
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
            f"{where} must have a label of {', '.join(LABELS)}{others}, but has {text!r}; "
            "correct it or remove the row."
        )
    return LABELS.index(known)


def meta(values: Mapping[str, str], without: Collection[str]) -> dict[str, str]:
    """Return what a row says beside the columns that have a role, by key.

    A key is a column in lower-case snake; what means the same has the same key in every layout.
    Empty values are left out.
    """
    found: dict[str, str] = {}
    for column, text in values.items():
        snake = _snake(column)
        if column not in without and snake and text.lower() not in _MISSING:
            found.setdefault(_SAME_KEY.get(snake, snake), text)
    return found


@lru_cache(2**15)
def _snake(column: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", column).strip("_")


def number(text: str, where: str, column: str) -> float:
    """Return a positive, finite number; its decimals may come after a comma.

    Raises:
        DataError: if it is none.
    """
    try:
        found = float(text.replace(",", ".", 1))
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise DataError(
            f"{where} must have a positive number in `{column}`, but has {text!r}; correct it or "
            "leave it empty."
        )
    return found


def _rows(
    lines: Lines,
    name: str,
    required: Sequence[str],
    word: str,
    deciding: Sequence[str] | None,
    roles: Sequence[str],
) -> list[Row]:
    """Return the rows of a table, without empty ones.

    A row is empty if it is so in the deciding columns, or everywhere if none decide.
    """
    first = next((values for _, values in lines if any(values)), [])
    header = [composed(column.lower()) for column in first]
    if deciding is not None:  # what stands beside a workbook's data may have a header like its own
        seen: set[str] = set()
        for at, column in enumerate(header):
            if column not in required and column in seen:
                header[at] = ""
            seen.add(column)
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
            rows.append(Row(where, row, _uncomputed(row, where, roles)))
    return rows


def _uncomputed(row: dict[str, str], where: str, roles: Sequence[str]) -> str | None:
    """Say which column with a role holds the error of a formula; empty the other columns."""
    wrong = None
    for column, text in row.items():
        if text.startswith("#") and text.upper() in _ERRORS:
            if column not in roles:
                row[column] = ""
            elif wrong is None:
                said = "a formula without a saved result" if text == UNCOMPUTED else text
                wrong = (
                    f"{where} must have a value, but its `{column}` is {said}; correct the formula "
                    "or save the workbook again with its results."
                )
    return wrong


def _check_header(header: Sequence[str], name: str, required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(
            f"{name} must have the columns {', '.join(required)}, but lacks "
            f"{', '.join(missing)}; add them to its first line, which is "
            f"{','.join(header)[:80]!r}."
        )
    for column, times in Counter(header).items():
        if column and times > 1:
            raise DataError(
                f"A column must be given once, but {name} has {column!r} {times} times; rename or "
                "remove one."
            )
