"""Read Excel workbooks into numbered lines of text, filling merged cells and bounding sizes.

openpyxl's read-only worksheets ignore merged cells. Its full worksheets create an object for every
cell of a merged range, however large. This module uses openpyxl's row parser without worksheets.
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
from openpyxl.worksheet._reader import FORMULA_TAG, ROW_TAG, WorkSheetParser
from openpyxl.xml.constants import SHEET_MAIN_NS
from openpyxl.xml.functions import iterparse

from mtil.data.layouts.formats import (
    MAX_COLUMNS,
    TableLines,
    describe_too_many_columns,
    format_cell,
    read_table_bytes,
)
from mtil.errors import DataError
from mtil.storage import Store

UNCOMPUTED_FORMULA = "#FORMULA!"
"""Placeholder for a formula without a saved result."""
MAX_ROWS = 1_048_576
"""Most rows of a sheet in Excel."""
_MAX_VALUES = 20_000_000
"""Most cells, empty or not, of a table or of all merged ranges."""
_MAX_BYTES = 256 * 2**20
"""Most unpacked bytes of all XML parts together."""
_MAX_SMALL_BYTES = 8 * 2**20
"""Most unpacked bytes of an XML part, apart from sheets and shared strings."""
_LARGE_PARTS = ("xl/worksheets/", "xl/sharedstrings")
_MAX_PARTS = 10_000
_MAX_DEPTH = 64
_MAX_ELEMENTS = {"c": 5_000_000, "row": MAX_ROWS, "si": 1_000_000, "mergeCell": MAX_ROWS}
"""Most cells, rows, strings and merged ranges of a workbook, by XML tag."""
_MAX_TAGS = 30_000_000
_TAG = re.compile(rb"<(?:\w+:)?(c|row|si|mergeCell)[\s/>]")
# Entities can unfold a small file without end. NUL bytes are a sign of UTF-16, where a search for
# bytes would miss the declarations. No spreadsheet program writes any of the three.
_FORBIDDEN = (b"<!DOCTYPE", b"<!ENTITY", b"\0")
_PIECE_BYTES = 2**20
# Longer than every searched mark and tag, so that none is missed across two pieces.
_OVERLAP_BYTES = 16
_MERGE_TAG = f"{{{SHEET_MAIN_NS}}}mergeCell"

_WORKBOOK_ERRORS = (
    zipfile.BadZipFile,
    InvalidFileException,
    SyntaxError,  # from both XML parsers
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
"""Exceptions raised by openpyxl on damaged workbooks."""


@dataclass
class _Sheet:
    """A sheet, with the rows read up to now."""

    title: str
    path: str
    visible: bool
    header: list[str] = field(default_factory=list)
    """Lower-case values of the first non-empty row."""
    rows: dict[int, dict[int, str]] = field(default_factory=dict)
    """Text by column by row, without empty cells."""
    merged: list[str] = field(default_factory=list)
    hidden_rows: list[int] = field(default_factory=list)


def read_xlsx_lines(
    store: Store, name: str, required: Sequence[str], notes: list[str], *, one_sheet: bool
) -> TableLines:
    """Return the lines of the first sheet with the required columns.

    Args:
        store: store of the workbook.
        name: name of the workbook in the store.
        required: lower-case names of the required columns.
        notes: list to append sentences about hidden rows, merged cells and unread sheets to.
        one_sheet: whether to refuse a workbook with the columns in several sheets.

    Raises:
        DataError: if the workbook is missing, damaged or too large, or has the columns in
            hidden sheets only, or in several sheets with `one_sheet`.
    """
    data = read_table_bytes(store, name, "an Excel workbook")
    try:
        # Bounds come before parsing: openpyxl would unfold any file.
        _check_bounds(data, name)
        with warnings.catch_warnings():
            # openpyxl warns of styles and validations it does not support; tables need neither.
            warnings.simplefilter("ignore")
            sheet, unread = _read_sheet(data, required, name)
    except DataError:
        raise
    except _WORKBOOK_ERRORS as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise DataError(
            f"{store.uri}/{name} cannot be read as an Excel workbook: {reason[:200]}; "
            "fetch the file again or save it as .xlsx."
        ) from None
    if unread:
        titles = ", ".join(repr(other.title) for other in unread[:4])
        if one_sheet:
            raise DataError(
                f"A workbook must have one sheet with the columns {', '.join(required)}, but "
                f"{name} has {sheet.title!r}, {titles}; keep one, or save one as CSV."
            )
        notes.append(f"{name} is read by its sheet {sheet.title!r} only, not {titles}.")
    # The header decides the width: cells to the right belong to no column.
    width = max(sheet.rows[min(sheet.rows)], default=0) if sheet.rows else 0
    if width > MAX_COLUMNS:
        raise DataError(describe_too_many_columns(name, width))
    if width * len(sheet.rows) > _MAX_VALUES:
        raise DataError(_too_large(name, f"{len(sheet.rows)} rows of {width} columns"))
    notes += _describe_cells(sheet, name, _fill_merged_cells(sheet, width, name))
    return (
        (line, [values.get(column, "") for column in range(1, width + 1)])
        for line, values in sorted(sheet.rows.items())
    )


def _read_sheet(data: bytes, required: Sequence[str], name: str) -> tuple[_Sheet, list[_Sheet]]:
    """Return the first visible sheet with the required columns, and the further ones unread.

    Without a matching sheet, returns the first visible sheet: the caller names missing columns.

    Raises:
        DataError: if only hidden sheets have the columns.
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
            _parse_rows(reader, sheet, name, only_header=True)
        fitting = [sheet for sheet in sheets if set(required) <= set(sheet.header)]
        visible = [sheet for sheet in fitting if sheet.visible]
        if fitting and not visible:
            raise DataError(
                f"A sheet must be visible to be read, but {fitting[0].title!r} of {name} is "
                "hidden; unhide or delete the sheet."
            )
        chosen = [*visible, *(sheet for sheet in sheets if sheet.visible), *sheets][0]
        _parse_rows(reader, chosen, name)
        return chosen, visible[1:]


def _parse_rows(reader: Any, sheet: _Sheet, name: str, *, only_header: bool = False) -> None:
    with reader.archive.open(sheet.path) as source:
        book = reader.wb
        parser = _RowParser(
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
            row = {cell["column"]: text for cell in cells if (text := format_cell(cell["value"]))}
            if row and only_header:
                sheet.header = [text.lower() for text in row.values()]
                return
            if row:
                sheet.rows.setdefault(line, {}).update(row)


class _RowParser(WorkSheetParser):
    """Parser for rows, merged ranges and hidden rows of a sheet."""

    def read(self, name: str, sheet: _Sheet) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Yield number and cells of every row; add merged ranges and hidden rows to `sheet`."""
        parents: list[Element] = []
        num_open_rows = 0
        for event, element in iterparse(self.source, events=("start", "end")):
            if event == "start":
                parents.append(element)
                num_open_rows += element.tag == ROW_TAG
                if len(parents) > _MAX_DEPTH:
                    raise DataError(_too_large(name, f"elements {len(parents)} deep"))
                continue
            parents.pop()
            if element.tag == ROW_TAG:
                num_open_rows -= 1
                line, cells = self.parse_row(element)
                if element.get("hidden") in ("1", "true"):
                    sheet.hidden_rows.append(line)
                yield line, cells
            elif element.tag == _MERGE_TAG:
                sheet.merged.append(element.get("ref", ""))
            # Keep elements only until their row is parsed: a whole sheet would fill the memory.
            if not num_open_rows and parents:
                parents[-1].remove(element)

    def parse_cell(self, element: Element) -> dict[str, Any]:
        """Return a cell; `UNCOMPUTED_FORMULA` for a formula without a saved result."""
        cell: dict[str, Any] = super().parse_cell(element)
        if cell["value"] is None and element.find(FORMULA_TAG) is not None:
            cell["value"] = UNCOMPUTED_FORMULA
        return cell


def _fill_merged_cells(sheet: _Sheet, width: int, name: str) -> int:
    """Fill the empty cells of merged ranges below the header with the value of the range.

    Returns:
        Number of filled cells.
    """
    lines = sorted(sheet.rows)
    num_filled = num_visited = 0
    for ref in sheet.merged:
        left, top, right, bottom = (bound or 0 for bound in range_boundaries(ref))
        value = sheet.rows.get(top, {}).get(left)
        # Filling a merged header would name two columns alike.
        if value is None or top <= lines[0]:
            continue
        last = min(right, width)
        for line in lines[bisect_left(lines, top) : bisect_right(lines, bottom)]:
            row = sheet.rows[line]
            # Ranges may overlap, so the number of cells does not bound the visits.
            num_visited += max(0, last - left + 1)
            if num_visited > _MAX_VALUES:
                raise DataError(_too_large(name, "merged ranges that overlap"))
            for column in range(left, last + 1):
                num_filled += column not in row
                row.setdefault(column, value)
    return num_filled


def _describe_cells(sheet: _Sheet, name: str, num_filled: int) -> list[str]:
    """Return notes about filled cells and hidden rows."""
    notes = []
    if num_filled:
        notes.append(
            f"{num_filled} empty cells of merged ranges in {name} take their range's value."
        )
    hidden = [line for line in sheet.hidden_rows if line in sheet.rows]
    if hidden:
        notes.append(f"{len(hidden)} hidden rows of {name} are read, such as row {hidden[0]}.")
    return notes


def _check_bounds(data: bytes, name: str) -> None:
    """Check the unpacked size of a workbook and search for entity declarations.

    Raises:
        DataError: if the workbook exceeds a bound or declares entities.
        zipfile.BadZipFile: if the data is no ZIP archive.
    """
    counts = Counter[bytes]()
    total_bytes = num_tags = 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > _MAX_PARTS:
            raise DataError(_too_large(name, f"{len(members)} parts"))
        for member in members:
            if not member.filename.lower().endswith((".xml", ".rels")):
                continue
            part_bytes = 0
            is_large = member.filename.lower().startswith(_LARGE_PARTS)
            # Count while unpacking: the sizes declared in a ZIP archive may be false.
            for piece in _read_pieces(archive, member):
                if any(mark in piece for mark in _FORBIDDEN):
                    raise DataError(
                        f"A workbook must be plain UTF-8 inside, but {member.filename} of {name} "
                        "declares entities or has NUL bytes; save it as CSV."
                    )
                part_bytes += len(piece) - _OVERLAP_BYTES
                num_tags += piece.count(b"<")
                counts.update(_TAG.findall(piece))
                for tag, limit in _MAX_ELEMENTS.items():
                    if counts[tag.encode()] > limit:
                        raise DataError(_too_large(name, f"more than {limit} {tag!r} elements"))
                limit = _MAX_BYTES - total_bytes if is_large else _MAX_SMALL_BYTES
                if part_bytes > limit or num_tags > _MAX_TAGS:
                    raise DataError(
                        _too_large(name, f"{part_bytes} bytes or more in {member.filename}")
                    )
            total_bytes += part_bytes


def _read_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the unpacked bytes of a part in pieces that overlap by `_OVERLAP_BYTES`."""
    overlap = b" " * _OVERLAP_BYTES
    with archive.open(member) as part:
        while piece := part.read(_PIECE_BYTES):
            yield overlap + piece
            overlap = (overlap + piece)[-_OVERLAP_BYTES:]


def _too_large(name: str, excess: str) -> str:
    return (
        f"A workbook must be no larger than a table of images, but {name} has {excess}; save the "
        "table as CSV."
    )
