"""Excel workbooks to numbered lines of text: merged cells are filled, sizes are bounded.

openpyxl's read-only worksheets do not know merged cells, and its others make an object of every
cell of a merged range, however large. Its parser of single rows is used without either.
"""

import io
import re
import warnings
import zipfile
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree.ElementTree import Element

from openpyxl.reader.excel import ExcelReader
from openpyxl.styles.stylesheet import apply_stylesheet
from openpyxl.utils import range_boundaries
from openpyxl.utils.exceptions import InvalidFileException
from openpyxl.worksheet._reader import COL_TAG, FORMULA_TAG, ROW_TAG, WorkSheetParser
from openpyxl.xml.constants import SHEET_MAIN_NS
from openpyxl.xml.functions import iterparse

from mtil.data.layouts.formats import MAX_COLUMNS, Lines, as_text, read, too_many_columns
from mtil.errors import DataError
from mtil.storage import Store

UNCOMPUTED = "#FORMULA!"
"""Stands for a formula whose result the workbook does not hold."""
MAX_ROWS = 1_048_576
"""Of a sheet in Excel."""
_MAX_VALUES = 20_000_000
_MAX_BYTES = 256 * 2**20
"""Of all XML parts together, unpacked."""
_MAX_SMALL_BYTES = 8 * 2**20
"""Of an XML part that is neither a sheet nor the strings."""
_LARGE = ("xl/worksheets/", "xl/sharedstrings")
_MAX_PARTS = 10_000
_MAX_DEPTH = 64
_MAX_ELEMENTS = {"c": 5_000_000, "row": MAX_ROWS, "si": 1_000_000, "mergeCell": MAX_ROWS}
"""Cells, rows, strings and merged ranges of a workbook."""
_MAX_TAGS = 30_000_000
_TAG = re.compile(rb"<(?:\w+:)?(c|row|si|mergeCell)[\s/>]")
_FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY", b"\0")
"""What no spreadsheet program writes, and by which a small file can unfold without end."""
_PIECE, _OVERLAP = 2**20, 16
_MERGE_TAG = f"{{{SHEET_MAIN_NS}}}mergeCell"

_BROKEN = (
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
    OverflowError,
    zlib.error,
)
"""What openpyxl raises on damaged workbooks."""


@dataclass
class _Sheet:
    """One sheet, of which rows are added as they are read."""

    title: str
    path: str
    visible: bool
    header: list[str] = field(default_factory=list)
    """Lower-case values of the first row that holds any."""
    rows: dict[int, dict[int, str]] = field(default_factory=dict)
    """Text by row and column; empty cells are left out."""
    merged: list[str] = field(default_factory=list)
    hidden_rows: list[int] = field(default_factory=list)
    hidden_columns: set[int] = field(default_factory=set)


def xlsx_lines(
    store: Store, name: str, required: Sequence[str], notes: list[str], *, one_sheet: bool
) -> Lines:
    """Return the rows of the first sheet that has the required columns.

    Args:
        store: what the name is relative to.
        name: the workbook.
        required: lower-case columns.
        notes: takes sentences about hidden and merged cells and other sheets.
        one_sheet: whether several sheets with the columns are refused.

    Raises:
        DataError: if it is missing, damaged or too large, or has too many or only hidden sheets.
    """
    data = read(store, name, "an Excel workbook")
    try:
        _check(data, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that it leaves out
            sheet, others = _read(data, required, name)
    except DataError:
        raise
    except _BROKEN as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as an Excel workbook: {reason[:200]}; "
            "fetch it again or save it as .xlsx."
        ) from None
    if others:
        shown = ", ".join(repr(other.title) for other in others[:4])
        if one_sheet:
            raise DataError(
                f"A workbook must have one sheet with the columns {', '.join(required)}, but "
                f"{name} has {sheet.title!r}, {shown}; keep one, or save one as CSV."
            )
        notes.append(f"{name} is read by its sheet {sheet.title!r} only, not {shown}.")
    width = max(sheet.rows[min(sheet.rows)], default=0) if sheet.rows else 0
    if width > MAX_COLUMNS:
        raise DataError(too_many_columns(name, width))
    if width * len(sheet.rows) > _MAX_VALUES:
        raise DataError(_too_large(name, f"{len(sheet.rows)} rows of {width} columns"))
    notes += _notes(sheet, name, _fill(sheet, width, name))
    return (
        (line, [values.get(column, "") for column in range(1, width + 1)])
        for line, values in sorted(sheet.rows.items())
    )


def _read(data: bytes, required: Sequence[str], name: str) -> tuple[_Sheet, list[_Sheet]]:
    """Return the first sheet that has the required columns, and the others that have them.

    If none has them, the first visible sheet is returned.

    Raises:
        DataError: if only a hidden sheet has the columns.
    """
    reader = ExcelReader(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    with reader.archive:
        reader.read_manifest()
        reader.read_strings()
        reader.read_workbook()
        apply_stylesheet(reader.archive, reader.wb)
        sheets = [
            _Sheet(sheet.name, rel.target, (sheet.state or "visible") == "visible")
            for sheet, rel in reader.parser.find_sheets()
            if rel.target in reader.valid_files and "chartsheet" not in rel.Type
        ]
        for sheet in sheets:
            _read_rows(reader, sheet, name, only_header=True)
        fitting = [sheet for sheet in sheets if set(required) <= set(sheet.header)]
        visible = [sheet for sheet in fitting if sheet.visible]
        if fitting and not visible:
            raise DataError(
                f"A sheet must be visible to be read, but {fitting[0].title!r} of {name} is "
                "hidden; unhide or delete it."
            )
        chosen = [*visible, *(sheet for sheet in sheets if sheet.visible), *sheets][0]
        _read_rows(reader, chosen, name)
        return chosen, visible[1:]


def _read_rows(reader: Any, sheet: _Sheet, name: str, *, only_header: bool = False) -> None:
    with reader.archive.open(sheet.path) as source:
        book = reader.wb
        parser = _Parser(
            source,
            reader.shared_strings,
            data_only=True,
            epoch=book.epoch,
            date_formats=book._date_formats,
            timedelta_formats=book._timedelta_formats,
        )
        for line, cells in parser.read(name, sheet):
            if line > MAX_ROWS:
                raise DataError(_too_large(name, f"a row {line}"))
            row = {cell["column"]: text for cell in cells if (text := as_text(cell["value"]))}
            if row and only_header:
                sheet.header = [text.lower() for text in row.values()]
                return
            if row:
                sheet.rows.setdefault(line, {}).update(row)


class _Parser(WorkSheetParser):
    """Reads rows and what is merged or hidden; forgets every other element at once."""

    def read(self, name: str, sheet: _Sheet) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield the number and the cells of each row."""
        above: list[Element] = []
        rows = 0
        for event, element in iterparse(self.source, events=("start", "end")):
            if event == "start":
                above.append(element)
                rows += element.tag == ROW_TAG
                if len(above) > _MAX_DEPTH:
                    raise DataError(_too_large(name, f"elements {len(above)} deep"))
                continue
            above.pop()
            if element.tag == ROW_TAG:
                rows -= 1
                line, cells = self.parse_row(element)
                if element.get("hidden") in ("1", "true"):
                    sheet.hidden_rows.append(line)
                yield line, cells
            elif element.tag == _MERGE_TAG:
                sheet.merged.append(element.get("ref", ""))
            elif element.tag == COL_TAG and element.get("hidden") in ("1", "true"):
                first, last = int(element.get("min", "1")), int(element.get("max", "1"))
                sheet.hidden_columns.update(range(first, min(last, MAX_COLUMNS) + 1))
            if not rows and above:
                above[-1].remove(element)

    def parse_cell(self, element: Element) -> dict[str, Any]:
        """Return a cell, with `UNCOMPUTED` for a formula without a result."""
        cell: dict[str, Any] = super().parse_cell(element)
        if cell["value"] is None and element.find(FORMULA_TAG) is not None:
            cell["value"] = UNCOMPUTED
        return cell


def _fill(sheet: _Sheet, width: int, name: str) -> int:
    """Fill the empty cells of merged ranges below the header with their range's value.

    Returns:
        How many cells were filled.
    """
    lines = sorted(sheet.rows)
    filled = looked_at = 0
    for ref in sheet.merged:
        left, top, right, bottom = (at or 0 for at in range_boundaries(ref))
        value = sheet.rows.get(top, {}).get(left)
        if value is None or top <= lines[0]:
            continue
        last = min(right, width)
        for line in lines[bisect_left(lines, top) : bisect_right(lines, bottom)]:
            row = sheet.rows[line]
            looked_at += max(0, last - left + 1)
            if looked_at > _MAX_VALUES:
                raise DataError(_too_large(name, "merged ranges that overlap"))
            for column in range(left, last + 1):
                filled += column not in row
                row.setdefault(column, value)
    return filled


def _notes(sheet: _Sheet, name: str, filled: int) -> list[str]:
    notes = []
    if filled:
        notes.append(f"{filled} empty cells of merged ranges in {name} take their range's value.")
    hidden = [line for line in sheet.hidden_rows if line in sheet.rows]
    if hidden:
        notes.append(f"{len(hidden)} hidden rows of {name} are read, such as row {hidden[0]}.")
    return notes


def _check(data: bytes, name: str) -> None:
    """Refuse a workbook that unpacks to more than a table can hold, or that declares entities.

    Raises:
        DataError: saying what is too large.
        zipfile.BadZipFile: if it is no workbook.
    """
    counts = Counter[bytes]()
    total = tags = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > _MAX_PARTS:
            raise DataError(_too_large(name, f"{len(members)} parts"))
        for member in members:
            if not member.filename.lower().endswith((".xml", ".rels")):
                continue
            size = 0
            is_large = member.filename.lower().startswith(_LARGE)
            for piece in _pieces(archive, member):
                if any(mark in piece for mark in _FORBIDDEN):
                    raise DataError(
                        f"A workbook must be plain UTF-8 inside, but {member.filename} of {name} "
                        "declares entities or has NUL bytes; save it as CSV."
                    )
                size += len(piece) - _OVERLAP
                tags += piece.count(b"<")
                counts.update(_TAG.findall(piece))
                for what, most in _MAX_ELEMENTS.items():
                    if counts[what.encode()] > most:
                        raise DataError(_too_large(name, f"more than {most} {what!r} elements"))
                most = _MAX_BYTES - total if is_large else _MAX_SMALL_BYTES
                if size > most or tags > _MAX_TAGS:
                    raise DataError(_too_large(name, f"{size} bytes or more in {member.filename}"))
            total += size


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield a part piece by piece, each behind the last bytes of the one before it."""
    before = b" " * _OVERLAP
    with archive.open(member) as part:
        while piece := part.read(_PIECE):
            yield before + piece
            before = (before + piece)[-_OVERLAP:]


def _too_large(name: str, what: str) -> str:
    return (
        f"A workbook must be no larger than a table of images, but {name} has {what}; save its "
        "table as CSV."
    )
