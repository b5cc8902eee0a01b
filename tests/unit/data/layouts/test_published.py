"""Published collections other than BUSI, small, with the oddities of the real collections."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from mtil.data.layouts import Collection, Record, bus_bra, scan_collection, udiat
from mtil.errors import DataError
from mtil.storage import LocalStore

Rows = Iterable[Sequence[object]]


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _workbook(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in rows:
        sheet.append(row)
    workbook.create_sheet("dictionary").append(["Image", "what the columns mean"])
    workbook.save(path)


def _clutter(root: Path, *folders: str) -> None:
    """Add files left behind by operating systems and users."""
    _touch(root, "readme.txt", "__MACOSX/x/._a.png", ".hidden/a.png")
    for folder in folders:
        _touch(root / folder, "Thumbs.db", ".DS_Store", "._bus_0001-l.png", "notes.txt")


UDIAT = [
    ["Image", " TYPE ", "Diagnosis", None, None],
    ["000001", "Benign", "FA", None, "FA: fibroadenoma"],
    [2, "malignant ", "IDC", None, "IDC: invasive ductal carcinoma"],
    ["000003", "Benign", None, None, None],
    [None, None, None, None, "UNK: unknown"],
    [None, " ", None, None, None],
]


def _udiat(root: Path, rows: Rows = UDIAT, without: str = "") -> None:
    _workbook(root / "DatasetB.xlsx", rows)
    for number in (1, 2, 3):
        _touch(root, f"original/{number:06}.png", f"GT/{number:06}.png")
    if without:
        (root / without).unlink()


BUS_BRA = (
    "ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX\n"
    'bus_0001-l,1,fibroadenoma,benign,3,GE Logiq 7,274,353,left,"[91,24,103,79]"\n'
    'bus_0001-r,1,NaN,benign,2,GE Logiq 7,275,353,right,"[102,24,82,79]"\n'
    'bus_0002-s,7,cyst,Malignant,5,NaN,275,353,single,"[102,24,82,79]"\n'
)
FOLDS = (
    "ID,Pathology,kFold,valid_1\nbus_0001-l,benign,3,NaN\nbus_0001-r,benign,3,1\n"
    "bus_0002-s,malignant,5,1\nbus_9999-s,malignant,1,1\n"
)


def _bus_bra(root: Path, text: str = BUS_BRA, folds: str = FOLDS, without: str = "") -> None:
    for stem in ("0001-l", "0001-r", "0002-s"):
        _touch(root, f"Images/bus_{stem}.png", f"Masks/mask_{stem}.png")
    (root / "bus_data.csv").write_text(text)
    (root / "5-fold-cv.csv").write_text(folds)
    if without:
        (root / without).unlink()


BUS_UCLM = (
    "Image;Resolution;Label;Doppler;Marks;Combined\r\n"
    "ALWI_000.png;856x606;Benign;No;Yes;No\r\n"
    "ALWI_001;856x606;Normal;No;No;No\r\n"
    "BO_RA_000.png;856x606;malignant;Yes;No;\r\n"
    ";;;;;\r\n"
)


def _bus_uclm(root: Path, text: str = BUS_UCLM, without: str = "") -> None:
    for stem in ("ALWI_000", "ALWI_001", "BO_RA_000"):
        _touch(root, f"images/{stem}.png", f"masks/{stem}.png")
    (root / "INFO.csv").write_text(text, encoding="utf-8-sig", newline="")
    if without:
        (root / without).unlink()


BREAST_HEADER = (
    "CaseID",
    "Image_filename",
    "Mask_tumor_filename",
    "Mask_other_filename",
    "Pixel_size",
    "Age",
    "Tissue_composition",
    "BIRADS",
    "Verification",
    "Diagnosis",
    "Classification",
)
FAT = "homogeneous: fat"
OTHERS = "case001_other1.png&case001_other2.png"
BREAST = [
    BREAST_HEADER,
    (1, "case001.png", "case001_tumor.png", OTHERS, 0.0075, 57, FAT, 2, "biopsy", "cyst", "benign"),
    (2, "case002.png", "case002_tumor.png", None, 0.008, None, FAT, "4a", "x", None, "malignant"),
    (45, "case045.png", None, "case045_other1.png", 0.012, 38, FAT, 1, "n/a", None, "normal"),
]


def _breast(root: Path, rows: Rows = BREAST, without: str = "", images: str = "images") -> None:
    _workbook(root / "BrEaST-Lesions-USG-clinical-data.xlsx", rows)
    _touch(root / images, "case001.png", "case001_tumor.png", "case001_other1.png")
    _touch(root / images, "case001_other2.png", "case002.png", "case002_tumor.png")
    _touch(root / images, "case045.png", "case045_other1.png")
    if without:
        (root / images / without).unlink()


MAKERS: dict[str, tuple[Callable[..., None], Sequence[str]]] = {
    "udiat": (_udiat, ("original", "GT")),
    "bus_bra": (_bus_bra, ("Images", "Masks")),
    "bus_uclm": (_bus_uclm, ("images", "masks")),
    "breast": (_breast, ("images",)),
}


def _scan(root: Path, layout: str, **options: Any) -> list[Record]:
    return list(scan_collection(str(root), layout, **options).records)


def test_udiat_takes_types_and_diagnoses_and_ignores_the_legend(tmp_path: Path) -> None:
    _udiat(tmp_path)
    assert _scan(tmp_path, "udiat") == [
        Record(
            sample_id=stem,
            label=index,
            image=f"original/{stem}.png",
            masks=(f"GT/{stem}.png",),
            meta=meta,
        )
        for stem, index, meta in [
            ("000001", 0, {"histology": "FA"}),
            ("000002", 1, {"histology": "IDC"}),
            ("000003", 0, {}),
        ]
    ]


def test_bus_bra_takes_patients_and_leaves_out_sizes(tmp_path: Path) -> None:
    _bus_bra(tmp_path)
    first, second, third = _scan(tmp_path, "bus_bra")
    assert first == Record(
        sample_id="bus_0001-l",
        label=0,
        image="Images/bus_0001-l.png",
        masks=("Masks/mask_0001-l.png",),
        patient="1",
        meta={
            "histology": "fibroadenoma",
            "birads": "3",
            "device": "GE Logiq 7",
            "side": "left",
        },
    )
    assert second.patient == "1"
    assert "histology" not in second.meta
    assert (third.label, third.patient) == (1, "7")
    assert dict(third.meta) == {"histology": "cyst", "birads": "5", "side": "single"}


def test_bus_bra_takes_official_folds_when_asked(tmp_path: Path) -> None:
    _bus_bra(tmp_path)
    assert [record.fold for record in _scan(tmp_path, "bus_bra")] == [None] * 3
    assert [record.fold for record in _scan(tmp_path, "bus_bra", official_folds=5)] == [2, 2, 4]


def test_bus_uclm_takes_patients_from_names_and_keeps_black_masks(tmp_path: Path) -> None:
    _bus_uclm(tmp_path)
    first, normal, last = _scan(tmp_path, "bus_uclm")
    assert first == Record(
        sample_id="ALWI_000",
        label=0,
        image="images/ALWI_000.png",
        masks=("masks/ALWI_000.png",),
        patient="ALWI",
        masks_may_differ=True,
        colour="green",
        meta={"resolution": "856x606", "doppler": "No", "marks": "Yes", "combined": "No"},
    )
    assert (normal.label, normal.masks) == (2, ("masks/ALWI_001.png",))
    assert (last.label, last.patient, "combined" in last.meta) == (1, "BO", False)


def test_bus_uclm_may_have_been_saved_with_commas(tmp_path: Path) -> None:
    _bus_uclm(tmp_path, BUS_UCLM.replace(";", ","))
    assert [record.label for record in _scan(tmp_path, "bus_uclm")] == [0, 2, 1]


@pytest.mark.parametrize("images", ["images", ".", "images/deeper"])
def test_breast_takes_tumours_only_and_pixels_in_millimetres(tmp_path: Path, images: str) -> None:
    _breast(tmp_path, images=images)
    prefix = "" if images == "." else f"{images}/"
    first, second, normal = _scan(tmp_path, "breast")
    assert first.image == f"{prefix}case001.png"
    assert first.masks == (f"{prefix}case001_tumor.png",)
    assert (first.sample_id, first.label, first.patient) == ("case001", 0, "1")
    assert dict(first.meta) == {
        "age": "57",
        "tissue_composition": FAT,
        "birads": "2",
        "verification": "biopsy",
        "histology": "cyst",
    }
    assert (second.label, second.meta["birads"], "age" in second.meta) == (1, "4a", False)
    assert (normal.label, normal.masks) == (2, ())
    sizes = [record.pixel_size for record in (first, second, normal)]
    assert sizes == pytest.approx([0.075, 0.08, 0.12])


def _breast_rows(column: str, values: Sequence[object]) -> list[Sequence[object]]:
    at = BREAST_HEADER.index(column)
    changed = [
        (*row[:at], new, *row[at + 1 :]) for row, new in zip(BREAST[1:], values, strict=True)
    ]
    return [BREAST_HEADER, *changed]


def test_breast_pixel_sizes_may_be_in_millimetres_or_missing(tmp_path: Path) -> None:
    _breast(tmp_path, _breast_rows("Pixel_size", [0.06, None, 0.11]))
    assert [record.pixel_size for record in _scan(tmp_path, "breast")] == [0.06, None, 0.11]


def test_breast_units_are_told_from_the_sizes_alone(tmp_path: Path) -> None:
    _breast(tmp_path, _breast_rows("Pixel_size", ["0.004", "0.0199", "not available"]))
    sizes = [record.pixel_size for record in _scan(tmp_path, "breast")]
    assert sizes == [pytest.approx(0.04), pytest.approx(0.199), None]
    _breast(tmp_path, _breast_rows("Pixel_size", [0.2, " 0.31 ", 0.25]))
    assert [record.pixel_size for record in _scan(tmp_path, "breast")] == [0.2, 0.31, 0.25]


@pytest.mark.parametrize("nothing", [None, " ", "Not applicable", "n/a", "-"])
def test_a_normal_breast_image_names_no_mask_in_any_words(tmp_path: Path, nothing: object) -> None:
    masks = ["case001_tumor.png", "case002_tumor.png", nothing]
    _breast(tmp_path, _breast_rows("Mask_tumor_filename", masks))
    assert _scan(tmp_path, "breast")[2].masks == ()


def test_another_collection_is_not_taken_for_breast_with_files_twice(tmp_path: Path) -> None:
    _udiat(tmp_path)
    with pytest.raises(DataError, match=r"must have case001\.png, .* name its folder or another"):
        _scan(tmp_path, "breast")


def test_ids_may_end_in_png_of_any_case(tmp_path: Path) -> None:
    _bus_bra(tmp_path, BUS_BRA.replace("bus_0001-l,", "bus_0001-l.PNG,"))
    assert _scan(tmp_path, "bus_bra", official_folds=5)[0].sample_id == "bus_0001-l"


@pytest.mark.parametrize("layout", MAKERS)
def test_two_files_whose_names_differ_by_case_only_are_refused(tmp_path: Path, layout: str) -> None:
    make, (folder, *_) = MAKERS[layout]
    make(tmp_path)
    image = next((tmp_path / folder).glob("*.png"))
    _touch(image.parent, f"{image.stem}.PNG")
    with pytest.raises(DataError, match=r"differ by more than their case, .*\.PNG and .*\.png"):
        _scan(tmp_path, layout)


def test_images_with_and_without_a_row_are_both_refused(tmp_path: Path) -> None:
    _bus_bra(tmp_path, BUS_BRA.replace("bus_0002-s", "bus_0003-s"))
    with pytest.raises(DataError) as caught:
        _scan(tmp_path, "bus_bra")
    assert str(caught.value).splitlines() == [
        "2 of 4 images cannot be used; correct them or add --skip-invalid:",
        f"- Line 4 of bus_data.csv must name files that exist, but {tmp_path} has no "
        "Images/bus_0003-s.png; add the file or remove the row.",
        "- Every image must have a row, but bus_data.csv has none for Images/bus_0002-s.png; add "
        "the row or remove the image.",
    ]
    records = _scan(tmp_path, "bus_bra", skip_invalid=True)
    assert [record.refused is None for record in records] == [True, True, False, False]


def test_an_id_that_is_there_twice_is_refused_as_one_image(tmp_path: Path) -> None:
    _bus_bra(tmp_path, BUS_BRA + BRA_LINES[1].replace("benign", "unknown"))
    with pytest.raises(DataError, match="'bus_0001-l' is given twice; rename or remove one"):
        _scan(tmp_path, "bus_bra")
    records = _scan(tmp_path, "bus_bra", skip_invalid=True)
    assert [r.sample_id for r in records if r.refused is not None] == ["bus_0001-l"]
    assert len({record.sample_id for record in records}) == len(records)


@pytest.mark.parametrize("layout", MAKERS)
def test_what_is_there_twice_can_be_skipped(tmp_path: Path, layout: str) -> None:
    make, (folder, *_) = MAKERS[layout]
    make(tmp_path)
    image = min((tmp_path / folder).glob("*.png"))
    _touch(image.parent, f"{image.stem}.PNG")
    records = _scan(tmp_path, layout, skip_invalid=True)
    (wrong,) = (record for record in records if record.refused is not None)
    assert "differ by more than their case" in str(wrong.refused)
    assert wrong.sample_id.lower() == image.stem.lower()


def test_a_breast_case_that_is_there_twice_can_be_skipped(tmp_path: Path) -> None:
    _breast(tmp_path, _breast_rows("CaseID", [1, 2, 1]))
    records = _scan(tmp_path, "breast", skip_invalid=True)
    assert [record.refused is None for record in records] == [True, True, False]


def test_a_breast_sheet_may_leave_suffixes_out_and_have_decimal_commas(tmp_path: Path) -> None:
    def rewrite_cell(value: object) -> object:
        text = str(value)
        return text.replace(".png", "").replace("0.0", "0,0") if isinstance(value, str) else value

    plain = _scan_of(tmp_path / "plain", BREAST)
    rows = [BREAST[0], *([rewrite_cell(value) for value in row] for row in BREAST[1:])]
    assert _scan_of(tmp_path / "short", rows) == plain
    commas = _scan_of(tmp_path / "commas", _breast_rows("Pixel_size", ["0,0078", "0,009", "0,01"]))
    assert [record.pixel_size for record in commas] == pytest.approx([0.078, 0.09, 0.1])


def _scan_of(root: Path, rows: Rows) -> list[Record]:
    _breast(root, rows)
    return _scan(root, "breast")


def test_a_legend_may_have_headers_of_its_own(tmp_path: Path) -> None:
    _udiat(tmp_path / "as-it-is")
    wide = [[*row, "", "", ""] for row in UDIAT]
    width = max(map(len, wide))
    wide = [[*row, *[""] * (width - len(row))] for row in wide]
    wide[0][-2:] = ["Legend", "Diagnosis"]
    wide[1][-2:] = ["FA", "Fibroadenoma"]
    _udiat(tmp_path / "with-headers", wide)
    assert _scan(tmp_path / "with-headers", "udiat") == _scan(tmp_path / "as-it-is", "udiat")


@pytest.mark.parametrize("layout", MAKERS)
def test_a_collection_is_found_at_any_depth(tmp_path: Path, layout: str) -> None:
    make, _ = MAKERS[layout]
    make(tmp_path / "BUS" / "as unpacked" / "twice")
    deep = _scan(tmp_path, layout)
    assert [r.sample_id for r in deep] == [
        r.sample_id for r in _scan(tmp_path / "BUS" / "as unpacked" / "twice", layout)
    ]


def test_two_tumour_masks_are_both_taken(tmp_path: Path) -> None:
    names = ["case001_tumor.png & case001_other2.png", "case002_tumor.png", None]
    _breast(tmp_path, _breast_rows("Mask_tumor_filename", names))
    first = _scan(tmp_path, "breast")[0]
    assert first.masks == ("images/case001_tumor.png", "images/case001_other2.png")


@pytest.mark.parametrize("layout", MAKERS)
def test_a_collection_is_found_below_its_parent_among_clutter(tmp_path: Path, layout: str) -> None:
    make, folders = MAKERS[layout]
    make(tmp_path / "clean")
    make(tmp_path / "download" / "inner")
    _clutter(tmp_path / "download" / "inner", *folders)
    _clutter(tmp_path / "download", "other")
    clean = _scan(tmp_path / "clean", layout)
    below = _scan(tmp_path / "download", layout)
    assert [record.image for record in below] == [f"inner/{record.image}" for record in clean]
    assert [record.sample_id for record in below] == [record.sample_id for record in clean]
    assert all(not record.image.startswith("inner") for record in clean)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_collection_says_who_made_it(tmp_path: Path, layout: str) -> None:
    MAKERS[layout][0](tmp_path)
    collection: Collection = scan_collection(str(tmp_path), layout)
    assert "doi:10." in collection.citation
    assert collection.name
    assert collection.licence


@pytest.mark.parametrize("layout", MAKERS)
def test_a_table_without_a_needed_column_is_refused(tmp_path: Path, layout: str) -> None:
    MAKERS[layout][0](tmp_path)
    if layout in ("udiat", "breast"):
        name = "DatasetB.xlsx" if layout == "udiat" else "BrEaST-Lesions-USG-clinical-data.xlsx"
        _workbook(tmp_path / name, [["Name"], ["x"]])
    else:
        name = "bus_data.csv" if layout == "bus_bra" else "INFO.csv"
        (tmp_path / name).write_text("Name\nx\n")
    with pytest.raises(DataError, match=r"must have the columns .* but lacks .*'name'"):
        scan_collection(str(tmp_path), layout)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_wrong_folder_is_refused_with_what_should_be_there(tmp_path: Path, layout: str) -> None:
    with pytest.raises(DataError, match="is empty or missing"):
        scan_collection(str(tmp_path), layout)
    _touch(tmp_path, "benign/a.png", "x.txt")
    with pytest.raises(DataError, match=r"must have .* and .* has benign, x\.txt"):
        scan_collection(str(tmp_path), layout)


@pytest.mark.parametrize("layout", MAKERS)
def test_two_collections_below_one_folder_are_refused(tmp_path: Path, layout: str) -> None:
    for name in ("one", "two"):
        MAKERS[layout][0](tmp_path / name)
    with pytest.raises(DataError, match=r"has 2 tables: one/.*, two/"):
        scan_collection(str(tmp_path), layout)


@pytest.mark.parametrize("layout", MAKERS)
def test_options_of_tables_are_refused_elsewhere(tmp_path: Path, layout: str) -> None:
    MAKERS[layout][0](tmp_path)
    with pytest.raises(DataError, match=f"Columns are .* table only, but the layout is {layout}"):
        scan_collection(str(tmp_path), layout, columns={"image": "path"})
    with pytest.raises(DataError, match=f"Classes are .* table only, but the layout is {layout}"):
        scan_collection(str(tmp_path), layout, classes={"b": "benign"})
    if layout != "bus_bra":
        with pytest.raises(DataError, match=f"but {layout} has none"):
            scan_collection(str(tmp_path), layout, official_folds=5)


@pytest.mark.parametrize(
    ("rows", "without", "message"),
    [
        ([], "", r"DatasetB\.xlsx must have the columns image, type, but lacks image, type"),
        (UDIAT[:1], "", "has only a header"),
        ([*UDIAT[:2], [2, "Cyst"], UDIAT[3]], "", r"Row 3 of .*normal, but has 'Cyst'"),
        ([*UDIAT[:3], [None, "Benign"]], "", "Row 4 .* `image` is empty"),
        ([*UDIAT[:4], [None, None], [3, "Benign"]], "", "'000003' is given twice"),
        (UDIAT[:3], "", r"Every image must have a row, .* none for original/000003\.png"),
        (UDIAT, "original/000002.png", r"Row 3 .* has no original/000002\.png"),
        (UDIAT, "GT/000003.png", r"Row 4 .* has no GT/000003\.png"),
        (UDIAT, "DatasetB.xlsx", r"must have original/000001\.png, .* has GT, original"),
    ],
)
def test_wrong_udiat_collections_are_refused(
    tmp_path: Path, rows: Rows, without: str, message: str
) -> None:
    _udiat(tmp_path, rows, without)
    with pytest.raises(DataError, match=message):
        _scan(tmp_path, "udiat")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    _workbook(tmp_path / "DatasetB.xlsx", UDIAT)
    _touch(tmp_path, "original/000001.png")
    with pytest.raises(DataError, match=r"but .* has no files in GT/"):
        _scan(tmp_path, "udiat")


def test_broken_workbooks_are_refused(tmp_path: Path) -> None:
    _udiat(tmp_path)
    path = tmp_path / "DatasetB.xlsx"
    whole = path.read_bytes()
    broken = [
        b"",
        b"no workbook",
        whole[: len(whole) // 2],
        whole.replace(b"xl/workbook", b"xl/warkbook"),
    ]
    for data in broken:
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"DatasetB\.xlsx cannot be read as an Excel workbook"):
            _scan(tmp_path, "udiat")


def test_a_workbook_damaged_anywhere_is_read_or_refused_in_words(tmp_path: Path) -> None:
    _udiat(tmp_path)
    path = tmp_path / "DatasetB.xlsx"
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 61):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            _scan(tmp_path, "udiat")
        except DataError:
            refused += 1
    assert refused > 20


BRA_LINES = BUS_BRA.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "without", "message"),
    [
        (BUS_BRA.replace("Malignant", "unknown"), "", r"Line 4 of bus_data\.csv .*'unknown'"),
        (BUS_BRA.replace("-s,7,", "-s,,"), "", "Line 4 .* `case` is empty"),
        (
            BUS_BRA.replace("bus_0002", "img_0002"),
            "",
            "ID such as bus_0001-l, but has 'img_0002-s'",
        ),
        (BUS_BRA + BRA_LINES[1], "", "'bus_0001-l' is given twice"),
        ("".join(BRA_LINES[:3]), "", r"none for Images/bus_0002-s\.png"),
        (BRA_LINES[0], "", "has only a header"),
        ("", "", "must have the columns id, case, pathology"),
        (BUS_BRA, "Images/bus_0001-r.png", r"Line 3 .* has no Images/bus_0001-r\.png"),
        (BUS_BRA, "Masks/mask_0001-r.png", r"Line 3 .* has no Masks/mask_0001-r\.png"),
    ],
)
def test_wrong_bus_bra_collections_are_refused(
    tmp_path: Path, text: str, without: str, message: str
) -> None:
    _bus_bra(tmp_path, text, without=without)
    with pytest.raises(DataError, match=message):
        _scan(tmp_path, "bus_bra")


@pytest.mark.parametrize(
    ("folds", "number", "message"),
    [
        (FOLDS, 7, "are 5 or 10, but 7"),
        (FOLDS, 10, r"must be in 10-fold-cv\.csv beside bus_data\.csv, .* make folds"),
        (FOLDS.replace("benign,3", "benign,6"), 5, "Line 2 of 5-fold.* from 1 to 5, but has '6'"),
        (FOLDS.replace("benign,3", "benign,0"), 5, "from 1 to 5, but has '0'"),
        (FOLDS.replace("benign,3", "benign,NaN"), 5, "from 1 to 5, but has 'NaN'"),
        (FOLDS.replace("0002-s", "0003-s"), 5, "'bus_0002-s' has no fold"),
        (FOLDS + "bus_0002-s,malignant,1,1\n", 5, "gives 'bus_0002-s' 5 and 1"),
        (FOLDS.replace("kFold", "fold"), 5, "but lacks kfold"),
    ],
)
def test_wrong_official_folds_are_refused(
    tmp_path: Path, folds: str, number: int, message: str
) -> None:
    _bus_bra(tmp_path, folds=folds)
    with pytest.raises(DataError, match=message):
        _scan(tmp_path, "bus_bra", official_folds=number)


UCLM_LINES = BUS_UCLM.splitlines(keepends=True)


@pytest.mark.parametrize(
    ("text", "without", "message"),
    [
        (BUS_UCLM.replace("Normal", "None"), "", r"Line 3 of INFO\.csv .*'None'"),
        (BUS_UCLM.replace("ALWI_001;", "ALWI001;"), "", "such as ALWI_000, but names 'ALWI001'"),
        (BUS_UCLM + UCLM_LINES[1], "", "'ALWI_000' is given twice"),
        ("".join(UCLM_LINES[:3]), "", r"none for images/BO_RA_000\.png"),
        (BUS_UCLM, "images/ALWI_000.png", r"Line 2 .* has no images/ALWI_000\.png"),
        (BUS_UCLM, "masks/ALWI_001.png", r"Line 3 .* has no masks/ALWI_001\.png"),
    ],
)
def test_wrong_bus_uclm_collections_are_refused(
    tmp_path: Path, text: str, without: str, message: str
) -> None:
    _bus_uclm(tmp_path, text, without)
    with pytest.raises(DataError, match=message):
        _scan(tmp_path, "bus_uclm")


@pytest.mark.parametrize(
    ("rows", "without", "message"),
    [
        (_breast_rows("Classification", ["benign", "bad", "normal"]), "", "Row 3 .*'bad'"),
        (
            _breast_rows("Classification", ["benign", "normal", "normal"]),
            "",
            "Row 3 .* not name a t",
        ),
        (_breast_rows("Classification", ["benign"] * 3), "", "Row 4 .* must name a tumour mask"),
        (_breast_rows("CaseID", [1, 2, 1]), "", "'1' is in Row 2 .* and in Row 4"),
        (_breast_rows("CaseID", [1, None, 3]), "", "^Row 3 .* `caseid` is empty; fill the cell in"),
        (_breast_rows("Pixel_size", [5, 6, 7]), "", "in mm or cm, .* median is 6; correct"),
        (_breast_rows("Pixel_size", ["small", 1, 1]), "", "Row 2 .* positive number .*'small'"),
        (BREAST[:3], "", r"none for images/case045\.png"),
        (BREAST, "case002.png", r"Row 3 .* has no case002\.png"),
        (BREAST, "case002_tumor.png", r"Row 3 .* has no case002_tumor\.png"),
    ],
)
def test_wrong_breast_collections_are_refused(
    tmp_path: Path, rows: Rows, without: str, message: str
) -> None:
    _breast(tmp_path, rows, without)
    with pytest.raises(DataError, match=message):
        _scan(tmp_path, "breast")


def test_breast_files_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    _breast(tmp_path)
    _touch(tmp_path, "copy/case001.png")
    with pytest.raises(DataError, match=r"copy/case001\.png and images/case001\.png; remove one"):
        _scan(tmp_path, "breast")


def test_a_collection_is_listed_once_and_only_its_tables_are_read(tmp_path: Path) -> None:
    calls: list[str] = []

    class Watched(LocalStore):
        def names(self, prefix: str = "") -> list[str]:
            calls.append("names")
            return super().names(prefix)

        def read(self, name: str) -> bytes:
            calls.append(name)
            return super().read(name)

        def exists(self, name: str) -> bool:
            raise AssertionError(name)

    _udiat(tmp_path / "u")
    _bus_bra(tmp_path / "b")
    udiat.scan_udiat(Watched(str(tmp_path / "u")))
    bus_bra.scan_bus_bra(Watched(str(tmp_path / "b")), 5)
    assert calls == ["names", "DatasetB.xlsx", "names", "5-fold-cv.csv", "bus_data.csv"]


def test_the_real_bus_bra_has_its_patients_and_official_folds(real_data: Path) -> None:
    source = real_data / "bus-bra-256"
    if not source.is_dir():
        pytest.skip("BUS-BRA is not there")
    records = _scan(source, "bus_bra", official_folds=5)
    labels = [record.label for record in records]
    assert [labels.count(index) for index in range(3)] == [1268, 607, 0]
    patients: dict[str | None, set[int | None]] = {}
    for record in records:
        patients.setdefault(record.patient, set()).add(record.fold)
    assert len(patients) == 1064
    assert None not in patients
    assert all(len(folds) == 1 for folds in patients.values())
    assert {record.fold for record in records} == {0, 1, 2, 3, 4}
    assert {record.meta["birads"] for record in records} == {"2", "3", "4", "5"}
    assert {record.meta["side"] for record in records} == {"left", "right", "single"}
    ten = _scan(source / "BUSBRA", "bus_bra", official_folds=10)
    assert {record.fold for record in ten} == set(range(10))
    assert len(ten) == 1875
