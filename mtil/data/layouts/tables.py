"""Read tables (CSV, a sheet of an Excel workbook, Parquet) into rows of text."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import strip_image_suffix
from mtil.data.layouts.formats import TableLines, read_csv_lines, read_parquet_lines
from mtil.data.layouts.record import Record, make_refused_record
from mtil.data.layouts.workbooks import UNCOMPUTED_FORMULA, read_xlsx_lines
from mtil.data.names import compose_unicode
from mtil.errors import DataError
from mtil.storage import Store

_EMPTY_WORDS = ("", "nan")
_FORMULA_ERRORS = (
    "#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!",
    "#FIELD!", "#BLOCKED!", "#CONNECT!", "#GETTING_DATA", "#UNKNOWN!", UNCOMPUTED_FORMULA,
)  # fmt: skip
"""Texts of spreadsheet programs for a formula without a result."""
_META_ALIASES = {"bi_rads": "birads", "diagnosis": "histology"}
"""Common meta key by alternative column name."""


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row of a table."""

    where: str
    """Name of the row in errors, for example `Line 3 of INFO.csv`."""
    values: Mapping[str, str]
    """Stripped text by lower-case column; missing values are empty."""
    wrong: str | None = None
    """Why the row is unusable: a formula without a result in a column with a role."""


def read_rows(
    store: Store,
    name: str,
    required: Sequence[str],
    notes: list[str] | None = None,
    optional: Sequence[str] = (),
    *,
    one_sheet: bool = False,
) -> list[TableRow]:
    """Read the rows of a table, in the format given by the suffix.

    Suffixes `.xlsx` and `.xlsm` are Excel, `.parquet` is Parquet, all others are CSV. Columns
    without a name are skipped. In a workbook, rows with empty required columns are skipped, and
    the first of several optional columns with equal names is used.

    Args:
        store: store of the table.
        name: name of the table in the store.
        required: lower-case names of the required columns.
        notes: list to append sentences about hidden and merged cells to.
        optional: further columns with a role, where a formula error also makes a row unusable.
        one_sheet: whether to refuse a workbook with the columns in several sheets. By default
            the first sheet is read.

    Raises:
        DataError: if the table is missing or damaged, lacks a column, or has no row.
    """
    suffix = PurePosixPath(name).suffix.lower()
    roles = (*required, *optional)
    if suffix in (".xlsx", ".xlsm"):
        lines = read_xlsx_lines(
            store, name, required, [] if notes is None else notes, one_sheet=one_sheet
        )
        # Notes and legends beside the table fill rows without data.
        rows = _build_rows(lines, name, required, "Row", required, roles)
    elif suffix == ".parquet":
        rows = _build_rows(read_parquet_lines(store, name), name, required, "Row", None, roles)
    else:
        rows = _build_rows(read_csv_lines(store, name), name, required, "Line", None, roles)
    if not rows:
        raise DataError(
            f"A table must have rows, but {name} has only a header; add a row per image."
        )
    return rows


def has_columns(store: Store, name: str, required: Sequence[str]) -> bool:
    """Return whether a file is a readable table with the required lower-case columns."""
    try:
        return bool(read_rows(store, name, required))
    except DataError:
        return False


def read_records(
    rows: Iterable[TableRow],
    read: Callable[[TableRow], Record],
    sample_id: Callable[[TableRow], str],
    files: Callable[[TableRow], tuple[str, tuple[str, ...]]],
) -> list[Record]:
    """Return a record for every row; an unusable row becomes a refused record.

    Args:
        rows: rows of a table.
        read: builds the record of a row, or raises a `DataError` with the reason for refusal.
        sample_id: returns the sample id of a row, empty if missing.
        files: returns the image and the masks of a row, as far as the files exist.
    """
    records = []
    for row in rows:
        try:
            if row.wrong is not None:
                raise DataError(row.wrong)
            records.append(read(row))
        except DataError as error:
            # Refuse the row only: all unusable images are reported together.
            records.append(
                make_refused_record(sample_id(row) or row.where, str(error), *files(row))
            )
    return records


def image_stem(text: str) -> str:
    """Return an image name without image suffix, in Unicode's composed form."""
    return compose_unicode(strip_image_suffix(text))


def require_value(row: TableRow, column: str) -> str:
    """Return a required value of a row.

    Raises:
        DataError: if the value is empty.
    """
    text = row.values[column]
    if text.lower() in _EMPTY_WORDS:
        raise DataError(
            f"{row.where} must have a value, but its `{column}` is empty; fill the cell in."
        )
    return text


def parse_label(text: str, where: str, classes: Mapping[str, str] | None = None) -> int:
    """Return the index into `LABELS` for a table's word for a class, in any case.

    Args:
        text: the table's word.
        where: name of the row, for an error.
        classes: class by further lower-case words.

    Raises:
        DataError: if the word names no class.
    """
    word = text.lower()
    label_name = (classes or {}).get(word, word)
    if label_name not in LABELS:
        further = "".join(f", {word}" for word in classes or {})
        raise DataError(
            f"{where} must have a label of {', '.join(LABELS)}{further}, but has {text!r}; "
            "correct the label or remove the row."
        )
    return LABELS.index(label_name)


def collect_meta(values: Mapping[str, str], without: Collection[str]) -> dict[str, str]:
    """Return the non-empty values of a row by meta key, without the columns with a role.

    A meta key is the column name in snake case. Alternative names like `diagnosis` map to
    the same key in all layouts.
    """
    by_key: dict[str, str] = {}
    for column, text in values.items():
        snake = _to_snake_case(column)
        if column not in without and snake and text.lower() not in _EMPTY_WORDS:
            by_key.setdefault(_META_ALIASES.get(snake, snake), text)
    return by_key


# Called for every cell of a table, with few distinct columns.
@lru_cache(2**15)
def _to_snake_case(column: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", column).strip("_")


def parse_positive_number(text: str, where: str, column: str) -> float:
    """Return a positive, finite number, written with a decimal point or comma.

    Raises:
        DataError: if the text is not a positive, finite number.
    """
    try:
        parsed = float(text.replace(",", ".", 1))
    except ValueError:
        parsed = 0.0
    if not 0 < parsed < float("inf"):
        raise DataError(
            f"{where} must have a positive number in `{column}`, but has {text!r}; correct the "
            "number or clear the cell."
        )
    return parsed


def _build_rows(
    lines: TableLines,
    name: str,
    required: Sequence[str],
    row_word: str,
    deciding: Sequence[str] | None,
    roles: Sequence[str],
) -> list[TableRow]:
    """Return the non-empty rows of a table.

    Args:
        lines: numbered lines, header first.
        name: name of the table, for errors.
        required: lower-case names of the required columns.
        row_word: `Row` or `Line`, for errors.
        deciding: a row is empty if all deciding columns are empty; None means all columns.
        roles: columns with a role.
    """
    first = next((values for _, values in lines if any(values)), [])
    header = [compose_unicode(column.lower()) for column in first]
    if deciding is not None:
        # A legend beside a workbook's data may repeat a column name of the data.
        seen: set[str] = set()
        for index, column in enumerate(header):
            if column not in required and column in seen:
                header[index] = ""
            seen.add(column)
    _check_header(header, name, required)
    rows = []
    for line, values in lines:
        if not any(values):
            continue
        where = f"{row_word} {line} of {name}"
        if len(values) != len(header):
            raise DataError(
                f"{where} must have {len(header)} values, as the header, but has {len(values)}; "
                "quote values with commas."
            )
        row = {column: text for column, text in zip(header, values, strict=True) if column}
        if any(row[column] for column in (row if deciding is None else deciding)):
            rows.append(TableRow(where, row, _refuse_formula_errors(row, where, roles)))
    return rows


def _refuse_formula_errors(row: dict[str, str], where: str, roles: Sequence[str]) -> str | None:
    """Return the reason for refusing a row with a formula error in a column with a role.

    Formula errors in columns without a role are cleared in place.
    """
    why = None
    for column, text in row.items():
        if text.startswith("#") and text.upper() in _FORMULA_ERRORS:
            if column not in roles:
                row[column] = ""
            elif why is None:
                content = "a formula without a saved result" if text == UNCOMPUTED_FORMULA else text
                why = (
                    f"{where} must have a value, but its `{column}` is {content}; correct the "
                    "formula or save the workbook again with its results."
                )
    return why


def _check_header(header: Sequence[str], name: str, required: Sequence[str]) -> None:
    missing = [column for column in required if column not in header]
    if missing:
        raise DataError(
            f"{name} must have the columns {', '.join(required)}, but lacks "
            f"{', '.join(missing)}; add the columns to the first line, which is "
            f"{','.join(header)[:80]!r}."
        )
    for column, times in Counter(header).items():
        if column and times > 1:
            raise DataError(
                f"A column must be given once, but {name} has {column!r} {times} times; rename or "
                "remove the repetition."
            )
