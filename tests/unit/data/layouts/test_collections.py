"""Prepare published collections, oddities included, by the command line and check the rows."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mtil.cli.main import main
from mtil.data.dataset.shards import LABELS

pytestmark = pytest.mark.slow

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SIZE = 64
NUM_IMAGES = 24


@dataclass
class Expected:
    """Expected values of a row."""

    label: str
    gray: Gray
    mask: Mask
    meta: Mapping[str, str] = field(default_factory=dict)
    pixel_size: float | None = None


def _drawn(number: int) -> tuple[Gray, Mask]:
    """Return gray pixels (h, w) and a lesion mask (h, w), both different for every number."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(64, 101, 2)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7), dtype=np.uint8))
    gray = np.asarray(coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    middle = rng.uniform(0.4, 0.6, 2) * (height, width)
    radii = rng.uniform(0.12, 0.25, 2) * (height, width)
    inside = ((rows - middle[0]) / radii[0]) ** 2 + ((columns - middle[1]) / radii[1]) ** 2 <= 1
    return gray, inside


def _save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG", **options)


def _image(path: Path, gray: Gray, kind: str) -> Gray:
    """Write an image and return the gray pixels as shown by a viewer on black."""
    if kind == "16 bits":
        _save(path, Image.fromarray(gray.astype(np.uint16) * 257))
    elif kind == "RGBA":
        alpha = np.full(gray.shape, 255, np.uint8)
        alpha[:, :6] = alpha[-3:] = 0
        rgb = np.where(alpha[..., None] == 0, 255, np.repeat(gray[..., None], 3, axis=2))
        _save(path, Image.fromarray(np.dstack([rgb.astype(np.uint8), alpha])))
        return np.where(alpha == 0, 0, gray).astype(np.uint8)
    else:
        _save(path, Image.fromarray(gray).convert(kind))
    return gray


MASKS = ("255", "1", "1 bit", "palette", "RGBA", "clear", "clear palette", "16 bits")


def _mask(path: Path, mask: Mask, kind: str) -> None:
    ones = mask.astype(np.uint8)
    white = np.full_like(ones, 255)
    if kind == "255":
        _save(path, Image.fromarray(ones * 255))
    elif kind == "1":
        _save(path, Image.fromarray(ones))
    elif kind == "1 bit":
        _save(path, Image.fromarray(mask))
    elif kind == "16 bits":
        _save(path, Image.fromarray(ones.astype(np.uint16) * 40000))
    elif kind == "RGBA":
        _save(path, Image.fromarray(np.dstack([ones * 255, ones, ones, white])))
    elif kind == "clear":
        _save(path, Image.fromarray(np.dstack([white, white, white, ones * 255])))
    else:
        image = Image.frombytes("P", mask.shape[::-1], ones.tobytes())
        dark = 255 if kind == "clear palette" else 0
        image.putpalette([dark, dark, dark, 130, 0, 0])
        _save(path, image, **({"transparency": 0} if dark else {}))


def _clutter(root: Path, folder: str) -> None:
    for name in (".DS_Store", "Thumbs.db", "._a.png", f"{folder}/._a.png", f"{folder}/Thumbs.db",
                 f"__MACOSX/{folder}/._a.png", f"__MACOSX/{folder}/a.png"):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\0")


def _workbook(path: Path, rows: list[tuple[object, ...]]) -> None:
    workbook = openpyxl.Workbook()
    sheet = workbook.active
    for row in [*rows, *[(None,) * len(rows[0])] * 3, (None, " ")]:
        sheet.append(row)
    workbook.create_sheet("dictionary").append(["Image", "Type", "what the columns mean"])
    workbook.save(path)


def _udiat(root: Path) -> dict[str, Expected]:
    found = {}
    rows: list[tuple[object, ...]] = [("Image ", "TYPE", "Diagnosis", None, None)]
    for number in range(1, NUM_IMAGES + 1):
        gray, mask = _drawn(number)
        stem, label = f"{number:06}", LABELS[number % 2]
        suffix = ".PNG" if number % 3 == 0 else ".png"
        shown = _image(root / "original" / (stem + suffix), gray, "L" if number % 2 else "RGB")
        _mask(root / "GT" / f"{stem}.png", mask, "255" if number % 2 else "1 bit")
        cell = (stem, number, float(number), f" {stem}.PNG ")[number % 4]
        legend = "FA: fibroadenoma" if number < 4 else None
        rows.append((cell, f"{label.title()} ", "FA" if number % 2 else None, None, legend))
        found[stem] = Expected(label, shown, mask, {"histology": "FA"} if number % 2 else {})
    _workbook(root / "DatasetB.xlsx", [*rows, (None, None, None, None, "IDC: ductal")])
    _clutter(root, "original")
    return found


def _bus_bra(root: Path) -> dict[str, Expected]:
    found = {}
    lines = ["ID,Case,Histology,Pathology,BIRADS,Device,Width,Height,Side,BBOX"]
    folds = ["ID,Pathology,kFold"]
    for number in range(NUM_IMAGES):
        gray, mask = _drawn(100 + number)
        case, side = number // 2, "lr"[number % 2]
        label, stem = LABELS[case % 2], f"{case:04}-{side}"
        shown = _image(root / "Images" / f"bus_{stem}.png", gray, "L")
        _mask(root / "Masks" / f"mask_{stem}.png", mask, MASKS[number % 4])
        lines.append(
            f'bus_{stem},{case},"Cyst, simple",{label},{2 + number % 4},GE Logiq 7 ,700,900,{side},'
            '"[91,24,103,79]"'
        )
        folds.append(f"bus_{stem},{label},{case // 2 % 5 + 1}.0")
        meta = {"histology": "Cyst, simple", "birads": str(2 + number % 4), "side": side}
        found[f"bus_{stem}"] = Expected(label, shown, mask, meta | {"device": "GE Logiq 7"})
    (root / "bus_data.csv").write_bytes("\r\n".join([*lines, ",,,,,,,,,", ""]).encode())
    (root / "5-fold-cv.csv").write_bytes("\r\n".join([*folds, ""]).encode("utf-8-sig"))
    _clutter(root, "Images")
    return found


def _bus_uclm(root: Path) -> dict[str, Expected]:
    found = {}
    lines = ["Image;Resolution;Label;Doppler;Marks;Combined"]
    for number in range(NUM_IMAGES):
        gray, mask = _drawn(200 + number)
        label, patient = LABELS[number // 2 % 3], f"P{'ABCDEFGHIJKL'[number // 2]}"
        stem = f"{patient}_{number % 2:03}"
        shown = _image(root / "images" / f"{stem}.png", gray, "RGB")
        mask = mask & (label != "normal")
        drawn = np.kron(mask, np.ones((2, 2), np.bool_)) if number % 4 == 0 else mask
        colour = (255, 0, 0) if label == "malignant" else (0, 255, 0)
        pixels = drawn[..., None] * np.array(colour, np.uint8)
        _save(root / "masks" / f"{stem}.PNG", Image.fromarray(pixels.astype(np.uint8)))
        lines.append(f"{stem}.png;856x606;{label.title()};Yes;0; ")
        meta = {"resolution": "856x606", "doppler": "Yes", "marks": "0"}
        found[stem] = Expected(label, shown, mask, meta)
    (root / "INFO.csv").write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    _clutter(root, "images")
    return found


def _breast(root: Path) -> dict[str, Expected]:
    found = {}
    header = ("CaseID", "Image_filename", "Mask_tumor_filename", "Mask_other_filename",
              "Pixel_size", "BIRADS", "Verification", "Diagnosis", "Classification")  # fmt: skip
    rows: list[tuple[object, ...]] = [header]
    for number in range(1, NUM_IMAGES + 1):
        gray, mask = _drawn(300 + number)
        stem, label = f"case{number:03}", LABELS[number % 3]
        folder = root / "images and masks"
        shown = _image(folder / f"{stem}.png", gray, "RGBA" if number % 2 else "RGB")
        names = []
        if label == "normal":
            mask = np.zeros_like(mask)
        else:
            names.append(f"{stem}_tumor.png")
            _mask(folder / names[0], mask, MASKS[number % len(MASKS)])
        if number == 1:
            second = np.zeros_like(mask)
            second[2:9, 2:9] = True
            names.append(f"{stem}_tumor2.png")
            _mask(folder / names[1], second, "255")
            mask = mask | second
        _mask(folder / f"{stem}_other1.png", np.ones_like(mask), "255")
        millimetres = None if number == 3 else 0.06 + number / 500
        cell = None if millimetres is None else millimetres / 10
        size = "not available" if cell is None else f"{cell:.6f}" if number % 2 else cell
        missing = ("Not applicable", None, "")[number // 3 % 3]
        rows.append((number, f"{stem}.png", " & ".join(names) or missing, f"{stem}_other1.png",
                     size, "4a", "biopsy", "Cyst", label))  # fmt: skip
        meta = {"birads": "4a", "verification": "biopsy", "histology": "Cyst"}
        found[stem] = Expected(label, shown, mask, meta, millimetres)
    _workbook(root / "BrEaST-Lesions-USG-clinical-data.xlsx", rows)
    _clutter(root, "images and masks")
    return found


def _busi(root: Path) -> dict[str, Expected]:
    found = {}
    for number in range(NUM_IMAGES):
        gray, mask = _drawn(400 + number)
        label = LABELS[number % 3]
        mask = mask & (label != "normal")
        stem = f"{label} ({number // 3 + 1})"
        shown = _image(root / label / f"{stem}{'.PNG' if number % 4 else '.png'}", gray, "RGB")
        _mask(root / label / f"{stem}_mask.png", mask, ("255", "1 bit", "RGBA")[number % 3])
        if number == 3:
            second = np.zeros_like(mask)
            second[2:9, 2:9] = True
            _mask(root / label / f"{stem}_mask_1.png", second, "255")
            mask = mask | second
        found[stem] = Expected(label, shown, mask)
    _clutter(root, "benign")
    return found


def _table(root: Path, suffix: str) -> dict[str, Expected]:
    found = {}
    rows: list[list[object]] = [["path", "seg", "diagnosis", "mm", "BI-RADS"]]
    words = {"benign": "0", "malignant": "1", "normal": "gesund"}
    for number in range(NUM_IMAGES):
        gray, mask = _drawn(500 + number)
        label = ("benign", "malignant", "benign", "malignant", "normal")[number % 5]
        name = f"Bilder ü/{number} a.png"
        kind = ("L", "RGB", "RGBA", "16 bits", "P", "LA")[number % 6]
        shown = _image(root / name, gray, kind)
        if label != "normal":
            _mask(root / f"m/{number}.png", mask, MASKS[number % len(MASKS)])
        mask = mask & (label != "normal")
        size = None if number == 1 else 0.05 + number / 500
        masks = "" if label == "normal" else f"m/{number}.png"
        rows.append([name, masks, words[label], size, "4a" if number % 2 else None])
        found[name] = Expected(label, shown, mask, {"birads": "4a"} if number % 2 else {}, size)
    if suffix == "csv":
        with (root / "tabelle ü.csv").open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file, delimiter=";").writerows(rows)
    else:
        columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
        pq.write_table(pa.table(columns), root / "tabelle ü.parquet")
    return found


MAKERS: dict[str, Callable[[Path], dict[str, Expected]]] = {
    "busi": _busi,
    "udiat": _udiat,
    "bus_bra": _bus_bra,
    "bus_uclm": _bus_uclm,
    "breast": _breast,
}


def _prepare(source: Path, layout: str, to: Path, *options: str) -> int:
    return main(
        ["prepare", str(source), "--layout", layout, "--to", str(to), "--json", "--image-size",
         str(SIZE), "--num-folds", "2", *options]
    )  # fmt: skip


def _rows(to: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(path) for path in sorted((to / "shards").iterdir())]
    return {row["sample_id"]: row for row in pa.concat_tables(tables).to_pylist()}


def _check(row: dict[str, Any], expected: Expected) -> None:
    assert LABELS[row["label"]] == expected.label
    assert dict(row["meta"]) == expected.meta
    assert row["pixel_size"] == pytest.approx(expected.pixel_size, abs=1e-6)
    height, width = expected.mask.shape
    assert (row["height"], row["width"]) == (height, width)
    stored = np.asarray(Image.open(io.BytesIO(row["mask_png"])), np.bool_)
    np.testing.assert_array_equal(stored, expected.mask)
    packed = np.unpackbits(np.frombuffer(row["mask"], np.uint8)).reshape(SIZE, SIZE)
    nearest = expected.mask[np.arange(SIZE) * height // SIZE][:, np.arange(SIZE) * width // SIZE]
    assert np.mean(packed == nearest) > 0.95
    assert packed.any() == expected.mask.any()
    image = np.frombuffer(row["image"], np.uint8).reshape(SIZE, SIZE).astype(int)
    shown = Image.fromarray(expected.gray).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.abs(image - np.asarray(shown)).max() <= 1


@pytest.mark.parametrize("layout", MAKERS)
def test_a_collection_with_all_its_oddities_comes_out_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    source = tmp_path / "Daten ü" / "the collection"
    source.mkdir(parents=True)
    expected = MAKERS[layout](source)
    assert _prepare(source.parent, layout, tmp_path / "out") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["read"], result["dropped"], result["invalid"]) == (len(expected), [], [])
    labels = [item.label for item in expected.values()]
    assert result["kept"] == {name: labels.count(name) for name in LABELS}
    rows = _rows(tmp_path / "out")
    assert rows.keys() == expected.keys()
    for sample_id, row in rows.items():
        _check(row, expected[sample_id])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_table_of_any_kind_comes_out_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    expected = _table(tmp_path, suffix)
    options = ("--columns", "image=path,masks=seg,label=diagnosis,pixel_size=mm",
               "--classes", "0=benign,1=malignant,Gesund=normal")  # fmt: skip
    assert _prepare(tmp_path / f"tabelle ü.{suffix}", "table", tmp_path / "out", *options) == 0
    rows = _rows(tmp_path / "out")
    assert rows.keys() == expected.keys()
    for sample_id, row in rows.items():
        _check(row, expected[sample_id])
    assert capsys.readouterr().out.count("\n") == 1


def test_official_folds_arrive_in_the_rows(tmp_path: Path) -> None:
    expected = _bus_bra(tmp_path)
    to = tmp_path / "out"
    assert _prepare(tmp_path, "bus_bra", to, "--folds", "official", "--num-folds", "5") == 0
    rows = _rows(to)
    made = json.loads((to / "dataset.json").read_text())
    assert (made["protocol"], made["fold_rule"]) == ("official", "given")
    assert {name: row["fold"] for name, row in rows.items()} == {
        name: int(name[4:8]) // 2 % 5 for name in expected
    }


def _unlink(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


def _damage(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-40])


def _replace(table: str, old: str, new: str) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        text = (root / table).read_bytes().decode()
        assert text.count(old) == 1
        (root / table).write_bytes(text.replace(old, new).encode())

    return spoil


def _cell(name: str, at: str, value: object) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        workbook = openpyxl.load_workbook(root / name)
        workbook.worksheets[0][at] = value
        workbook.save(root / name)

    return spoil


def _coloured(name: str, colour: tuple[int, int, int]) -> Callable[[Path], object]:
    def spoil(root: Path) -> None:
        mask = np.asarray(Image.open(root / name)).any(axis=2)
        Image.fromarray(mask[..., None] * np.array(colour, np.uint8)).save(root / name)

    return spoil


def _stray(name: str) -> Callable[[Path], object]:
    return lambda root: _image(root / name, _drawn(999)[0], "L")


BREAST = "BrEaST-Lesions-USG-clinical-data.xlsx"
IMAGES = "images and masks"


@pytest.mark.parametrize(
    ("layout", "spoil", "sample_id", "why"),
    [
        ("busi", _unlink("benign/benign (1)_mask.png"), "benign (1)", "A benign image must have"),
        ("busi", _unlink("benign/benign (1).png"), "benign (1)", "A mask must lie beside"),
        ("udiat", _unlink("GT/000002.png"), "000002", "Row 3 of DatasetB.xlsx must name files"),
        ("udiat", _damage("GT/000002.png"), "000002", "GT/000002.png cannot be read"),
        ("udiat", _cell("DatasetB.xlsx", "B3", "Cyst"), "000002", "Row 3 of DatasetB.xlsx must"),
        ("udiat", _stray("original/000099.png"), "000099", "Every image must have a row"),
        ("bus_bra", _unlink("Images/bus_0001-l.png"), "bus_0001-l", "Line 4 of bus_data.csv must"),
        ("bus_bra", _replace("bus_data.csv", "bus_0001-l,1,", "bus_0001-l,,"), "bus_0001-l",
         "Line 4 of bus_data.csv must have a value"),
        ("bus_bra", _stray("Images/bus_0099-s.png"), "bus_0099-s", "Every image must have a row"),
        ("bus_uclm", _unlink("masks/PA_001.PNG"), "PA_001", "Line 3 of INFO.csv must name files"),
        ("bus_uclm", _replace("INFO.csv", "PA_001.png;856x606;Benign", "PA_001.png;856x606;Odd"),
         "PA_001", "Line 3 of INFO.csv must have a label"),
        ("bus_uclm", _coloured("masks/PA_001.PNG", (255, 0, 0)), "PA_001",
         "A lesion of this class must be green in its mask, but masks/PA_001.PNG has more of"),
        ("breast", _unlink(f"{IMAGES}/case001_tumor2.png"), "case001", f"Row 2 of {BREAST} must"),
        ("breast", _cell(BREAST, "C3", "case001_tumor.png"), "case002", f"Row 3 of {BREAST} must"),
        ("breast", _cell(BREAST, "E2", "tiny"), "case001", f"Row 2 of {BREAST} must have a pos"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_used_is_refused_in_a_sentence_or_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    layout: str, spoil: Callable[[Path], object], sample_id: str, why: str,
) -> None:  # fmt: skip
    source = tmp_path / "source"
    source.mkdir()
    MAKERS[layout](source)
    spoil(source)
    assert _prepare(source, layout, tmp_path / "out") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"mtil: {why}")
    assert captured.err.count("\n") == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert _prepare(source, layout, tmp_path / "out", "--skip-invalid") == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["sample_id"] for item in found["invalid"]] == [sample_id]
    assert found["invalid"][0]["why"] == captured.err.removeprefix("mtil: ").rstrip()
    assert sum(found["kept"].values()) == found["read"] - 1
    assert sample_id not in _rows(tmp_path / "out")


def test_the_first_hundred_reasons_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(f"{number}.png,,benign\n" for number in range(120))
    (tmp_path / "t.csv").write_text("image,masks,label\n" + lines)
    assert _prepare(tmp_path / "t.csv", "table", tmp_path / "out") == 2
    stderr_lines = capsys.readouterr().err.splitlines()
    assert stderr_lines[0].startswith("mtil: 120 of 120 images cannot be used")
    assert len(stderr_lines) == 102
    assert all(line.startswith("- Line ") for line in stderr_lines[1:-1])
    assert stderr_lines[-1] == "- and 20 more"


def test_reasons_of_all_sources_and_of_table_and_pixels_are_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("udiat", "bus_bra"):
        (tmp_path / layout).mkdir()
        MAKERS[layout](tmp_path / layout)
    (tmp_path / "udiat" / "GT" / "000002.png").write_bytes(b"no image")
    (tmp_path / "udiat" / "original" / "000005.png").unlink()
    (tmp_path / "bus_bra" / "Images" / "bus_0001-l.png").unlink()
    more = ("--and", str(tmp_path / "bus_bra"), "--layout", "bus_bra")
    assert _prepare(tmp_path / "udiat", "udiat", tmp_path / "out", *more) == 2
    stderr_lines = capsys.readouterr().err.splitlines()
    assert stderr_lines[0] == (
        f"mtil: 3 of {2 * NUM_IMAGES} images cannot be used; correct them or add --skip-invalid:"
    )
    starts = ("- GT/000002.png cannot", "- Row 6 of DatasetB.xlsx must", "- Line 4 of bus_data")
    assert all(line.startswith(start) for line, start in zip(stderr_lines[1:], starts, strict=True))


def test_skipped_images_of_two_sources_keep_their_prefix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("udiat", "bus_bra"):
        (tmp_path / layout).mkdir()
        MAKERS[layout](tmp_path / layout)
    (tmp_path / "udiat" / "GT" / "000002.png").unlink()
    (tmp_path / "bus_bra" / "Images" / "bus_0001-l.png").unlink()
    more = ("--skip-invalid", "--and", str(tmp_path / "bus_bra"), "--layout", "bus_bra")
    assert _prepare(tmp_path / "udiat", "udiat", tmp_path / "out", *more) == 0
    found = json.loads(capsys.readouterr().out)
    assert [item["sample_id"] for item in found["invalid"]] == [
        "bus-bra/bus_0001-l",
        "udiat/000002",
    ]
    assert found["read"] == 2 * NUM_IMAGES
