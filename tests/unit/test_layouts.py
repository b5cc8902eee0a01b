"""Collections to records, with the oddities that published ones have."""

from pathlib import Path

import pytest

from mtil.data.layouts import Record, scan
from mtil.errors import DataError


def _touch(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return str(root)


BUSI = (
    "benign/benign (1).png",
    "benign/benign (1)_mask.png",
    "benign/benign (1)_mask_1.png",
    "benign/benign (1)_mask_2.png",
    "benign/benign (10).png",
    "benign/benign (10)_mask.png",
    "malignant/malignant (1).png",
    "malignant/malignant (1)_mask.png",
    "normal/normal (1).png",
    "normal/normal (1)_mask.png",
)


def _busi(source: str) -> list[Record]:
    return list(scan(source, "busi")[1])


def test_busi_masks_belong_to_their_image(tmp_path: Path) -> None:
    records = _busi(_touch(tmp_path, *BUSI))
    assert [(record.sample_id, record.label) for record in records] == [
        ("benign (1)", 0),
        ("benign (10)", 0),
        ("malignant (1)", 1),
        ("normal (1)", 2),
    ]
    assert records[0].image == BUSI[0]
    assert records[0].masks == BUSI[1:4]
    assert records[1].masks == (BUSI[5],)


def test_busi_is_found_below_its_parent_beside_other_things(tmp_path: Path) -> None:
    _touch(tmp_path / "Dataset_BUSI_with_GT", *BUSI, "benign/.DS_Store", "benign/Thumbs.db")
    _touch(tmp_path / "Dataset_BUSI_with_GT", "benign/._benign (1).png", "README.txt")
    _touch(tmp_path, "groups.csv", "figures/plot.png", "notes/old/benign/benign (3).png")
    below = _busi(str(tmp_path))
    inside = _busi(str(tmp_path / "Dataset_BUSI_with_GT"))
    assert [record.sample_id for record in below] == [record.sample_id for record in inside]
    assert below[0].image == "Dataset_BUSI_with_GT/benign/benign (1).png"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is empty or missing"),
        (("a.png", "b/c.png"), r"must have the folders benign, malignant and normal .* a\.png, b"),
        ((*BUSI, "benign/benign (2).png"), r"benign/benign \(2\)\.png has no benign \(2\)_mask"),
        ((*BUSI, "benign/benign (3)_mask.png"), r"benign \(3\)_mask\.png has no benign \(3\)\.png"),
        ((*BUSI, "suspicious/suspicious (1).png"), "images in suspicious"),
        ((*BUSI, "benign/x.png", "benign/x_mask.png", "normal/x.png"), "'x' is given twice"),
        (("benign/readme.txt", "malignant/readme.txt"), "have none"),
    ],
)
def test_wrong_busi_collections_are_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _busi(_touch(tmp_path, *names))


def test_two_busi_collections_below_one_folder_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path / "one", *BUSI)
    _touch(tmp_path / "two", *BUSI)
    with pytest.raises(DataError, match="holds 2: one, two"):
        _busi(str(tmp_path))


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be one of busi, table, but got 'coco'"):
        scan(str(tmp_path), "coco")


def _table(folder: Path, text: str, encoding: str = "utf-8") -> list[Record]:
    (folder / "t.csv").write_text(text, encoding=encoding)
    return list(scan(str(folder / "t.csv"), "table")[1])


def test_a_table_is_read_with_its_oddities(tmp_path: Path) -> None:
    records = _table(
        tmp_path,
        'Image , notes,masks,label,patient,fold\r\n"b, 1.png",x,m/1.png| m/2.png,BENIGN,p1,1\r\n'
        "\r\na.png,,,Normal,,0\r\n",
        encoding="utf-8-sig",
    )
    assert records == [
        Record(sample_id="a.png", label=2, image="a.png", masks=(), patient=None, fold=0),
        Record(
            sample_id="b, 1.png",
            label=0,
            image="b, 1.png",
            masks=("m/1.png", "m/2.png"),
            patient="p1",
            fold=1,
        ),
    ]


def test_a_table_needs_neither_patients_nor_folds(tmp_path: Path) -> None:
    (record,) = _table(tmp_path, "label,masks,image\nmalignant,m.png,i.png\n")
    assert (record.label, record.patient, record.fold) == (1, None, None)


HEADER = "image,masks,label,fold\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns image, masks, label, but lacks image, masks, label"),
        ("image,label\na.png,normal\n", "lacks masks"),
        (HEADER, "has only its header"),
        (HEADER + "a.png,m.png,cyst,\n", "Line 2 .* benign, malignant, normal, but has 'cyst'"),
        (HEADER + "a.png,,benign,\n", "Line 2 .* must name a mask"),
        (HEADER + ",m.png,benign,\n", "Line 2 .* `image` is empty"),
        (HEADER + "a.png,m.png,benign\n", "Line 2 .* 4 values, as the header, but has 3"),
        (HEADER + "a.png,m.png,benign,one\n", "Line 2 .* fold number.*'one'"),
        (HEADER + "a.png,m.png,benign,-1\n", "Line 2 .* fold number.*'-1'"),
        (HEADER + "a.png,m.png,benign,0\nb.png,m.png,benign,\n", "none for 'b.png'"),
        (HEADER + "a.png,m.png,benign,\na.png,m.png,benign,\n", "'a.png' is given twice"),
        (HEADER + "a.png,m.png,benign,\n./a.png,m.png,benign,\n", "must be given once"),
        (HEADER + "../../etc/passwd,m.png,benign,\n", "below the table's folder"),
        (HEADER + "a.png,m.png|/etc/passwd,benign,\n", "below the table's folder"),
        (HEADER + '"a.png,m.png,benign,\n', "is no CSV"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _table(tmp_path, text)


def test_a_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be UTF-8 text"):
        _table(tmp_path, HEADER + "ä.png,m.png,benign,\n", encoding="latin-1")


def test_a_folder_or_nothing_is_no_table(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="is a folder or does not exist"):
            scan(str(source), "table")
