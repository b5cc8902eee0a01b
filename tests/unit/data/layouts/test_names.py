"""Spellings of file, folder and image names by people and systems, in every layout."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import openpyxl
import pytest

from mtil.data.folds import groups, splits
from mtil.data.layouts import Collection, Record, scan_collection
from mtil.data.layouts.files import find_ignore_rule
from mtil.data.names import escape_unprintable, normalise_identifier, normalise_path
from mtil.errors import DataError

NFC, NFD = (unicodedata.normalize(form, "l\u00e4sion") for form in ("NFC", "NFD"))


def _touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def _table(folder: Path, *images: str, skip_invalid: bool = False) -> Collection:
    rows = "".join(f'"{image}","m.png",benign\n' for image in images)
    (folder / "t.csv").write_text("image,masks,label\n" + rows, encoding="utf-8")
    return scan_collection(str(folder / "t.csv"), "table", skip_invalid=skip_invalid)


@pytest.mark.parametrize(
    ("written", "held", "sample_id"),
    [
        (f"{NFC}.png", f"{NFD}.png", f"{NFC}.png"),
        (f"{NFD}.png", f"{NFC}.png", f"{NFC}.png"),
        ("img\\a.png", "img/a.png", "img/a.png"),
        (".\\img\\a.png", "img/a.png", "./img/a.png"),
        ("./img/a.png", "img/a.png", "./img/a.png"),
        ("img//a.png", "img/a.png", "img//a.png"),
        ("img/a.png", "img/a.png ", "img/a.png"),
        ("img /a.png", "img/a.png", "img /a.png"),
        ("img/a%20b.png", "img/a b.png", "img/a%20b.png"),
        ("100%.png", "100%.png", "100%.png"),
        ("a%20b.png", "a%20b.png", "a%20b.png"),
        ("a\\b.png", "a\\b.png", "a\\b.png"),
        (".hidden/a.png", ".hidden/a.png", ".hidden/a.png"),
    ],
)
def test_a_table_finds_a_file_however_its_name_is_written(
    tmp_path: Path, written: str, held: str, sample_id: str
) -> None:
    _touch(tmp_path, held, "m.png")
    found = _table(tmp_path, written)
    assert [(r.sample_id, r.image) for r in found.records] == [(sample_id, held)]
    assert found.files is not None
    assert (found.files.seen, found.files.images, found.files.masks) == (3, 1, 1)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("IMG/A.PNG", "there is img/a.png, whose name differs by case"),
        ("img/a.jpg", "there is img/a.png; correct the table"),
        ("C:\\data\\img\\a.png", "there is img/a.png, whose path is relative to the table"),
        ("\\\\server\\share\\img\\a.png", "there is img/a.png, whose path is relative"),
        ("/home/me/img/a.png", "there is img/a.png, whose path is relative"),
        ("https://example.org/img/a.png", "there is img/a.png, whose path is relative"),
        ("../img/b.png", "must name files below the table's folder"),
        ("x" * 256 + ".png", "by at most 255 bytes of text"),
    ],
)
def test_a_name_that_means_another_file_is_refused_with_that_file(
    tmp_path: Path, written: str, message: str
) -> None:
    _touch(tmp_path, "img/a.png", "m.png")
    with pytest.raises(DataError, match=r"^Line 2 of t\.csv must name files") as caught:
        _table(tmp_path, written)
    assert message in str(caught.value)


def test_rows_of_one_image_are_one_image_however_they_name_it(tmp_path: Path) -> None:
    _touch(tmp_path, "img/a.png", "m.png")
    found = _table(tmp_path, "img/a.png", "img\\a.png", "./img/a.png")
    assert [(r.sample_id, r.masks) for r in found.records] == [("img/a.png", ("m.png",))]
    assert found.notes == ("3 rows of 1 images are joined, with all their masks.",)


def test_a_wrong_row_of_an_image_takes_its_other_rows_with_it(tmp_path: Path) -> None:
    _touch(tmp_path, "a.png", "m1.png", "m2.png")
    (tmp_path / "t.csv").write_text(
        "image,masks,label\na.png,m1.png,benign\na.png,,benign\na.png,m2.png,benign\n"
    )
    (record,) = scan_collection(str(tmp_path / "t.csv"), "table", skip_invalid=True).records
    assert "Line 3 of t.csv must name a mask" in str(record.refused)


@pytest.mark.parametrize(
    ("values", "what"),
    [("P1,P2", "one patient"), ("P1,", "one patient"), ("p1,P1 ", ""), ("001,1", "")],
)
def test_rows_of_one_image_must_agree_on_its_patient(
    tmp_path: Path, values: str, what: str
) -> None:
    one, other = values.split(",")
    (tmp_path / "t.csv").write_text(
        f"image,masks,label,patient\na.png,m1.png,benign,{one}\na.png,m2.png,benign,{other}\n"
    )
    (record,) = scan_collection(str(tmp_path / "t.csv"), "table", skip_invalid=True).records
    assert record.masks == ("m1.png", "m2.png")
    if what:
        assert what in str(record.refused)
    else:
        assert record.refused is None


def _workbook(path: Path, *rows: tuple[object, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in rows:
        book.active.append(row)
    book.save(path)


def _busi(root: Path, end: str = ".png") -> None:
    for kind in ("benign", "malignant"):
        for number in (1, 2):
            _touch(root, f"{kind}/{kind} ({number}){end}", f"{kind}/{kind} ({number})_mask{end}")


def _udiat(root: Path, end: str = ".png") -> None:
    _workbook(root / "DatasetB.xlsx", ("Image", "Type"), (1, "Benign"), ("000002.0", "Malignant"))
    for number in (1, 2):
        _touch(root, f"original/{number:06}{end}", f"GT/{number:06}{end}")


def _bus_bra(root: Path, end: str = ".png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    lines = ["ID,Case,Pathology", "bus_0001-l,1,benign", "bus_0002-r,2,malignant"]
    (root / "bus_data.csv").write_text("\n".join(lines) + "\n")
    for name in ("0001-l", "0002-r"):
        _touch(root, f"Images/bus_{name}{end}", f"Masks/mask_{name}{end}")


def _bus_uclm(root: Path, end: str = ".png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "INFO.csv").write_text("Image;Label\nAA_000;Benign\nBB_001;Malignant\n")
    for name in ("AA_000", "BB_001"):
        _touch(root, f"images/{name}{end}", f"masks/{name}{end}")


def _breast(root: Path, end: str = ".png") -> None:
    head = ("CaseID", "Image_filename", "Mask_tumor_filename", "Classification")
    lines = [(n, f"case{n:03}{end}", f"case{n:03}_tumor{end}", "benign") for n in (1, 2)]
    _workbook(root / "clinical.xlsx", head, *lines)
    for number in (1, 2):
        _touch(root, f"case{number:03}{end}", f"case{number:03}_tumor{end}")


MAKERS: dict[str, Callable[..., None]] = {
    "busi": _busi,
    "udiat": _udiat,
    "bus_bra": _bus_bra,
    "bus_uclm": _bus_uclm,
    "breast": _breast,
}


def _records(root: Path, layout: str, **options: bool) -> list[Record]:
    return list(scan_collection(str(root), layout, **options).records)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [".jpg", ".JPEG", ".bmp", ".tif", ".PNG", ".dcm"])
@pytest.mark.parametrize("layout", MAKERS)
def test_images_of_every_format_are_found(tmp_path: Path, layout: str, end: str) -> None:
    MAKERS[layout](tmp_path / "png")
    MAKERS[layout](tmp_path / "other", end)
    expected = _records(tmp_path / "png", layout)
    found = scan_collection(str(tmp_path / "other"), layout)
    assert [(r.sample_id, r.label, r.patient) for r in found.records] == [
        (r.sample_id, r.label, r.patient) for r in expected
    ]
    assert [r.image for r in found.records] == [r.image[:-4] + end for r in expected]
    assert [r.masks for r in found.records] == [
        tuple(mask[:-4] + end for mask in r.masks) for r in expected
    ]
    assert found.files is not None
    assert (found.files.images, found.files.skipped) == (len(expected), ())


@pytest.mark.parametrize("layout", MAKERS)
def test_an_image_in_two_formats_is_refused(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    record = _records(tmp_path, layout)[0]
    _touch(tmp_path, record.image.replace(".png", ".jpg"))
    with pytest.raises(DataError, match=r"An image must be there once, .*\.jpg and .*\.png; rem"):
        _records(tmp_path, layout)
    (wrong,) = (r for r in _records(tmp_path, layout, skip_invalid=True) if r.refused)
    assert wrong.sample_id == record.sample_id


@pytest.mark.parametrize("layout", ["bus_bra", "bus_uclm", "udiat"])
def test_a_mask_that_no_row_names_is_in_the_account(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    folder = {"bus_bra": "Masks", "bus_uclm": "masks", "udiat": "GT"}[layout]
    _touch(tmp_path, f"{folder}/stray.png", "plots/a.png")
    files = scan_collection(str(tmp_path), layout).files
    assert files is not None
    assert {part.why.partition(" the ")[0]: part.examples for part in files.skipped} == {
        "no row names": (f"{folder}/stray.png",),
        "in none of": ("plots/a.png",),
    }


@pytest.mark.parametrize("layout", ["udiat", "bus_bra", "bus_uclm", "breast"])
def test_a_stray_table_does_not_hide_a_complete_collection(tmp_path: Path, layout: str) -> None:
    inner = tmp_path / "download" / "set"
    MAKERS[layout](inner)
    table = next(path for path in inner.iterdir() if path.suffix in (".csv", ".xlsx"))
    stray = tmp_path / table.name
    if layout == "breast":
        _workbook(stray, ("Name", "Notes"), ("x", "y"))
    else:
        stray.write_bytes(table.read_bytes())
    _touch(tmp_path, f"~${table.name}", f"download/{table.name}.partial", f"._{table.name}")
    found = scan_collection(str(tmp_path), layout)
    assert [r.image for r in found.records] == [
        f"download/set/{r.image}" for r in _records(inner, layout)
    ]
    assert found.files is not None
    ignored = {part.why: part.examples for part in found.files.ignored}
    assert ignored["a table that the layout does not read"] == (table.name,)
    assert len(ignored) == 4


@pytest.mark.parametrize("layout", MAKERS)
@pytest.mark.parametrize("places", [("one", "two"), (".", "backup/of")])
def test_two_complete_collections_are_refused_by_name(
    tmp_path: Path, layout: str, places: tuple[str, str]
) -> None:
    for place in places:
        MAKERS[layout](tmp_path / place)
    with pytest.raises(DataError, match=r"must hold one .* collection, but .* 2") as caught:
        _records(tmp_path, layout)
    assert places[1] in str(caught.value)


def test_a_stray_class_folder_does_not_hide_busi(tmp_path: Path) -> None:
    _busi(tmp_path / "Dataset")
    _touch(tmp_path, "normal/plot.png")
    found = scan_collection(str(tmp_path), "busi")
    assert {r.image.split("/")[0] for r in found.records} == {"Dataset"}
    assert found.files is not None
    (skipped,) = found.files.skipped
    assert (skipped.why, skipped.examples) == (
        "outside of the collection's folder Dataset", ("normal/plot.png",),
    )  # fmt: skip


def test_busi_masks_are_matched_in_any_unicode_form_and_case(tmp_path: Path) -> None:
    _busi(tmp_path)
    _touch(
        tmp_path, f"benign/{NFC}.png", f"benign/{NFD}_MASK.png", f"benign/{NFD.upper()}_mask_1.png"
    )
    found = {r.sample_id: r for r in _records(tmp_path, "busi")}
    assert found[NFC].masks == (f"benign/{NFD}_MASK.png", f"benign/{NFD.upper()}_mask_1.png")


@pytest.mark.parametrize("name", ["normal (1)-mask.png", "normal (1)_mask (2).png", "mask.png"])
def test_a_mask_by_another_name_is_no_normal_image(tmp_path: Path, name: str) -> None:
    _busi(tmp_path)
    _touch(tmp_path, "normal/normal (1).png", f"normal/{name}")
    with pytest.raises(DataError, match="A mask must be called as its image and `_mask`, but"):
        _records(tmp_path, "busi")


@pytest.mark.parametrize("layout", MAKERS)
def test_names_that_are_no_text_are_refused_by_their_bytes(tmp_path: Path, layout: str) -> None:
    MAKERS[layout](tmp_path)
    record = _records(tmp_path, layout)[0]
    folder = os.fsencode(tmp_path / record.image).rpartition(b"/")[0]
    name = b"case\xc1\xbc.png" if layout != "breast" else b"case003_\xc1\xbc.png"
    stray = folder + b"/" + name
    with open(stray, "wb"):  # noqa: PTH123
        pass
    if layout == "breast":  # the name matches no image
        files = scan_collection(str(tmp_path), layout).files
        assert files is not None
        assert files.skipped[0].examples == ("case003_\\xc1\\xbc.png",)
        return
    with pytest.raises(DataError, match="File names must be UTF-8 text, but") as caught:
        _records(tmp_path, layout)
    assert "\\xc1\\xbc.png" in str(caught.value)
    str(caught.value).encode("ascii")


def test_control_characters_of_names_are_escaped_in_errors(tmp_path: Path) -> None:
    _busi(tmp_path)
    _touch(tmp_path, "benign/a\nb\x1b[31m.png")
    with pytest.raises(DataError, match=r"a\\nb\\x1b\[31m\.png has no") as caught:
        _records(tmp_path, "busi")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("a/.DS_Store", "hidden"),
        ("a/._b.png", "hidden"),
        (".cache/b.png", "hidden"),
        ("__MACOSX/b.png", "folders that archivers add"),
        ("~$t.xlsx", "lock files of office programs"),
        ("a/Thumbs.db", "files of the operating system"),
        ("$RECYCLE.BIN/b.png", "files of the operating system"),
        ("a/b.png.crdownload", "unfinished downloads"),
        ("a/b.png~", "backup copies"),
        ("a/b.png", None),
        ("a/b..png", None),
        ("a~/b.png", None),
        ("partial/b.png", None),
    ],
)
def test_rules_that_leave_files_out(name: str, rule: str | None) -> None:
    assert find_ignore_rule(name) == rule


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("P1", "p1", True),
        ("P1 ", "P1", True),
        ("P\u00a01", "P 1", True),
        ("P  1", "P 1", True),
        ("P\u200b1", "P1", True),
        ("P\u20111", "P-1", True),
        ("001", "1", True),
        ("1.0", "1", True),
        ("\uff11", "1", True),
        (NFC, NFD, True),
        ("STRASSE", "stra\u00dfe", True),
        ("a/001", "a/1", True),
        ("P01", "P1", False),
        ("1.5", "15", False),
        ("10", "1", False),
        ("0", "00", True),
        ("P 1", "P1", False),
        ("a/1", "b/1", False),
    ],
)
def test_identifiers_that_count_as_one(one: str, other: str, same: bool) -> None:
    assert (normalise_identifier(one) == normalise_identifier(other)) is same


def test_patients_and_groups_join_however_they_are_written() -> None:
    names = ["P1", "p1 ", "001", "1.0", "P2"]
    records = [
        Record(sample_id=f"{at}.png", label=0, image=f"{at}.png", masks=(), patient=name)
        for at, name in enumerate(names)
    ]
    grouping = groups.group_images(records)
    assert dict(grouping.group) == {
        "0.png": "0.png", "1.png": "0.png", "2.png": "2.png", "3.png": "2.png", "4.png": "4.png",
    }  # fmt: skip


def test_group_and_holdout_files_name_images_in_any_form(tmp_path: Path) -> None:
    records = [
        Record(sample_id=name, label=0, image=name, masks=()) for name in (f"{NFC}.png", "./b.png")
    ]
    (tmp_path / "g.csv").write_text(
        f"sep=;\nimage_id;group\n./{NFD}.png;007\nb.png;7\n", encoding="utf-8"
    )
    found = groups.read_group_file(str(tmp_path / "g.csv"), records)
    assert {name: row.group for name, row in found.items()} == {f"{NFC}.png": "007", "./b.png": "7"}
    group = {record.sample_id: record.sample_id for record in records}
    (tmp_path / "h.csv").write_text(f"image_id\n{NFD}.png\n", encoding="utf-8")
    chosen = splits.read_holdout_file(str(tmp_path / "h.csv"), records, records, group)
    assert chosen == {f"{NFC}.png"}


def test_merged_cells_of_a_group_file_are_filled(tmp_path: Path) -> None:
    _workbook(tmp_path / "g.xlsx", ("image_id", "group"), ("a", "g1"), ("b", None), ("c", "g2"))
    book = openpyxl.load_workbook(tmp_path / "g.xlsx")
    book.worksheets[0].merge_cells("B2:B3")
    book.save(tmp_path / "g.xlsx")
    records = [Record(sample_id=name, label=0, image=name, masks=()) for name in "abc"]
    found = groups.read_group_file(str(tmp_path / "g.xlsx"), records)
    assert {name: row.group for name, row in found.items()} == {"a": "g1", "b": "g1", "c": "g2"}
    (tmp_path / "g.csv").write_text("image_id,group\na,g1\nb,\nc,g2\n")
    with pytest.raises(DataError, match=r"Line 3 of g\.csv must give an image_id and a group"):
        groups.read_group_file(str(tmp_path / "g.csv"), records)


def test_plain_paths_and_shown_names() -> None:
    assert normalise_path("./img//a.png") == "img/a.png"
    assert escape_unprintable("a\udcc1\n\u00e9") == "a\\xc1\\n\u00e9"
