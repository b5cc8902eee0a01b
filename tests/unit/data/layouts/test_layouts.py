"""Read BUSI folders and tables, with the oddities of real collections, into records."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtil.data.layouts import Record, scan_collection
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
    return list(scan_collection(source, "busi").records)


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
        (("benign/readme.txt", "malignant/readme.txt"), r"`benign \(1\)\.png` .* has benign, m"),
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


def test_what_archivers_and_systems_leave_is_no_busi_collection(tmp_path: Path) -> None:
    inner = tmp_path / "Dataset_BUSI_with_GT"
    _touch(inner, *BUSI)
    _touch(tmp_path, "__MACOSX/benign/benign (1).png", "benign/Thumbs.db", "normal/notes.txt")
    assert _busi(str(tmp_path))[0].image == "Dataset_BUSI_with_GT/benign/benign (1).png"


def test_two_busi_images_whose_names_differ_by_case_only_are_refused(tmp_path: Path) -> None:
    source = _touch(tmp_path, *BUSI, "benign/benign (1).PNG")
    with pytest.raises(DataError, match=r"differ by more than their case, .*\.PNG and .*\.png"):
        _busi(source)


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be one of busi, .*, table, but got 'coco'"):
        scan_collection(str(tmp_path), "coco")


def _table(folder: Path, text: str, encoding: str = "utf-8") -> list[Record]:
    (folder / "t.csv").write_text(text, encoding=encoding)
    return list(scan_collection(str(folder / "t.csv"), "table").records)


def test_a_table_is_read_with_its_oddities(tmp_path: Path) -> None:
    records = _table(
        tmp_path,
        'Image , notes,masks,label,patient,fold\r\n"b, 1.png",x,m/1.png| m/2.png,BENIGN,p1,1\r\n'
        "\r\na.png,,,Normal,,0\r\n",
        encoding="utf-8-sig",
    )
    assert records == [
        Record(
            sample_id="b, 1.png",
            label=0,
            image="b, 1.png",
            masks=("m/1.png", "m/2.png"),
            patient="p1",
            fold=1,
            meta={"notes": "x"},
        ),
        Record(sample_id="a.png", label=2, image="a.png", masks=(), patient=None, fold=0),
    ]


def test_a_table_may_be_parted_by_semicolons_and_fold_numbers_be_decimal(tmp_path: Path) -> None:
    text = 'image;masks;label;fold;notes\na.png;m.png;benign;1.0;"x, y"\nb.png;;normal;0;\n'
    first, second = _table(tmp_path, text)
    assert (first.fold, first.meta, second.fold) == (1, {"notes": "x, y"}, 0)


def test_a_wrong_fold_can_be_skipped(tmp_path: Path) -> None:
    text = HEADER + "a.png,m.png,benign,one\nb.png,m.png,benign,\nc.png,m.png,benign,0\n"
    with pytest.raises(DataError, match=r"\n- Line 2 of t\.csv must have a fold number.*'one'"):
        _scan_table(tmp_path, text)
    found = _scan_table(tmp_path, text, skip_invalid=True)
    assert [record.sample_id for record in found if record.refused] == ["a.png", "b.png"]
    assert "a fold for every image or for none, but gives none for 'b.png'" in str(found[1].refused)


def test_rows_of_one_image_are_joined_where_they_agree_and_can_be_skipped(tmp_path: Path) -> None:
    text = (
        "image,masks,label\na.png,m.png,benign\nb.png,m.png,benign\na.png,m.png,malignant\n"
        "./b.png,n.png|m.png,benign\n"
    )
    with pytest.raises(DataError, match=r"^Rows of one image must have one label, but 'a.png' has"):
        _scan_table(tmp_path, text)
    found = _scan_table(tmp_path, text, skip_invalid=True)
    assert [(r.sample_id, r.refused is None) for r in found] == [("a.png", False), ("b.png", True)]
    assert "has benign in Line 2 of t.csv and malignant in Line 4 of t.csv" in str(found[0].refused)
    assert found[1].masks == ("m.png", "n.png")


def test_a_table_may_be_parted_by_tabs_and_name_absolute_paths(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text(
        f"image\tmasks\tlabel\n{tmp_path}/a, 1.png\t{tmp_path}/m.png|n.png\tbenign\n"
    )
    (record,) = scan_collection(str(tmp_path / "t.tsv"), "table").records
    assert (record.sample_id, record.image) == ("a, 1.png", "a, 1.png")
    assert record.masks == ("m.png", "n.png")


def test_rows_that_are_wrong_are_kept_as_refused_if_asked_for(tmp_path: Path) -> None:
    text = HEADER + "a.png,m.png,cyst,\nb.png,m.png,benign,0\n,m.png,benign,\n,,normal,\n"
    with pytest.raises(DataError, match=r"^3 of 4 images cannot be used; .* --skip-invalid:\n- "):
        _scan_table(tmp_path, text)
    records = _scan_table(tmp_path, text, skip_invalid=True)
    assert [(record.sample_id, record.refused is None) for record in records] == [
        ("a.png", False),
        ("b.png", True),
        ("Line 4 of t.csv", False),
        ("Line 5 of t.csv", False),
    ]
    assert (records[0].refused or "").startswith("Line 2 of t.csv must have a label")


def test_a_table_needs_neither_patients_nor_folds(tmp_path: Path) -> None:
    (record,) = _table(tmp_path, "label,masks,image\nmalignant,m.png,i.png\n")
    assert (record.label, record.patient, record.fold) == (1, None, None)


HEADER = "image,masks,label,fold\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have the columns image, masks, label, but lacks image, masks, label"),
        ("image,label\na.png,normal\n", "lacks masks"),
        (HEADER, "has only a header"),
        (HEADER + "a.png,m.png,cyst,\n", "Line 2 .* benign, malignant, normal, but has 'cyst'"),
        (HEADER + "a.png,,benign,\n", "Line 2 .* must name a mask"),
        (HEADER + ",m.png,benign,\n", "Line 2 .* `image` is empty"),
        (HEADER + "a.png,m.png,benign\n", "Line 2 .* 4 values, as the header, but has 3"),
        (HEADER + "a.png,m.png,benign,one\n", "Line 2 .* fold number.*'one'"),
        (HEADER + "a.png,m.png,benign,-1\n", "Line 2 .* fold number.*'-1'"),
        (HEADER + "a.png,m.png,benign,0\nb.png,m.png,benign,\n", "none for 'b.png'"),
        (HEADER + "a.png,m.png,benign,0\na.png,m.png,benign,1\n", "one fold, .* has 0 in .* and 1"),
        (HEADER + "a.png,m.png,benign,\n./a.png,,normal,\n", "one label, .*benign .* normal"),
        (HEADER + "../../etc/passwd,m.png,benign,\n", "below the table's folder"),
        (HEADER + "a.png,m.png|/etc/passwd,benign,\n", "below the table's folder"),
        (HEADER + '"a.png,m.png,benign,\n', "is not CSV"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _table(tmp_path, text)


def test_a_table_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be UTF-8 text"):
        _table(tmp_path, HEADER + "ä.png,m.png,benign,\n", encoding="latin-1")


def test_a_parquet_table_damaged_in_its_values_is_refused(tmp_path: Path) -> None:
    table = pa.table({"image": ["scan.png"], "masks": [""], "label": ["normal"]})
    pq.write_table(table, tmp_path / "t.parquet", compression="none", use_dictionary=False)
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(data.replace(b"scan.png", b"sc\xffn.png"))
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as a Parquet file: .*; write"):
        scan_collection(str(tmp_path / "t.parquet"), "table")


def test_a_folder_or_nothing_is_no_table(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="is a folder or does not exist"):
            scan_collection(str(source), "table")


def _scan_table(folder: Path, text: str, **options: Any) -> list[Record]:
    (folder / "t.csv").write_text(text)
    return list(scan_collection(str(folder / "t.csv"), "table", **options).records)


def test_a_table_is_called_after_its_file_and_says_no_licence(tmp_path: Path) -> None:
    (tmp_path / "my images.csv").write_text("image,masks,label\na.png,,normal\n")
    collection = scan_collection(str(tmp_path / "my images.csv"), "table")
    assert (collection.name, collection.licence) == ("my images", "not stated")
    assert collection.store.uri == str(tmp_path)


def test_columns_and_classes_are_renamed_and_the_rest_is_meta(tmp_path: Path) -> None:
    text = (
        "Path,Mask file,Diagnosis,Subject,Bi-Rads,Age,Notes,mm\n"
        "a.png,m.png,M,p1,4B,51,,0.05\n"
        "b.png,,0,p1,1,NaN,left,\n"
        "c.png,m.png,Benign,p2,2,38,,0.1\n"
    )
    columns = {
        "image": "path",
        "masks": "mask file",
        "label": "DIAGNOSIS",
        "patient": "subject",
        "pixel_size": "mm",
    }
    records = _scan_table(
        tmp_path, text, columns=columns, classes={"m": "malignant", "0": "Normal"}
    )
    assert [(record.sample_id, record.label, record.patient) for record in records] == [
        ("a.png", 1, "p1"),
        ("b.png", 2, "p1"),
        ("c.png", 0, "p2"),
    ]
    assert [record.pixel_size for record in records] == [0.05, None, 0.1]
    assert [dict(record.meta) for record in records] == [
        {"birads": "4B", "age": "51"},
        {"birads": "1", "notes": "left"},
        {"birads": "2", "age": "38"},
    ]


ROW = "image,masks,label\na.png,m.png,benign\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"image": "path"}}, "must have the columns path, masks, label.*lacks path"),
        ({"columns": {"patient": "who"}}, "must have the columns .*lacks who"),
        ({"columns": {"picture": "image"}}, "the role one of image, .*but got picture=image"),
        ({"columns": {"image": ""}}, "ROLE=COLUMN"),
        ({"classes": {"1": "cancer"}}, "class one of benign, malignant, normal, but got 1=cancer"),
        ({"classes": {"b": "benign", "B": "malignant"}}, "once each .*got B=malignant"),
        ({"official_folds": 5}, "in its column `fold`, .* but t gives none"),
    ],
)
def test_senseless_table_options_are_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _scan_table(tmp_path, ROW, **options)


def test_an_unknown_class_is_refused_with_the_words_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="benign, malignant, normal, m, but has 'x'"):
        _scan_table(tmp_path, "image,masks,label\na,b,x\n", classes={"M": "malignant"})


@pytest.mark.parametrize("size", ["wide", "0", "-1", "inf", "nan"])
def test_a_pixel_size_is_a_positive_number(tmp_path: Path, size: str) -> None:
    with pytest.raises(DataError, match=r"Line 2 .* positive number in `pixel_size`"):
        _scan_table(tmp_path, f"image,masks,label,pixel_size\na,b,benign,{size}\n")


def test_a_column_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'label' 2 times"):
        _scan_table(tmp_path, "image,masks,label,Label\na,b,benign,benign\n")


def test_a_parquet_table_reads_as_its_csv(tmp_path: Path) -> None:
    table = pa.table(
        {
            "Image": ["b.png", "a.png"],
            "masks": [["m1.png", "m2.png"], []],
            "label": pa.array(["benign", "normal"]).dictionary_encode(),
            "fold": pa.array([1, 0], pa.int64()),
            "age": pa.array([51.0, None]),
            "score": pa.array([0.25, float("nan")]),
            "pixels": pa.array([b"\xff", b"\x00"]),
            "__index_level_0__": [7, 8],
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert scan_collection(str(tmp_path / "t.parquet"), "table").records == [
        Record(
            sample_id="b.png",
            label=0,
            image="b.png",
            masks=("m1.png", "m2.png"),
            fold=1,
            meta={"age": "51", "score": "0.25"},
        ),
        Record(sample_id="a.png", label=2, image="a.png", masks=(), fold=0),
    ]


def test_wrong_parquet_tables_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "t.parquet"
    target.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DataError, match="cannot be read as a Parquet file"):
        scan_collection(str(target), "table")
    pq.write_table(pa.table({"image": ["a"], "masks": ["m"], "label": ["cyst"]}), target)
    with pytest.raises(DataError, match=r"Row 1 of t\.parquet .*'cyst'"):
        scan_collection(str(target), "table")
    pq.write_table(pa.table({"image": pa.array([], pa.string())}), target)
    with pytest.raises(DataError, match="lacks masks, label"):
        scan_collection(str(target), "table")
    with pytest.raises(DataError, match=r"must be a Parquet file, but .* does not exist"):
        scan_collection(str(tmp_path / "none.parquet"), "table")
