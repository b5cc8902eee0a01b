"""Tables of all formats as written by people and programs, and tables that exceed the bounds."""

import io
import time
import zipfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil.data.layouts import Collection, scan_collection
from mtil.data.layouts.tables import read_rows
from mtil.errors import DataError
from mtil.storage import LocalStore

HEADER = ["patient", "image", "masks", "label"]
ROWS = [
    ["P1", "a.png", "m.png", "benign"],
    [None, "b.png", "m.png", "benign"],
    ["P2", "c.png", "m.png", "malignant"],
    [None, "d.png", "m.png", "malignant"],
]
MERGED = ["A2:A3", "A4:A5"]
MOST_S = 60.0
"""Seconds: far more than for a refusal, far less than for reading the refused file."""


def _workbook(path: Path, rows: Sequence[Sequence[object]], merged: Sequence[str] = ()) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    for cells in merged:
        sheet.merge_cells(cells)
    book.save(path)
    return path


def _csv(path: Path, rows: Sequence[Sequence[object]], mark: str = ",") -> Path:
    lines = [mark.join("" if value is None else str(value) for value in row) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def _parquet(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    head, *lines = rows
    texts = [[None if v is None else str(v) for v in line] for line in lines]
    pq.write_table(pa.table(dict(zip(map(str, head), zip(*texts, strict=True), strict=True))), path)
    return path


WRITERS: dict[str, Callable[[Path, Sequence[Sequence[object]]], Path]] = {
    "t.csv": _csv,
    "t.tsv": lambda path, rows: _csv(path, rows, "\t"),
    "t.xlsx": _workbook,
    "t.parquet": _parquet,
}


def _table(path: Path) -> Collection:
    return scan_collection(str(path), "table")


def _patients(found: Collection) -> list[str | None]:
    return [record.patient for record in found.records]


def test_merged_cells_are_filled_in_every_column(tmp_path: Path) -> None:
    rows = [[*HEADER, "age"], *([*row, 50 if row[0] else None] for row in ROWS)]
    rows[2][3] = None
    path = _workbook(tmp_path / "t.xlsx", rows, [*MERGED, "D2:D3", "E2:E3", "E4:E5"])
    found = _table(path)
    assert _patients(found) == ["P1", "P1", "P2", "P2"]
    assert [record.label for record in found.records] == [0, 0, 1, 1]
    assert [record.meta for record in found.records] == [{"age": "50"}] * 4
    assert found.notes == ("5 empty cells of merged ranges in t.xlsx take their range's value.",)
    assert not found.warnings


def test_a_merged_header_names_one_column(tmp_path: Path) -> None:
    rows = [[*HEADER, None], *([*row, "x"] for row in ROWS)]
    found = _table(_workbook(tmp_path / "t.xlsx", rows, [*MERGED, "D1:E1"]))
    assert _patients(found) == ["P1", "P1", "P2", "P2"]


def test_a_merged_range_of_a_whole_sheet_takes_no_memory(tmp_path: Path) -> None:
    path = _workbook(tmp_path / "t.xlsx", [HEADER, *ROWS])
    _rewrite(path, "xl/worksheets/sheet1.xml", b"</sheetData>",
             b'</sheetData><mergeCells><mergeCell ref="A4:XFD1048576"/></mergeCells>')  # fmt: skip
    assert _patients(_table(path)) == ["P1", None, "P2", "P2"]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_a_patient_are_warned_of_in_every_kind_of_table(
    tmp_path: Path, name: str
) -> None:
    (warning,) = _table(WRITERS[name](tmp_path / name, [HEADER, *ROWS])).warnings
    word = "line" if name.endswith("sv") else "row"
    number = 2 if name == "t.parquet" else 3
    assert warning.startswith(
        f"2 of 4 rows of {name} name no patient in `patient`, such as {word} {number}, and each "
    )


@pytest.mark.parametrize("unknown", ["n/a", "unknown", " - ", "NaN", "None", "\u00a0"])
def test_words_for_an_unknown_patient_join_nobody(tmp_path: Path, unknown: str) -> None:
    rows = [["P1", *ROWS[0][1:]], [unknown, *ROWS[1][1:]], [unknown, *ROWS[2][1:]]]
    found = _table(_csv(tmp_path / "t.csv", [HEADER, *rows]))
    assert _patients(found) == ["P1", None, None]
    assert "2 of 3 rows" in found.warnings[0]


def test_a_column_of_patients_that_was_asked_for_must_not_be_empty(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", [HEADER, *([None, *row[1:]] for row in ROWS)])
    assert "4 of 4 rows" in _table(path).warnings[0]
    with pytest.raises(
        DataError, match=r"The column `patient` of t\.csv must name patients, but is"
    ):
        scan_collection(str(path), "table", columns={"patient": "patient"})


def test_spellings_of_a_patient_are_named(tmp_path: Path) -> None:
    names = ["001", "1", "P1", "p 1", "P\u00a01", "B\u00e4r", "Ba\u0308r", "x"]
    rows = [[name, f"{at}.png", "m.png", "benign"] for at, name in enumerate(names)]
    (note,) = _table(_csv(tmp_path / "t.csv", [HEADER, *rows])).notes
    assert note.startswith("3 patients are written in several ways and count as one: ")
    assert "'001' = '1'" in note


def test_a_formula_without_a_result_and_an_error_are_refused(tmp_path: Path) -> None:
    rows = [HEADER, ['="P"&1', *ROWS[0][1:]], ["#N/A", *ROWS[1][1:]], ["P2", *ROWS[2][1:]]]
    found = scan_collection(str(_workbook(tmp_path / "t.xlsx", rows)), "table", skip_invalid=True)
    first, second, third = (record.refused for record in found.records)
    assert first is not None
    assert first.startswith("Row 2 of t.xlsx must have a value, but its `patient` is a formula wi")
    assert second is not None
    assert "its `patient` is #N/A" in second
    assert third is None
    path = _csv(tmp_path / "t.csv", [HEADER, ["#REF!", *ROWS[0][1:]]])
    with pytest.raises(DataError, match=r"Line 2 of t.csv must have a value, .* is #REF!"):
        _table(path)


def test_an_error_beside_the_columns_with_a_role_is_no_value(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", [[*HEADER, "age"], [*ROWS[0], "#DIV/0!"]])
    assert _table(path).records[0].meta == {}


def test_hidden_rows_are_read_and_named_and_hidden_sheets_are_not(tmp_path: Path) -> None:
    path = _workbook(tmp_path / "t.xlsx", [HEADER, *ROWS], MERGED)
    book = openpyxl.load_workbook(path)
    sheet = book.worksheets[0]
    sheet.row_dimensions[3].hidden = True
    book.create_sheet("empty", 0)
    hidden = book.create_sheet("old", 0)
    hidden.append(HEADER)
    hidden.append(["P9", "z.png", "m.png", "benign"])
    hidden.sheet_state = "hidden"
    book.save(path)
    found = _table(path)
    assert [record.image for record in found.records] == ["a.png", "b.png", "c.png", "d.png"]
    assert "1 hidden rows of t.xlsx are read, such as row 3." in found.notes
    sheet.sheet_state = "veryHidden"
    book.save(path)
    with pytest.raises(DataError, match=r"must be visible to be read, but 'old' of t\.xlsx is"):
        _table(path)


def test_two_sheets_that_fit_are_refused(tmp_path: Path) -> None:
    path = _workbook(tmp_path / "t.xlsx", [HEADER, *ROWS], MERGED)
    book = openpyxl.load_workbook(path)
    book.copy_worksheet(book.worksheets[0]).title = "more"
    book.save(path)
    with pytest.raises(DataError, match=r"one sheet with the columns .* has 'Sheet', 'more'"):
        _table(path)


def test_dates_and_whole_numbers_of_a_workbook_read_as_their_csv(tmp_path: Path) -> None:
    rows = [[datetime(2020, 1, 2), "a.png", "", "normal"], [1.0, "b.png", "", "normal"]]
    found = _table(_workbook(tmp_path / "t.xlsx", [HEADER, *rows]))
    assert _patients(found) == ["2020-01-02", "1"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("first", ["", "sep=;", '"sep=;"', "SEP=;"])
def test_text_of_every_encoding_and_line_end_is_read(
    tmp_path: Path, encoding: str, end: str, first: str
) -> None:
    lines = [first] if first else []
    lines += ["image;masks;label;note", 'ä.png;m.png;benign;"two', 'lines, one value"', ""]
    (tmp_path / "t.csv").write_bytes(end.join(lines).encode(encoding))
    (record,) = _table(tmp_path / "t.csv").records
    assert (record.image, record.meta["note"].split()) == (
        "ä.png", ["two", "lines,", "one", "value"],
    )  # fmt: skip


def test_a_line_behind_sep_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=\\t\nimage\tmasks\tlabel\na.png\tm.png\tcyst\n")
    with pytest.raises(DataError, match=r"^Line 3 of t\.csv must have a label"):
        _table(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("image,masks,label\n\u826f.png,,normal\n".encode("gbk"), "line 2 has the byte 0xc1"),
        ("image,masks,label\n\u00e4.png,,normal\n".encode("latin-1"), "line 2 has the byte 0xe4"),
        ("image,masks,label\n".encode("utf-16-le"), "a NUL byte in line 1, as UTF-16"),
        (b"image,masks,label\na\0.png,,normal\n", "a NUL byte in line 2"),
        (b"PK\x03\x04 and more", "a workbook or a ZIP archive; name it .xlsx"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook; save it as .xlsx"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip; unpack it"),
    ],
)
def test_what_is_no_text_is_refused_by_its_cause(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        _table(tmp_path / "t.csv")
    assert "must be UTF-8 text" in str(caught.value)


@pytest.mark.parametrize("name", WRITERS)
def test_a_group_file_may_be_of_every_kind(tmp_path: Path, name: str) -> None:
    rows = [["image_id", "group"], ["a", "g1"], ["b", "g2"]]
    path = WRITERS[name](tmp_path / name, rows)
    found = read_rows(LocalStore(str(tmp_path)), path.name, ("image_id", "group"))
    assert [(row.values["image_id"], row.values["group"]) for row in found] == [
        ("a", "g1"), ("b", "g2"),
    ]  # fmt: skip


def _rewrite(path: Path, part: str, old: bytes, new: bytes) -> None:
    """Replace bytes in an XML part of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert old in parts[part]
    parts[part] = parts[part].replace(old, new, 1)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


SHEET = "xl/worksheets/sheet1.xml"
_CELL = b'<c r="%s" t="str"><v>x</v></c>'


def _far_row(path: Path) -> None:
    cell = b'<row r="2000000000"><c t="str"><v>x</v></c></row></sheetData>'
    _rewrite(path, SHEET, b"</sheetData>", cell)


def _blanks(path: Path) -> None:
    row = b"<row>" + b"<c/>" * 1000 + b"</row>"
    _rewrite(path, SHEET, b"</sheetData>", row * 6000 + b"</sheetData>")


def _empty_rows(path: Path) -> None:
    _rewrite(path, SHEET, b"</sheetData>", b"<row/>" * 2_000_000 + b"</sheetData>")


def _long_sheet(path: Path) -> None:
    _rewrite(path, SHEET, b"</sheetData>", b" " * (300 * 2**20) + b"</sheetData>")


def _many_strings(path: Path) -> None:
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b"<sst>" + b"<si/>" * 1_100_000 + b"</sst>")


def _styles(path: Path) -> None:
    _rewrite(path, "xl/styles.xml", b"</cellXfs>", b"<xf/>" * 2_000_000 + b"</cellXfs>")


def _entities(path: Path) -> None:
    laughs = b"".join(b'<!ENTITY l%d "%s">' % (at, b"&l%d;" % (at - 1) * 10) for at in range(1, 9))
    head = b'<!DOCTYPE x [<!ENTITY l0 "ha">' + laughs + b"]><worksheet"
    _rewrite(path, SHEET, b"<worksheet", head)


def _deep(path: Path) -> None:
    _rewrite(path, SHEET, b"<sheetData>", b"<a>" * 100_000 + b"<sheetData>")


def _merges(path: Path) -> None:
    ranges = b'<mergeCell ref="A2:D5"/>' * 1_100_000
    _rewrite(path, SHEET, b"</sheetData>", b"</sheetData><mergeCells>" + ranges + b"</mergeCells>")


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    [
        _far_row,
        _blanks,
        _empty_rows,
        _long_sheet,
        _many_strings,
        _styles,
        _entities,
        _deep,
        _merges,
    ],
)
def test_a_workbook_that_unfolds_without_end_is_refused_at_once(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    path = _workbook(tmp_path / "t.xlsx", [HEADER, *ROWS])
    spoil(path)
    assert path.stat().st_size < 2 * 2**20
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        _table(path)
    assert "t.xlsx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < MOST_S


def test_a_value_in_the_farthest_cell_is_no_row(tmp_path: Path) -> None:
    path = _workbook(tmp_path / "t.xlsx", [HEADER, *ROWS], MERGED)
    cell = b'<row r="1048576">' + _CELL % b"XFD1048576" + b"</row></sheetData>"
    _rewrite(path, SHEET, b"</sheetData>", cell)
    assert len(_table(path).records) == 4


def test_parquet_of_more_rows_than_its_bytes_can_name_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([("image", pa.string()), ("masks", pa.string()), ("label", pa.string())])
    rows = pa.array([0] * 1_000_000, pa.int8())
    block = pa.table(
        [pa.DictionaryArray.from_arrays(rows, [word]).cast(pa.string()) for word in "abc"], schema
    )
    with pq.ParquetWriter(tmp_path / "t.parquet", schema, compression="zstd") as writer:
        for _ in range(3):
            writer.write_table(block)
    with pytest.raises(DataError, match=r"a row an image, but t.parquet has 3000000 rows in \d+"):
        _table(tmp_path / "t.parquet")


def test_long_values_of_parquet_are_refused_before_they_are_unfolded(tmp_path: Path) -> None:
    names = [f"{at}.png" for at in range(1000)]
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000), ["x" * (2 * 2**20)])
    table = pa.table({"image": names, "masks": names, "label": ["benign"] * 1000, "notes": values})
    pq.write_table(table, tmp_path / "t.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"at most 131072 letters, but t.parquet has 2097152 in"):
        _table(tmp_path / "t.parquet")


@pytest.mark.slow
def test_many_columns_are_read_quickly_and_too_many_refused(tmp_path: Path) -> None:
    start = time.monotonic()
    for number, fits in ((16_000, True), (60_000, False)):
        more = [f"c{at}" for at in range(number)]
        path = _csv(tmp_path / "t.csv", [[*HEADER, *more], [*ROWS[0], *range(number)]])
        if fits:
            assert len(_table(path).records[0].meta) == number
        else:
            with pytest.raises(DataError, match=r"at most 16384 columns, but t\.csv has 60004"):
                _table(path)
    pq.write_table(pa.table({f"c{at}": ["x"] for at in range(17_000)}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"at most 16384 columns, but t\.parquet has 17000"):
        _table(tmp_path / "t.parquet")
    assert time.monotonic() - start < MOST_S


def test_a_field_without_end_is_refused(tmp_path: Path) -> None:
    path = _csv(tmp_path / "t.csv", [HEADER, [*ROWS[0][:3], "x" * 200_000]])
    with pytest.raises(DataError, match=r"Line 2 of t.csv is not CSV: field larger"):
        _table(path)


def test_a_workbook_of_another_kind_of_zip_is_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.txt", "no workbook")
    (tmp_path / "t.xlsx").write_bytes(sink.getvalue())
    with pytest.raises(DataError, match=r"t\.xlsx cannot be read as an Excel workbook"):
        _table(tmp_path / "t.xlsx")
