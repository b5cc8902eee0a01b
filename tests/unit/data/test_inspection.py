"""Inspection of a data set: audit counts, and leakage of image-level folds."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mtil import phantom
from mtil.data.dataset.manifest import load_manifest
from mtil.data.inspection import estimate_leakage, inspect_dataset, inspection_to_dict
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError
from mtil.storage import LocalStore

SIZE = 96


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a collection with a near-copy, an exact copy and a near-copy of a different class."""
    out = tmp_path_factory.mktemp("audit") / "busi"
    phantom.write_phantoms(out, num_images=40, seed=5, image_size=SIZE)
    _copy(out, "benign (1)", "benign (21)", brighter=True)
    _copy(out, "malignant (2)", "malignant (13)")
    _copy(out, "benign (3)", "malignant (14)", brighter=True)
    return out


def _copy(folder: Path, old: str, new: str, *, brighter: bool = False) -> None:
    for ending in (".png", "_mask.png"):
        source = folder / old.split()[0] / f"{old}{ending}"
        pixels = np.array(Image.open(source))
        if brighter and ending == ".png":
            pixels = np.clip(pixels * 1.1 + 8, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / new.split()[0] / f"{new}{ending}")


@pytest.fixture(scope="module")
def prepared(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("audit") / "data"
    prepare(
        [CollectionSource(uri=str(collection), layout="busi")],
        str(out),
        Settings(image_size=SIZE, allow_drops=0.1),
    )
    return out


def test_near_copies_share_a_group_and_exact_ones_are_kept_once(prepared: Path) -> None:
    rows = pq.read_table(_audit(prepared) / "images.parquet").to_pylist()
    by_id = {row["sample_id"]: row for row in rows}
    assert len(rows) == 43
    assert by_id["benign (21)"]["group"] == "benign (1)"
    assert by_id["benign (21)"]["fold"] == by_id["benign (1)"]["fold"]
    assert by_id["malignant (2)"]["fold"] is None
    assert by_id["malignant (2)"]["dropped"] == "its pixels are those of malignant (13)"
    assert by_id["malignant (13)"]["fold"] is not None
    for name in ("benign (3)", "malignant (14)"):
        assert by_id[name]["fold"] is None
        assert "two classes, benign and malignant" in by_id[name]["dropped"]
    pairs = pq.read_table(_audit(prepared) / "duplicates.parquet").to_pylist()
    assert {(row["sample_id_a"], row["sample_id_b"]): row["decision"] for row in pairs} == {
        ("benign (1)", "benign (21)"): "joined",
        ("benign (3)", "malignant (14)"): "group dropped: two classes",
        ("malignant (13)", "malignant (2)"): "copy dropped",
    }


def test_an_inspection_counts_what_the_audit_found(prepared: Path) -> None:
    found = inspect_dataset(LocalStore(str(prepared)))
    assert found.manifest.num_rows == 40
    assert found.manifest.num_groups == 39
    assert found.cross_class == (("benign (3)", "malignant (14)"),)
    assert (found.duplicate_groups, found.duplicate_images) == (3, 6)
    assert found.pairs == {"copy dropped": 1, "group dropped: two classes": 1, "joined": 1}
    # Six of 35 tumour images have a near-copy. Five even folds separate 4 of 5 pairs.
    assert 6 / 35 * 0.7 < found.leak.twins == found.leak.family < 6 / 35 * 0.9
    assert inspection_to_dict(found)["cross_class_pairs"] == [["benign (3)", "malignant (14)"]]


def test_masks_that_look_unusual_are_counted(collection: Path, prepared: Path) -> None:
    rows = pq.read_table(_audit(prepared) / "images.parquet").to_pylist()
    for row in rows[:10]:
        name = row["sample_id"]
        masks = (collection / name.split()[0]).glob(f"{name}_mask*.png")
        joined = np.logical_or.reduce([np.array(Image.open(path)) for path in masks])
        assert row["area_share"] == pytest.approx(joined.mean(), rel=1e-5)


def test_a_published_file_adds_to_what_the_audit_finds(collection: Path, tmp_path: Path) -> None:
    names = [p.stem for p in collection.rglob("*.png") if "_mask" not in p.stem]
    lines = [f"{name},{'x' if name in ('benign (5)', 'benign (6)') else name}" for name in names]
    (tmp_path / "groups.csv").write_text("\n".join(["image_id,group", *lines]) + "\n")
    source = CollectionSource(
        uri=str(collection), layout="busi", groups=str(tmp_path / "groups.csv")
    )
    made = prepare([source], str(tmp_path / "out"), Settings(image_size=SIZE, allow_drops=0.1))
    assert (made.num_rows, made.num_groups) == (40, 38)
    assert [item.sample_id for item in made.dropped] == [
        "benign (3)", "malignant (14)", "malignant (2)",
    ]  # fmt: skip
    found = inspect_dataset(LocalStore(str(tmp_path / "out")))
    assert found.pairs == {"copy dropped": 1, "group dropped: two classes": 1, "joined": 1}
    assert (found.duplicate_groups, found.duplicate_images) == (4, 8)
    assert found.parted == ()
    # Eight of 35 tumour images have a near-copy. Five even folds separate 4 of 5 pairs.
    assert 8 / 35 * 0.7 < found.leak.twins < 8 / 35 * 0.9


def test_given_folds_decide_and_what_they_part_is_said(collection: Path, tmp_path: Path) -> None:
    lines = ["image,masks,label,fold"]
    images = sorted(p for p in collection.rglob("*.png") if "_mask" not in p.stem)
    for at, image in enumerate(images):
        masks = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
        label = image.parent.name
        joined = "" if label == "normal" else "|".join(f"{label}/{p.name}" for p in masks)
        fold = {"benign (1)": 0, "benign (21)": 1}.get(image.stem, at % 2)
        lines.append(f"{label}/{image.name},{joined},{label},{fold}")
    table = collection / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    try:
        made = prepare([CollectionSource(uri=str(table), layout="table")], str(tmp_path / "out"),
                       Settings(image_size=SIZE, allow_drops=0.1))  # fmt: skip
    finally:
        table.unlink()
    assert (made.fold_rule, made.num_rows, made.num_groups) == ("given", 43, 43)
    found = inspect_dataset(LocalStore(str(tmp_path / "out")))
    assert found.pairs == {"left to the given folds": 3}
    assert (found.duplicate_groups, found.duplicate_images) == (3, 6)
    assert ("benign/benign (1).png", "benign/benign (21).png") in found.parted
    assert found.leak.twins > 0.05  # with two folds
    assert found.leak.family == 0


def test_the_paper_protocol_takes_tumour_images_one_by_one(
    collection: Path, tmp_path: Path
) -> None:
    source = CollectionSource(uri=str(collection), layout="busi")
    settings = Settings(image_size=SIZE, allow_drops=0.1, protocol="paper")
    made = prepare([source], str(tmp_path / "out"), settings)
    assert made.kept == {"benign": 21, "malignant": 14, "normal": 0}
    assert (made.protocol, made.fold_rule) == ("paper", "image-level stratified by class and size")
    assert len(made.dropped) == 8
    assert inspect_dataset(LocalStore(str(tmp_path / "out"))).leak.twins > 0.1


def test_lesion_sizes_are_spread_unless_classes_alone_are_asked_for(
    collection: Path, tmp_path: Path
) -> None:
    source = CollectionSource(uri=str(collection), layout="busi")
    settings = Settings(image_size=SIZE, allow_drops=0.1, num_folds=3, stratify="class")
    by_class = prepare([source], str(tmp_path / "a"), settings)
    by_size = prepare(
        [source], str(tmp_path / "b"), Settings(image_size=SIZE, allow_drops=0.1, num_folds=3)
    )
    assert (by_class.fold_rule, by_size.fold_rule) == (
        "grouped stratified",
        "grouped stratified by class and size",
    )
    assert by_class.fingerprint != by_size.fingerprint
    rows = pq.read_table(_audit(tmp_path / "b") / "images.parquet").to_pylist()
    tumours = sorted((row["area_share"], row["fold"]) for row in rows
                     if row["label"] < 2 and row["fold"] is not None)  # fmt: skip
    third = len(tumours) // 3
    for part in (tumours[:third], tumours[-third:]):
        counts = [sum(fold == number for _, fold in part) for number in range(3)]
        assert max(counts) - min(counts) <= 2  # at most an extra image per class


def test_a_holdout_is_in_no_fold(collection: Path, tmp_path: Path) -> None:
    source = CollectionSource(uri=str(collection), layout="busi")
    settings = Settings(image_size=SIZE, allow_drops=0.1, holdout="0.25", num_folds=2)
    made = prepare([source], str(tmp_path / "out"), settings)
    held, folds = made.holdout, made.folds
    assert set(folds) == {"0", "1"}
    assert 3 <= held["benign"] <= 7
    assert 2 <= held["malignant"] <= 4
    assert {
        name: held[name] + sum(fold[name] for fold in folds.values()) for name in held
    } == made.kept


def test_the_splits_of_one_data_set_make_another(
    collection: Path, prepared: Path, tmp_path: Path
) -> None:
    source = CollectionSource(uri=str(collection), layout="busi")
    settings = Settings(
        image_size=SIZE, allow_drops=0.1, splits=str(prepared / "splits.json"), seed=99
    )
    made = prepare([source], str(tmp_path / "out"), settings)
    before = inspect_dataset(LocalStore(str(prepared))).manifest
    assert made.fold_rule == "splits file"
    assert made.fingerprint == before.fingerprint
    assert made.folds == before.folds


def test_a_splits_file_may_part_near_copies_which_is_said(
    collection: Path, prepared: Path, tmp_path: Path
) -> None:
    values = json.loads((prepared / "splits.json").read_text())
    moved = values["images"]["benign (21)"]
    moved["fold"] = (moved["fold"] + 1) % 5
    (tmp_path / "splits.json").write_text(json.dumps(values))
    source = CollectionSource(uri=str(collection), layout="busi")
    settings = Settings(image_size=SIZE, allow_drops=0.1, splits=str(tmp_path / "splits.json"))
    made = prepare([source], str(tmp_path / "out"), settings)
    assert (made.num_rows, made.num_groups) == (40, 40)
    found = inspect_dataset(LocalStore(str(tmp_path / "out")))
    assert found.parted == (("benign (1)", "benign (21)"),)
    assert found.pairs["left to the given folds"] == 1
    assert len(made.dropped) == 3  # the images of further pairs are not in the file


def test_an_audit_that_is_lost_is_said(prepared: Path, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.write("dataset.json", (prepared / "dataset.json").read_bytes())
    with pytest.raises(DataError, match=r"has lost audit/.*/duplicates\.parquet"):
        inspect_dataset(store)


@pytest.mark.parametrize("name", ["duplicates.parquet", "images.parquet", "splits.json"])
@pytest.mark.parametrize("how", ["a byte", "cut", "longer"])
def test_files_that_are_not_those_of_the_manifest_are_noticed(
    prepared: Path, tmp_path: Path, name: str, how: str
) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    path = out / name if name == "splits.json" else _audit(out) / name
    data = path.read_bytes()
    middle = len(data) // 2
    changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    path.write_bytes({"a byte": changed, "cut": data[:-3], "longer": data + b"x"}[how])
    with pytest.raises(DataError, match=r"is not the file written|bytes differ"):
        inspect_dataset(LocalStore(str(out)))


def test_an_audit_of_an_earlier_version_is_read(prepared: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(prepared, tmp_path / "out"))
    path = _audit(out) / "images.parquet"
    values = json.loads((out / "dataset.json").read_text())
    del values["files"]
    (out / "dataset.json").write_text(json.dumps(values))
    pq.write_table(pq.read_table(path).drop_columns(["patient"]), path)
    assert inspection_to_dict(inspect_dataset(LocalStore(str(out))))["patients_of_two_classes"] == 0


def _audit(folder: Path) -> Path:
    return folder / load_manifest(LocalStore(str(folder))).audit


def test_leakage_worked_out_by_hand() -> None:
    """A pair and two single images of a class are in two folds of two images.

    Four of the six choices of the first fold's images separate the pair: half of the images leak
    in two thirds of the cases.
    """
    group, label = np.array([7, 7, 8, 9]), np.zeros(4, np.int8)
    parted = sum(len({0, 1} & set(fold)) == 1 for fold in itertools.combinations(range(4), 2))
    assert parted == 4
    assert estimate_leakage(group, label, 2) == pytest.approx(0.5 * parted / 6, abs=0.05)


def test_nothing_leaks_where_images_stand_alone() -> None:
    assert estimate_leakage(np.arange(20), np.zeros(20, np.int8), 5) == 0
    assert estimate_leakage(np.zeros(0, np.int64), np.zeros(0, np.int8), 5) == 0
