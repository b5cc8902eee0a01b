"""Images shared by two data sets: equal pixels, and near-copies by the audit's facts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.overlap import find_shared_images, list_images
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.phantom.folder import write_phantoms
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

EQUAL, BRIGHTER = "benign (1)", "benign (2)"


@pytest.fixture(scope="module")
def other_uri(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data set of new phantoms, a copy of an image and a brighter copy of an image."""
    folder = tmp_path_factory.mktemp("other")
    write_phantoms(folder / "images", num_images=12, seed=91, image_size=64)
    for number, (name, change) in enumerate([(EQUAL, 0), (BRIGHTER, 9)], start=70):
        for part in ("", "_mask"):
            pixels = np.asarray(Image.open(phantoms / "benign" / f"{name}{part}.png"))
            if not part:
                pixels = np.clip(pixels.astype(int) + change, 0, 255).astype(np.uint8)
            target = folder / "images" / "benign" / f"benign ({number}){part}.png"
            Image.fromarray(pixels).save(target)
    source = CollectionSource(uri=str(folder / "images"), layout="busi")
    prepare([source], str(folder / "set"), Settings(image_size=64, num_folds=2))
    return str(folder / "set")


def _find(
    data_uri: str, other_uri: str, wanted: set[str] | None = None, *, with_facts: bool = True
) -> list[tuple[str, str]]:
    def side(uri: str) -> tuple[LocalStore, Manifest, set[str]]:
        store = LocalStore(uri)
        manifest = manifests.load_manifest(store)
        if not with_facts:
            manifest = replace(manifest, facts=())
        return store, manifest, set(list_images(store, manifest))

    first, second = side(data_uri), side(other_uri)
    return find_shared_images(first, (*second[:2], second[2] if wanted is None else wanted))


def test_equal_pixels_and_near_copies_are_found(data_uri: str, other_uri: str) -> None:
    assert _find(data_uri, other_uri) == [
        (EQUAL, "benign (70)"),
        (BRIGHTER, "benign (71)"),
    ]


def test_without_facts_only_equal_pixels_are_found(data_uri: str, other_uri: str) -> None:
    assert _find(data_uri, other_uri, with_facts=False) == [(EQUAL, "benign (70)")]


def test_only_the_wanted_images_are_compared(data_uri: str, other_uri: str) -> None:
    assert _find(data_uri, other_uri, {"benign (71)", "benign (3)"}) == [(BRIGHTER, "benign (71)")]
    assert _find(data_uri, other_uri, {"benign (3)"}) == []
    assert _find(data_uri, other_uri, set()) == []


def test_the_fold_of_every_image_is_listed(data_uri: str, manifest: Manifest) -> None:
    store = LocalStore(data_uri)
    fold_of = list_images(store, manifest)
    assert len(fold_of) == manifest.num_rows == 60
    assert set(fold_of.values()) == {0, 1, 2}
    without = list_images(store, manifest, outside=1)
    assert without == {name: fold for name, fold in fold_of.items() if fold != 1}
