"""The page of a data set: counts of the manifest, near-copies side by side, warnings."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mtil import phantom
from mtil.cli import main
from mtil.data.inspection import Inspection, inspect_dataset
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.report import audit
from mtil.report.elements import Report, Strip
from mtil.storage import LocalStore, Store

NUM_COPIES = 6


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Phantoms with near-copies."""
    folder = tmp_path_factory.mktemp("copies")
    phantom.write_phantoms(
        folder / "busi", num_images=24, seed=1, image_size=96, num_duplicates=NUM_COPIES
    )
    prepare(
        [CollectionSource(uri=str(folder / "busi"), layout="busi")],
        str(folder / "set"),
        Settings(image_size=64, num_folds=3, allow_drops=0.5),
    )
    return LocalStore(str(folder / "set"))


@pytest.fixture(scope="module")
def inspection(store: Store) -> Inspection:
    return inspect_dataset(store)


@pytest.fixture(scope="module")
def page(store: Store, inspection: Inspection) -> Report:
    return audit.build_audit(store, inspection)


def _strips(page: Report) -> dict[str, Strip]:
    return {strip.title: strip for section in page.sections for strip in section.strips}


def test_folds_and_pairs_are_those_of_the_manifest(page: Report, inspection: Inspection) -> None:
    tables = {table.name: table for table in page.tables()}
    folds = {row[0]: row[1:] for row in tables["folds"].rows}
    for fold, counts in inspection.manifest.folds.items():
        assert folds[str(fold)] == tuple(
            counts[label] for label in ("benign", "malignant", "normal")
        )
    assert dict(tables["pairs"].rows) == inspection.pairs
    assert len(tables["dropped"].rows) == len(inspection.manifest.dropped)
    assert f"{inspection.manifest.read} images read" in page.summary


def test_near_copies_lie_side_by_side_with_distance_and_decision(
    page: Report, inspection: Inspection
) -> None:
    strips = _strips(page)
    assert sum(inspection.pairs.values()) >= NUM_COPIES // 2
    for decision, count in inspection.pairs.items():
        strip = strips[f"Near-copies: {decision}"]
        assert len(strip.frames) == count
        for frame in strip.frames:
            assert len(frame.pictures) == 2
            assert "distance" in frame.caption
            assert all(picture.image.startswith("data:image/webp") for picture in frame.pictures)


def test_many_pairs_are_cut_and_the_page_says_so(
    store: Store, inspection: Inspection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_PAIRS", 1)
    strips = _strips(audit.build_audit(store, inspection))
    (decision, count), *_ = inspection.pairs.items()
    strip = strips[f"Near-copies: {decision}"]
    assert len(strip.frames) == 1
    assert strip.note == ("" if count == 1 else f"1 of {count} pairs are shown.")


def test_every_class_has_examples_with_outlines(page: Report) -> None:
    strips = _strips(page)
    for label in ("benign", "malignant", "normal"):
        pictures = [frame.pictures[0] for frame in strips[f"Examples: {label}"].frames]
        assert 0 < len(pictures) <= audit.MAX_EXAMPLES
        assert all(picture.name.startswith(label) for picture in pictures)
        assert all(bool(picture.layer) == (label != "normal") for picture in pictures)


def test_leaking_folds_are_called_so(store: Store, inspection: Inspection) -> None:
    assert audit.build_audit(store, inspection).warnings == ()
    manifest = replace(inspection.manifest, protocol="paper")
    leaking = replace(inspection, manifest=manifest, parted=(("a", "b"),))
    (warning,) = audit.build_audit(store, leaking).warnings
    assert warning.startswith("These folds leak")
    assert "1 pairs" in warning


def test_the_command_writes_a_page(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", store.uri, "--to", str(page), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["read"] == 24 + NUM_COPIES
    assert page.read_text().startswith("<!doctype html>")
    assert main(["inspect", store.uri, "--to", str(tmp_path / "page.txt")]) == 2
    assert "must be an .html file" in capsys.readouterr().err
