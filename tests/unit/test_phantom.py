"""Synthetic images: layout, determinism, and no shortcut to the class."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from mtil.data import phantom
from mtil.data.layouts import scan
from mtil.errors import DataError


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_same_seed_same_bytes_and_more_images_only_add(tmp_path: Path) -> None:
    phantom.write(tmp_path / "a", num_images=10, seed=3, image_size=64)
    phantom.write(tmp_path / "b", num_images=12, seed=3, image_size=64)
    phantom.write(tmp_path / "c", num_images=10, seed=4, image_size=64)
    a, b, c = (_contents(tmp_path / name) for name in "abc")
    assert a == {name: b[name] for name in a}
    assert len(b) > len(a)
    assert not [name for name in a if "mask" not in name and a[name] == c.get(name)]


def test_layout_is_busi_with_five_three_and_two_in_ten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # empty: allowed
    phantom.write(tmp_path / "out", num_images=20, seed=0, image_size=64)
    _, records = scan(str(tmp_path / "out"), "busi")
    labels = [record.label for record in records]
    assert [labels.count(label) for label in range(3)] == [10, 6, 4]
    assert all(record.masks for record in records)
    assert "benign (1)" in {record.sample_id for record in records}


def test_masks_are_black_only_for_normals_and_lie_on_darker_pixels() -> None:
    drawn = [phantom.draw(0, index, 128) for index in range(40)]
    sizes = {drawing.gray.shape for drawing in drawn}
    assert len(sizes) > 30
    for drawing in drawn:
        mask = np.logical_or.reduce(drawing.masks)
        assert mask.shape == drawing.gray.shape
        assert mask.any() == (drawing.label != phantom.NORMAL)
        if mask.any():
            assert drawing.gray[mask].mean() < drawing.gray[~mask].mean() - 15


def test_no_single_number_tells_the_class() -> None:
    tumours = [
        drawing
        for drawing in (phantom.draw(1, index, 128) for index in range(400))
        if drawing.label != phantom.NORMAL
    ]
    malignant = [drawing.label == phantom.MALIGNANT for drawing in tumours]
    masks = [np.logical_or.reduce(drawing.masks) for drawing in tumours]
    grays = [drawing.gray for drawing in tumours]
    numbers = {
        "brightness": [gray.mean() for gray in grays],
        "spread": [gray.std() for gray in grays],
        "area": [mask.mean() for mask in masks],
        "size": [mask.size for mask in masks],
        "darkness": [gray[mask].mean() for gray, mask in zip(grays, masks, strict=True)],
    }
    for name, values in numbers.items():
        auc = roc_auc_score(malignant, values)
        assert max(auc, 1 - auc) < 0.7, name


def test_outline_tells_the_class() -> None:
    """The shape is what a network can learn: spiculated outlines are long for their area."""
    roughness, malignant = [], []
    for index in range(100):
        drawing = phantom.draw(2, index, 128)
        if drawing.label == phantom.NORMAL:
            continue
        mask = drawing.masks[0]
        edge = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        roughness.append(edge / np.sqrt(mask.sum()))
        malignant.append(drawing.label == phantom.MALIGNANT)
    assert roc_auc_score(malignant, roughness) > 0.9


def test_a_filled_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="must be an empty or new folder"):
        phantom.write(tmp_path, num_images=3, seed=0, image_size=64)
    with pytest.raises(DataError, match="must be an empty or new folder"):
        phantom.write(tmp_path / "note.txt", num_images=3, seed=0, image_size=64)
    assert _contents(tmp_path) == {"note.txt": b"mine"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_images": 0}, "at least one image"),
        ({"seed": -1}, "must not be negative"),
        ({"image_size": 16}, "at least 64"),
    ],
)
def test_senseless_numbers_are_refused(
    tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    options = {"num_images": 3, "seed": 0, "image_size": 64} | changed
    with pytest.raises(DataError, match=message):
        phantom.write(tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = phantom.draw

    def interrupted(seed: int, index: int, image_size: int) -> phantom.Phantom:
        if index == 3:
            raise KeyboardInterrupt
        return whole(seed, index, image_size)

    monkeypatch.setattr(phantom, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom.write(tmp_path / "out", num_images=5, seed=0, image_size=64)
    assert not any(tmp_path.iterdir())
