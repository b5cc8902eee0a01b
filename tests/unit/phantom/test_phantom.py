"""Synthetic images: layout, determinism, marks, near-duplicates, and no shortcut to the class."""

import csv
import itertools
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from mtil import phantom
from mtil.cli import main
from mtil.data.audit.duplicates import describe_image, find_near_copies
from mtil.data.dataset import manifest, shards
from mtil.data.layouts import scan_collection
from mtil.errors import DataError, RunError, StorageError
from mtil.phantom import folder
from mtil.phantom.scanner import simulate_speckle
from mtil.storage import LocalStore
from tests.waiting import PATIENCE_S, until, until_gone

NUM_ORIGINALS, NUM_DUPLICATES = 40, 36
NUM_VIEWS, MAX_VIEWS, NUM_COPIES = 61, 4, 30


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the signal handler after a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with near-duplicates of every kind, drawn by two processes."""
    out = tmp_path_factory.mktemp("planted") / "busi"
    phantom.write_phantoms(
        out, num_images=NUM_ORIGINALS, seed=3, image_size=64, num_duplicates=NUM_DUPLICATES,
        workers=2,
    )  # fmt: skip
    return out


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with several views of most patients and near-duplicates of some."""
    out = tmp_path_factory.mktemp("viewed") / "busi"
    phantom.write_phantoms(
        out, num_images=NUM_VIEWS, seed=4, image_size=65, num_duplicates=NUM_COPIES,
        max_views=MAX_VIEWS, workers=2,
    )  # fmt: skip
    return out


def _rows(planted: Path) -> list[dict[str, str]]:
    with (planted / "duplicates.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _patients(folder: Path) -> dict[str, str]:
    with (folder / "patients.csv").open(newline="") as file:
        return {row["image_id"]: row["group"] for row in csv.DictReader(file)}


def _gray(planted: Path, sample_id: str) -> npt.NDArray[np.float64]:
    name = f"{sample_id.split()[0]}/{sample_id}.png"
    return np.asarray(Image.open(planted / name), dtype=np.float64)


def _mask(planted: Path, sample_id: str) -> npt.NDArray[np.bool_]:
    name = f"{sample_id.split()[0]}/{sample_id}_mask.png"
    return np.asarray(Image.open(planted / name), dtype=np.bool_)


def _similarity(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Return the correlation of two images shrunk to 16 x 16."""
    shrunk = [
        np.asarray(Image.fromarray(gray.astype(np.float32)).resize((16, 16), Image.Resampling.BOX))
        for gray in (a, b)
    ]
    return float(np.corrcoef(shrunk[0].ravel(), shrunk[1].ravel())[0, 1])


# Files


def test_same_seed_same_bytes_and_more_images_only_add(tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "a", num_images=10, seed=3, image_size=64)
    phantom.write_phantoms(tmp_path / "b", num_images=12, seed=3, image_size=64)
    phantom.write_phantoms(tmp_path / "c", num_images=10, seed=4, image_size=64)
    a, b, c = (_contents(tmp_path / name) for name in "abc")
    assert b.pop("patients.csv").startswith(a.pop("patients.csv"))
    assert a == {name: b[name] for name in a}
    assert len(b) > len(a)
    assert not [name for name in a if "mask" not in name and a[name] == c.get(name)]


def test_the_number_of_workers_does_not_change_a_byte(planted: Path, tmp_path: Path) -> None:
    phantom.write_phantoms(
        tmp_path / "out", num_images=NUM_ORIGINALS, seed=3, image_size=64,
        num_duplicates=NUM_DUPLICATES,
    )  # fmt: skip
    assert _contents(tmp_path / "out") == _contents(planted)


def test_near_duplicates_leave_the_originals_as_they_are(planted: Path, tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "out", num_images=NUM_ORIGINALS, seed=3, image_size=64)
    originals, with_twins = _contents(tmp_path / "out"), _contents(planted)
    assert with_twins["patients.csv"].startswith(originals.pop("patients.csv"))
    assert originals == {name: with_twins[name] for name in originals}
    assert "duplicates.csv" not in originals


def test_layout_is_busi_with_five_three_and_two_in_ten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()  # empty: allowed
    phantom.write_phantoms(tmp_path / "out", num_images=20, seed=0, image_size=64)
    records = scan_collection(str(tmp_path / "out"), "busi").records
    labels = [record.label for record in records]
    assert [labels.count(label) for label in range(3)] == [10, 6, 4]
    assert all(record.masks for record in records)
    assert "benign (1)" in {record.sample_id for record in records}


def test_near_duplicates_are_ordinary_images_of_the_layout(planted: Path) -> None:
    records = scan_collection(str(planted), "busi").records
    assert len(records) == NUM_ORIGINALS + NUM_DUPLICATES
    ids = {record.sample_id for record in records}
    assert {row["sample_id"] for row in _rows(planted)} <= ids
    for label, name in enumerate(("benign", "malignant", "normal")):
        count = sum(record.label == label for record in records)
        assert {f"{name} ({number})" for number in range(1, count + 1)} <= ids


# Near-duplicates


def test_the_list_names_every_kind_in_turn_and_originals_only(planted: Path) -> None:
    rows = _rows(planted)
    assert [row["kind"] for row in rows] == list(phantom.NEAR_COPY_KINDS) * 4
    assert set(phantom.NEAR_COPY_KINDS) == {
        "exact", "jpeg", "resize", "crop", "brightness", "contrast", "gamma", "flip", "calipers",
    }  # fmt: skip
    originals = {"benign": 20, "malignant": 12, "normal": 8}  # five, three and two in ten
    for row in rows:
        name, number = row["original"].rstrip(")").split(" (")
        assert 1 <= int(number) <= originals[name]
        name, number = row["sample_id"].rstrip(")").split(" (")
        assert int(number) > originals[name]


def test_one_in_twenty_near_duplicates_has_the_other_tumour_class(planted: Path) -> None:
    across = [
        (number, {row["sample_id"].split()[0], row["original"].split()[0]})
        for number, row in enumerate(_rows(planted))
        if row["sample_id"].split()[0] != row["original"].split()[0]
    ]
    assert across == [(10, {"benign", "malignant"}), (30, {"benign", "malignant"})]


def test_a_near_duplicate_is_like_its_original_and_like_no_other(planted: Path) -> None:
    rows = _rows(planted)
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        twin, original = (_gray(planted, row[key]) for key in ("sample_id", "original"))
        if row["kind"] == "flip":
            twin = twin[:, ::-1]
        assert _similarity(twin, original) > 0.9, row
        if other["original"] != row["original"]:
            gray = _gray(planted, other["original"])
            assert _similarity(twin, gray) < _similarity(twin, original), row


def test_each_kind_does_what_it_says(planted: Path) -> None:
    checks: dict[str, Callable[..., bool]] = {
        "exact": lambda a, b: np.array_equal(a, b),
        "jpeg": lambda a, b: a.shape == b.shape and 0 < np.abs(a - b).mean() < 10,
        "resize": lambda a, b: (
            a.shape != b.shape and abs(a.shape[0] / a.shape[1] - b.shape[0] / b.shape[1]) < 0.04
        ),
        "crop": lambda a, b: (
            any(
                np.array_equal(b, a[row : row + b.shape[0], column : column + b.shape[1]])
                for row in range(a.shape[0] - b.shape[0] + 1)
                for column in range(a.shape[1] - b.shape[1] + 1)
            )
            and b.size < a.size
        ),
        "brightness": lambda a, b: np.ptp((b - a)[(b > 0) & (b < 255)]) <= 1 and (a != b).any(),
        "contrast": lambda a, b: not 0.95 < b.std() / a.std() < 1.05,
        "gamma": lambda a, b: np.array_equal(a == 0, (b == 0) & (a == 0)) and (a != b).any(),
        "flip": lambda a, b: np.array_equal(a[:, ::-1], b),
        "calipers": lambda a, b: 0 < (a != b).mean() < 0.1 and (b[a != b] >= 200).all(),
    }
    for row in _rows(planted):
        a, b = (_gray(planted, row[key]) for key in ("original", "sample_id"))
        assert checks[row["kind"]](a, b), row


def test_masks_go_with_their_near_duplicates(planted: Path) -> None:
    for row in _rows(planted):
        a, b = (_mask(planted, row[key]) for key in ("original", "sample_id"))
        assert b.shape == _gray(planted, row["sample_id"]).shape
        assert a.any() == b.any()
        if row["kind"] == "flip":
            assert np.array_equal(a[:, ::-1], b)
        elif row["kind"] == "crop":
            assert a.sum() == b.sum()
        elif row["kind"] == "resize":
            assert b.mean() == pytest.approx(a.mean(), rel=0.15)
        else:
            assert np.array_equal(a, b)


# Patients


def test_without_views_every_image_is_of_another_patient(tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "out", num_images=3, seed=0, image_size=64, num_duplicates=1)
    (row,) = _rows(tmp_path / "out")
    index = ["benign (1)", "malignant (1)", "benign (2)"].index(row["original"])
    assert (tmp_path / "out" / "patients.csv").read_bytes() == (
        "image_id,group\nbenign (1),patient 1\nmalignant (1),patient 2\nbenign (2),patient 3\n"
        f"{row['sample_id']},patient {index + 1}\n"
    ).encode()


@pytest.mark.slow
def test_patients_have_one_to_so_many_views_of_one_class(tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "out", num_images=200, seed=7, image_size=64, max_views=3)
    patients = _patients(tmp_path / "out")
    assert len(patients) == 200
    views = [(of, list(ids)) for of, ids in itertools.groupby(patients, key=patients.__getitem__)]
    assert [of for of, _ in views] == [f"patient {number + 1}" for number in range(len(views))]
    numbers = [len(ids) for _, ids in views[:-1]]
    # For about 100 patients, three standard errors of a share of 1/3 are 0.14.
    assert np.bincount(numbers, minlength=4) / len(numbers) == pytest.approx(
        [0, 1 / 3, 1 / 3, 1 / 3], abs=0.14
    )
    classes = ("benign", "malignant", "benign", "normal", "benign")
    for number, (_, ids) in enumerate(views[:5]):
        assert {sample_id.split()[0] for sample_id in ids} == {classes[number]}
    assert set(patients) == {
        record.sample_id for record in scan_collection(str(tmp_path / "out"), "busi").records
    }


def test_more_views_only_add_and_the_last_patient_may_be_cut_short(tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "more", num_images=12, seed=3, image_size=64, max_views=9)
    more = _contents(tmp_path / "more")
    counts = list(_patients(tmp_path / "more").values())
    assert counts.count("patient 1") > 1
    num_images = counts.count("patient 1") - 1
    phantom.write_phantoms(
        tmp_path / "few", num_images=num_images, seed=3, image_size=64, max_views=9
    )
    few = _contents(tmp_path / "few")
    assert more.pop("patients.csv").startswith(few.pop("patients.csv"))
    assert few == {name: more[name] for name in few}
    assert set(_patients(tmp_path / "few").values()) == {"patient 1"}


def test_views_and_their_near_duplicates_are_the_same_bytes_from_one_process(
    viewed: Path, tmp_path: Path
) -> None:
    phantom.write_phantoms(
        tmp_path / "out", num_images=NUM_VIEWS, seed=4, image_size=65, num_duplicates=NUM_COPIES,
        max_views=MAX_VIEWS,
    )  # fmt: skip
    assert _contents(tmp_path / "out") == _contents(viewed)


def test_a_near_duplicate_of_a_view_is_its_patients_and_like_that_view(viewed: Path) -> None:
    patients = _patients(viewed)
    assert len(patients) == NUM_VIEWS + NUM_COPIES
    for row in _rows(viewed):
        assert patients[row["sample_id"]] == patients[row["original"]]
        twin, original = (_gray(viewed, row[key]) for key in ("sample_id", "original"))
        if row["kind"] == "flip":
            twin = twin[:, ::-1]
        assert _similarity(twin, original) > 0.9, row


def test_views_are_of_one_lesion_but_no_near_copies() -> None:
    """Two views of a patient show similar lesions, and the audit joins no images of 60 patients."""
    views = [
        [phantom.draw_phantom(5, patient, 96, view) for view in range(2)] for patient in range(60)
    ]
    tumours = [pair for pair in views if pair[0].label != phantom.NORMAL]
    assert all(len(one.masks) == len(other.masks) for one, other in tumours)
    sizes = np.array(
        [
            [np.sqrt(view.masks[0].sum() / min(view.gray.shape) ** 2) for view in pair]
            for pair in tumours
        ]
    )
    assert np.corrcoef(sizes.T)[0, 1] > 0.8
    rows = np.array(
        [
            [ndimage.center_of_mass(view.masks[0])[0] / view.gray.shape[0] for view in pair]
            for pair in tumours
        ]
    )
    assert np.corrcoef(rows.T)[0, 1] > 0.8
    assert all(abs(one.gray.mean() - other.gray.mean()) > 0.01 for one, other in views)
    found = [describe_image(view.gray) for pair in views for view in pair]
    assert (
        find_near_copies(
            np.stack([of.hashes for of in found]), np.stack([of.thumb for of in found])
        )
        == []
    )


def test_prepare_takes_the_patients_of_odd_phantoms(viewed: Path, tmp_path: Path) -> None:
    """61 images of about 65 pixels, and copies. Patients of two classes are dropped."""
    to = tmp_path / "data"
    command = ["prepare", viewed, "--layout", "busi", "--groups", viewed / "patients.csv"]
    command += ["--to", to, "--image-size", "64", "--num-folds", "3", "--allow-drops", "0.1"]
    assert main([*map(str, command)]) == 0
    store = LocalStore(str(to))
    made = manifest.load_manifest(store)
    assert made.read == NUM_VIEWS + NUM_COPIES
    patients = _patients(viewed)
    folds: dict[str, set[int]] = {}
    kept = set()
    for shard in made.shards:
        table = shards.read_shard(store, shard, ["sample_id", "fold"])
        for row in table.to_pylist():
            kept.add(row["sample_id"])
            folds.setdefault(patients[row["sample_id"]], set()).add(row["fold"])
    assert all(len(of_patient) == 1 for of_patient in folds.values())
    classes: dict[str, set[str]] = {}
    for sample_id, patient in patients.items():
        classes.setdefault(patient, set()).add(sample_id.split()[0])
    of_two_classes = {patient for patient, found in classes.items() if len(found) == 2}
    assert of_two_classes
    assert folds.keys() == classes.keys() - of_two_classes
    exact = [{row["sample_id"], row["original"]} for row in _rows(viewed) if row["kind"] == "exact"]
    whole = {name for name in patients if patients[name] not in of_two_classes}
    assert all(len(pair & kept) == 1 for pair in exact if pair <= whole)
    assert kept | set().union(*exact) >= whole >= kept


# Drawings


def test_masks_are_black_only_for_normals_and_lie_on_darker_pixels() -> None:
    drawn = [phantom.draw_phantom(0, index, 128) for index in range(40)]
    sizes = {drawing.gray.shape for drawing in drawn}
    assert len(sizes) > 30
    for drawing in drawn:
        mask = np.logical_or.reduce(drawing.masks)
        assert mask.shape == drawing.gray.shape
        assert mask.any() == (drawing.label != phantom.NORMAL)
        if mask.any():
            rows, columns = (np.nonzero(mask.any(axis=axis))[0] for axis in (1, 0))
            box = (
                slice(max(rows[0] - 5, 0), rows[-1] + 6),
                slice(max(columns[0] - 5, 0), columns[-1] + 6),
            )
            around = drawing.gray[box][~mask[box]]
            assert drawing.gray[mask].mean() < around.mean() - 5


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "view"), [(64, None), (256, None), (64, 1)])
def test_a_mask_is_one_piece_without_holes(image_size: int, view: int | None) -> None:
    masks = [
        mask for of in range(100) for mask in phantom.draw_phantom(9, of, image_size, view).masks
    ]
    for mask in masks:
        _, num_pieces = ndimage.label(mask)
        _, num_outside = ndimage.label(np.pad(~mask, 1, constant_values=True), np.ones((3, 3)))
        assert num_pieces == mask.any()
        assert num_outside == 1


@pytest.mark.parametrize("image_size", [64, 65, 200, 512])
def test_any_size_is_drawn(image_size: int) -> None:
    for index in range(4):
        drawing = phantom.draw_phantom(8, index, image_size)
        height, width = drawing.gray.shape
        assert 0.74 * image_size <= height <= image_size
        assert 0.84 * image_size <= width <= 1.25 * image_size
        assert drawing.gray.dtype == np.uint8
        assert drawing.gray.std() > 15


def test_speckle_has_the_contrast_of_averaged_looks() -> None:
    """Power averaged over n looks is gamma-distributed; the logarithm has variance trigamma(n).

    trigamma(n) is pi^2/6 for n = 1, less 1 for n = 2, less 5/4 for n = 3. The standard deviation in
    dB is 10 / ln(10) times the root.
    """
    flat = np.zeros((200, 200), np.float32)
    for looks, expected in ((1, 5.57), (2, 3.49), (3, 2.73)):
        power = simulate_speckle(np.random.default_rng(0), flat, (1.0, 1.5), looks)
        level = 10 * np.log10(power)
        assert level.std() == pytest.approx(expected, rel=0.06)
        assert power.mean() == pytest.approx(1, abs=0.08)
        neighbours = np.corrcoef(power[:, 1:].ravel(), power[:, :-1].ravel())[0, 1]
        apart = np.corrcoef(power[:, 12:].ravel(), power[:, :-12].ravel())[0, 1]
        assert neighbours > 0.7  # exp(-1 / (2 · 1.5²)) = 0.80
        assert abs(apart) < 0.1


@pytest.mark.slow
def test_there_are_shadows_and_enhancements_several_lesions_and_marks() -> None:
    drawn = [phantom.draw_phantom(6, index, 64) for index in range(600)]
    tumours = [drawing for drawing in drawn if drawing.label != phantom.NORMAL]
    assert {len(drawing.masks) for drawing in tumours} == {1, 2, 3}
    for drawing in tumours:
        assert all(mask.any() for mask in drawing.masks)
    # Three standard errors of a share among 600 are 0.042 at 0.14 and 0.037 at 0.10.
    assert np.mean([drawing.text for drawing in drawn]) == pytest.approx(0.14, abs=0.042)
    assert np.mean([drawing.calipers for drawing in drawn]) == pytest.approx(0.10, abs=0.037)
    differences = {label: _below(drawn, label) for label in (phantom.BENIGN, phantom.MALIGNANT)}
    for below in differences.values():
        assert (below < -15).mean() > 0.05
        assert (below > 5).mean() > 0.05
    assert differences[phantom.MALIGNANT].mean() < differences[phantom.BENIGN].mean() - 3


def _below(drawn: list[phantom.Phantom], label: int) -> npt.NDArray[np.float64]:
    """Return how much brighter images are below single lesions than beside."""
    differences = []
    for drawing in drawn:
        if drawing.label == label and len(drawing.masks) == 1:
            rows, columns = (np.nonzero(drawing.masks[0].any(axis=axis))[0] for axis in (1, 0))
            strip = drawing.gray[rows[-1] + 1 : rows[-1] + 11].astype(np.float64)
            under = np.zeros(strip.shape[1], np.bool_)
            under[columns[0] : columns[-1] + 1] = True
            differences.append(strip[:, under].mean() - strip[:, ~under].mean())
    return np.array(differences)


def _numbers(drawing: phantom.Phantom) -> dict[str, float]:
    """Return candidate features for a rule with a single threshold."""
    gray, mask = drawing.gray, np.logical_or.reduce(drawing.masks)
    rows, columns = (np.nonzero(mask.any(axis=axis))[0] for axis in (1, 0))
    height, width = gray.shape
    return {
        "brightness": gray.mean(),
        "contrast": gray.std(),
        "share of dark pixels": (gray < 20).mean(),
        "share of bright pixels": (gray > 200).mean(),
        "lower third": gray[-height // 3 :].mean(),
        "image size": gray.size,
        "image shape": height / width,
        "lesion's area": mask.mean(),
        "lesion's level": gray[mask].mean(),
        "lesion's darkness": gray[mask].mean() - gray[~mask].mean(),
        "lesion's unevenness": gray[mask].std(),
        "lesion's row": rows.mean() / height,
        "lesion's column": columns.mean() / width,
        "box's shape": (columns[-1] - columns[0] + 1) / (rows[-1] - rows[0] + 1),
        "number of lesions": len(drawing.masks),
        "text": drawing.text,
        "calipers": drawing.calipers,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("image_size", "view"), [(64, None), (128, None), (64, 0)])
def test_no_single_number_tells_the_class(image_size: int, view: int | None) -> None:
    drawn = [
        phantom.draw_phantom(1, index, image_size, view) for index in range(380)
    ]  # 304 tumours
    tumours = [drawing for drawing in drawn if drawing.label != phantom.NORMAL]
    malignant = [drawing.label == phantom.MALIGNANT for drawing in tumours]
    numbers = [_numbers(drawing) for drawing in tumours]
    for name in numbers[0]:
        auc = roc_auc_score(malignant, [float(of[name]) for of in numbers])
        assert max(auc, 1 - auc) < 0.7, name


@pytest.mark.slow
def test_outline_tells_the_class_but_not_always() -> None:
    """A network can learn the shape: irregular outlines are long for the area."""
    roughness, malignant = [], []
    for index in range(300):
        drawing = phantom.draw_phantom(2, index, 128)
        if drawing.label == phantom.NORMAL:
            continue
        mask = drawing.masks[0]
        edge = (mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum()
        roughness.append(edge / np.sqrt(mask.sum()))
        malignant.append(drawing.label == phantom.MALIGNANT)
    assert 0.8 < roc_auc_score(malignant, roughness) < 0.98


# Refusals and leftovers


def test_a_filled_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="must be an empty or new folder"):
        phantom.write_phantoms(tmp_path, num_images=3, seed=0, image_size=64)
    with pytest.raises(DataError, match="must be an empty or new folder"):
        phantom.write_phantoms(tmp_path / "note.txt", num_images=3, seed=0, image_size=64)
    assert _contents(tmp_path) == {"note.txt": b"mine"}


def test_a_target_below_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"cannot be written: Not a directory\.$"):
        phantom.write_phantoms(tmp_path / "note.txt" / "out", num_images=3, seed=0, image_size=64)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_images": 0}, "must be 1 to 10,000,000, but got 0"),
        ({"num_images": 10**30}, "must be 1 to 10,000,000"),
        ({"seed": -1}, "must not be negative"),
        ({"image_size": 16}, "64 to 4096 pixels, but got 16"),
        ({"image_size": 4097}, "64 to 4096 pixels, but got 4097"),
        ({"num_duplicates": -1}, "must be 0 to 3, the number of images, but got -1"),
        ({"num_duplicates": 4}, "must be 0 to 3, the number of images, but got 4"),
        ({"max_views": 0}, "1 to 1000 views, but got 0"),
        ({"max_views": 1001}, "1 to 1000 views, but got 1001"),
        ({"workers": 0}, "workers must be at least 1, but got 0"),
    ],
)
def test_senseless_numbers_are_refused(
    tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    options = {"num_images": 3, "seed": 0, "image_size": 64} | changed
    with pytest.raises(DataError, match=message):
        phantom.write_phantoms(tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


def test_an_interrupted_write_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = folder.draw_phantom

    def interrupted(seed: int, patient: int, image_size: int, view: int | None) -> phantom.Phantom:
        if patient == 3:
            raise KeyboardInterrupt
        return whole(seed, patient, image_size, view)

    monkeypatch.setattr(folder, "draw_phantom", interrupted)
    with pytest.raises(KeyboardInterrupt):
        phantom.write_phantoms(tmp_path / "out", num_images=5, seed=0, image_size=64)
    assert not any(tmp_path.iterdir())


SCRIPT = """
import sys
from pathlib import Path
from mtil import phantom
if __name__ == "__main__":
    phantom.write_phantoms(Path(sys.argv[1]), num_images=10**6, seed=0, image_size=64, workers=2)
"""


def _restore_sigint() -> None:
    """Restore SIGINT: background commands of a shell and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(tmp_path: Path) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """Start a long write. Return the process and all descendants."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_restore_sigint,
    )
    until(lambda: any(tmp_path.rglob("*.png")), process)
    return process, psutil.Process(process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_asked(tmp_path: Path, number: signal.Signals) -> None:
    process, workers = _start(tmp_path)
    with process:
        try:
            process.send_signal(number)
            process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    until_gone(workers)
    if number == signal.SIGINT:
        assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence(tmp_path: Path) -> None:
    process, workers = _start(tmp_path)
    with process:
        drawing = [worker for worker in workers if worker.ppid() != process.pid]  # forkserver's
        try:
            drawing[0].kill()
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert stderr.strip().splitlines()[-1] == (
        f"{RunError.__module__}.RunError: A worker process died while 2 drew phantoms; "
        "ask for fewer workers if memory is short."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


@pytest.mark.slow
def test_tasks_are_made_only_as_others_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million jobs must not be queued at once: at most three tasks per worker are open."""
    made, most = 0, 0
    (tmp_path / "benign").mkdir()

    def tasks() -> Iterator[list[folder._Job]]:
        nonlocal made, most
        for _ in range(40):
            made += 1
            done = len(list(tmp_path.rglob("*).png")))
            most = max(most, made - done)  # a task draws a single image
            yield [folder._Job(f"benign ({made})", phantom.BENIGN, 0, None)]

    folder._draw_parallel(tmp_path, 0, 64, tasks(), 2)
    assert len(list(tmp_path.rglob("*).png"))) == 40
    assert most <= 2 * 3 + 1


def test_the_list_has_three_columns_and_unix_line_ends(tmp_path: Path) -> None:
    phantom.write_phantoms(tmp_path / "out", num_images=1, seed=0, image_size=64, num_duplicates=1)
    assert (tmp_path / "out" / "duplicates.csv").read_bytes() == (
        b"sample_id,original,kind\nbenign (2),benign (1),exact\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-images", "0"], "The number of images must be 1 to 10,000,000, but got 0."),
        (["--num-images", "-5"], "The number of images must be 1 to 10,000,000, but got -5."),
        (["--seed", "-1"], "A seed must not be negative, but got -1."),
        (["--image-size", "63"], "The size of images must be 64 to 4096 pixels, but got 63."),
        (
            ["--num-images", "5", "--num-duplicates", "6"],
            "The number of near-copies must be 0 to 5, the number of images, but got 6.",
        ),
        (["--max-views", "0"], "Patients must have 1 to 1000 views, but got 0."),
        (["--num-workers", "0"], "The number of workers must be at least 1, but got 0."),
    ],
)
def test_the_command_refuses_senseless_numbers_in_one_sentence(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["phantom", str(tmp_path / "out"), *words]) == 2
    assert capsys.readouterr().err == f"mtil: {message}\n"
    assert not any(tmp_path.iterdir())


def test_the_command_leaves_a_filled_folder_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "note.txt").write_text("mine")
    assert main(["phantom", str(tmp_path), "--num-images", "3"]) == 2
    assert capsys.readouterr().err == (
        f"mtil: {tmp_path} must be an empty or new folder; empty it or choose another.\n"
    )
    assert _contents(tmp_path) == {"note.txt": b"mine"}


def test_the_command_says_how_many_of_what_it_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--num-images", "7", "--image-size", "64", "--max-views", "3", "--num-duplicates", "2"]
    assert main(["phantom", str(tmp_path / "out"), *words, "--num-workers", "1"]) == 0
    assert capsys.readouterr().out == (
        f"7 phantoms, 1 to 3 a patient, and 2 near-copies in {tmp_path / 'out'}\n"
    )
    assert len(_patients(tmp_path / "out")) == 9
