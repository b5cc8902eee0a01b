"""`mtil predict` on small images and small untrained networks."""

import csv
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage

from mtil import __version__
from mtil.config import Config, compute_config_digest, config_from_dict
from mtil.data.images.read import read_gray, resize_image
from mtil.errors import CheckpointError, DataError, MtilError, NotFoundError, StorageError
from mtil.metrics.mask_rule import NEVER, MaskRule
from mtil.models import TwoTaskNetwork
from mtil.prediction import overlay
from mtil.prediction.image_files import escape_name, name_outputs, select_images
from mtil.prediction.images import (
    PREDICTION_COLUMNS,
    Ensemble,
    describe_lesion,
    escape_cell,
    load_chains,
    predict_images,
    predict_location,
)
from mtil.prediction.predictor import (
    Prediction,
    Predictor,
    average_predictions,
    measure_mask_spread,
    predict_passes,
    resize_map,
)
from mtil.run.checkpoint import TrainedModel, model_to_bytes
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

SIDE = 96
CONFIG = {
    "data": {"image_size": 64},
    "model": {
        "baseline": True,
        "encoder": {"name": "efficientnet_lite0", "pretrained": False},
        "decoder_channels": [8, 8, 8, 8],
    },
}


@cache
def tiny_model(fold: int = 0) -> TrainedModel:
    """Return an untrained model with partial masks and distinct probabilities."""
    torch.manual_seed(fold)
    config: Config = config_from_dict(CONFIG)
    network = TwoTaskNetwork(config.model).eval()
    with torch.no_grad():
        for parameter in network.head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        noise = torch.from_numpy(np.stack([speckle(number) for number in range(4)]))
        image = torch.nn.functional.interpolate(noise[:, None] / 255, (64, 64))
        weight, bias = list(network.head.parameters())[-2:]
        weight /= network(image).malignant.std()
        bias -= network(image).malignant.median()
        bias[0] -= 1.9  # the tests' images have higher logits than noise
        network.logits["2"].weight *= 2 / network(image).mask.std()
        network.logits["2"].bias -= network(image).mask.median()
    return TrainedModel(
        config=config,
        weights=network.state_dict(),
        fingerprint="f" * 64,
        fold=fold,
        source_size=SIDE,
        epoch=3,
        temperature=1.5 + fold,
        presence_temperature=2.0,
        threshold=0.56 - fold / 50,
    )


def speckle(seed: int, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(picture)


def save(path: Path, seed: int, height: int = 70, width: int = 110) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(speckle(seed, height, width)).save(path)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> str:
    path = tmp_path / "model.pt"
    path.write_bytes(model_to_bytes(tiny_model()))
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A run with trained folds 0 and 2."""
    uri = str(tmp_path / "run")
    record = Run.create(uri, config_from_dict(CONFIG), "data", "f" * 64)
    for fold in (0, 2):
        record.commit(
            Train(0, fold), tiny_model(fold), num_epochs=4, seconds=1.0, metrics={"dice": 0.5}
        )
    return uri


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Five images of several sizes, kinds and depths of folder."""
    folder = tmp_path / "images"
    save(folder / "benign" / "benign (1).png", 1)
    save(folder / "benign" / "benign (2).jpg", 2, 48, 40)
    save(folder / "malignant" / "deep" / "x.bmp", 3, 130, 65)
    save(folder / "y.tif", 4, 64, 64)
    Image.fromarray(speckle(5)).convert("RGB").save(folder / "z.png")
    return folder


class Heard(list[dict[str, Any]]):
    """Listener with a record of a prediction's lines."""

    def __call__(self, line: dict[str, Any]) -> None:
        self.append(line)

    def texts(self, kind: str) -> list[str]:
        return [line["text"] for line in self if line["kind"] == kind]


def go(model: str, source: Path | str, out: Path | str, **options: Any) -> tuple[Any, Heard]:
    heard = Heard()
    device = torch.device("cpu")
    return predict_location(
        model, str(source), str(out), device=device, listen=heard, **options
    ), heard


def table(out: Path | str) -> dict[str, dict[str, str]]:
    with (Path(out) / "predictions.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == PREDICTION_COLUMNS
    assert len({row["image"] for row in rows}) == len(rows)
    return {row["image"]: row for row in rows}


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def test_each_image_gets_a_mask_an_overlay_and_a_row(
    checkpoint: str, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    summary, heard = go(checkpoint, images, out, batch_size=2)
    rows = table(out)
    assert list(rows) == [
        "benign/benign (1).png", "benign/benign (2).jpg", "malignant/deep/x.bmp", "y.tif", "z.png",
    ]  # fmt: skip
    lesions = 0
    for name, row in rows.items():
        gray = read_gray((images / name).read_bytes(), name)
        with Image.open(out / row["mask"]) as mask_file, Image.open(out / row["overlay"]) as drawn:
            assert mask_file.mode == "1"
            assert set(np.unique(np.array(mask_file.convert("L")))) <= {0, 255}
            mask, picture = np.array(mask_file), np.array(drawn)
        assert mask.shape == gray.shape == (int(row["height"]), int(row["width"]))
        assert row["mask"].removeprefix("masks/") == row["overlay"].removeprefix("overlays/")
        assert picture.shape == (*gray.shape, 3)
        edge = overlay.extract_outline(mask)
        assert (picture[edge] == overlay.COLOUR).all()
        assert (picture[~edge] == gray[~edge][:, None]).all()
        assert int(row["lesion_area_px"]) == mask.sum()
        assert float(row["lesion_area_share"]) == pytest.approx(mask.mean(), abs=1e-6)
        if mask.any():
            lesions += 1
            box = tuple(int(row[f"box_{corner}"]) for corner in ("x0", "y0", "x1", "y1"))
            assert box == Image.fromarray(mask).getbbox()
        assert 0 < float(row["seconds"]) < 60
        assert row["error"] == ""
        assert row["mtil_version"] == __version__
    assert lesions > 0
    assert {row["malignant"] for row in rows.values()} == {"0", "1"}
    lineage = {
        "model_sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "fingerprint": "f" * 64,
        "config_digest": compute_config_digest(config_from_dict(CONFIG)),
        "mtil_version": __version__,
    }
    assert all(lineage.items() <= row.items() for row in rows.values())
    assert lineage.items() <= summary.items()
    assert len(files(out)) == 11
    assert summary["num_images"] == 5
    assert summary["num_unreadable"] == 0
    assert summary["folds"] == [0]
    assert summary["predictions"] == str(out / "predictions.csv")
    assert [line["images"] for line in heard if line["kind"] == "predicted"] == [2, 4, 5]


def test_figures_are_those_of_the_predictor(checkpoint: str, images: Path, tmp_path: Path) -> None:
    go(checkpoint, images, tmp_path / "out")
    predictor = Predictor(tiny_model(), torch.device("cpu"))
    for name, row in table(tmp_path / "out").items():
        gray = read_gray((images / name).read_bytes(), name)
        prediction = predictor(resize_image(gray, SIDE)[None])
        assert float(row["malignant_probability"]) == pytest.approx(
            prediction.malignant[0], abs=1e-6
        )
        assert row["malignant"] == str(int(prediction.malignant[0] >= 0.56))
        assert float(row["lesion_probability"]) == pytest.approx(prediction.presence[0], abs=1e-6)
        lesion_class = "malignant" if row["malignant"] == "1" else "benign"
        assert row["class"] == ("normal" if prediction.presence[0] < 0.5 else lesion_class)
        with Image.open(tmp_path / "out" / row["mask"]) as mask:
            assert (np.array(mask) == (resize_map(prediction.lesion[0], *gray.shape) >= 0.5)).all()


def test_masks_follow_the_rule_of_the_model(images: Path, tmp_path: Path) -> None:
    rule = MaskRule(threshold=0.3, seed=0.6, empty_below=0.5)
    path = tmp_path / "model.pt"
    path.write_bytes(model_to_bytes(replace(tiny_model(), mask_rule=rule)))
    go(str(path), images, tmp_path / "out")
    predictor = Predictor(tiny_model(), torch.device("cpu"))
    for name, row in table(tmp_path / "out").items():
        gray = read_gray((images / name).read_bytes(), name)
        prediction = predictor(resize_image(gray, SIDE)[None])
        expected = rule(resize_map(prediction.lesion[0], *gray.shape), prediction.presence[0])
        with Image.open(tmp_path / "out" / row["mask"]) as mask:
            assert (np.array(mask) == expected).all()
        assert row["lesion_area_px"] == str(int(expected.sum()))


def test_models_trained_without_normal_images_call_none_normal(
    images: Path, tmp_path: Path
) -> None:
    model = replace(tiny_model(), presence_temperature=None)
    path = tmp_path / "model.pt"
    path.write_bytes(model_to_bytes(model))
    go(str(path), images, tmp_path / "out")
    rows = table(tmp_path / "out").values()
    assert {row["lesion_probability"] for row in rows} == {""}
    assert {row["class"] for row in rows} <= {"benign", "malignant"}


def test_figures_do_not_depend_on_the_batch(checkpoint: str, images: Path, tmp_path: Path) -> None:
    outs = []
    for batch_size in (1, 3, 16):
        out = tmp_path / f"out-{batch_size}"
        go(checkpoint, images, out, batch_size=batch_size)
        rows = table(out)
        for row in rows.values():
            del row["seconds"]
        masks = {name: (out / name).read_bytes() for name in files(out) if name.endswith(".png")}
        outs.append((rows, masks))
    assert outs[0] == outs[1] == outs[2]


def test_a_run_votes_with_all_its_folds(run: str, images: Path, tmp_path: Path) -> None:
    summary, _ = go(run, images, tmp_path / "both")
    assert summary["folds"] == [0, 2]
    singles = []
    for fold in (0, 2):
        (path,) = Path(run, f"rounds/0/fold-{fold}").glob("model-*.pt")
        go(str(path), images, tmp_path / str(fold))
        singles.append(table(tmp_path / str(fold)))
    both = table(tmp_path / "both")
    for name, row in both.items():
        parts = [float(single[name]["malignant_probability"]) for single in singles]
        assert abs(parts[0] - parts[1]) > 1e-3
        mean = sum(parts) / 2
        assert float(row["malignant_probability"]) == pytest.approx(mean, abs=2e-6)
        assert row["malignant"] == str(int(mean >= (0.56 + 0.52) / 2))
        digests = [single[name]["model_sha256"] for single in singles]
        assert row["model_sha256"] == ";".join(digests)
        assert digests[0] != digests[1]
        assert row["fingerprint"] == "f" * 64


def test_further_runs_join_the_ensemble(run: str, images: Path, tmp_path: Path) -> None:
    """Two folds of a run and a further model form an ensemble: mean and spread of three."""
    other = tmp_path / "other.pt"
    other.write_bytes(model_to_bytes(tiny_model(5)))
    parts = []
    for fold in (0, 2):
        (path,) = Path(run, f"rounds/0/fold-{fold}").glob("model-*.pt")
        parts.append(str(path))
    singles = []
    for index, source in enumerate([*parts, str(other)]):
        go(source, images, tmp_path / str(index))
        singles.append(table(tmp_path / str(index)))
    go(run, images, tmp_path / "all", others=[str(other)])
    for name, row in table(tmp_path / "all").items():
        values = [float(single[name]["malignant_probability"]) for single in singles]
        assert float(row["malignant_probability"]) == pytest.approx(np.mean(values), abs=2e-6)
        assert float(row["probability_spread"]) == pytest.approx(np.std(values), abs=2e-6)
        assert 0 <= float(row["mask_spread"]) <= 1
        assert singles[0][name]["mask_spread"] == singles[0][name]["probability_spread"] == ""


def test_models_of_unequal_passes_form_no_ensemble(tmp_path: Path) -> None:
    sources = []
    for number in (1, 2):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(model_to_bytes(replace(tiny_model(), num_passes=number)))
        sources.append(str(path))
    with pytest.raises(DataError, match=r"those of .*1\.pt make 1 and those of .*2\.pt 2"):
        load_chains(*sources)


def test_the_spread_of_masks_worked_by_hand() -> None:
    """Three masks per image: two full and a half mask; all empty; two full and an empty mask."""
    full, half, empty = np.ones((2, 2), bool), np.array([[1, 1], [0, 0]], bool), np.zeros((2, 2))
    masks = np.stack([[full, empty, full], [full, empty, full], [half, empty, empty]]).astype(bool)
    # Pairs of the first image: Dice 1, 4 / 6 and 4 / 6; of the third: 1, 0 and 0.
    expected = [1 - (1 + 2 / 3 + 2 / 3) / 3, 0.0, 1 - 1 / 3]
    np.testing.assert_allclose(measure_mask_spread(masks), expected)


def test_maps_of_unequal_size_are_averaged_at_the_larger() -> None:
    def prediction(side: int, value: float) -> Prediction:
        one = np.full(1, 0.5)
        return Prediction(
            np.full((1, side, side), value, np.float32), one.astype(np.float32), one,
            one.astype(np.float32), one, one, one,
        )  # fmt: skip

    found = average_predictions([prediction(4, 0.2), prediction(8, 0.6)])
    assert found.lesion.shape == (1, 8, 8)
    np.testing.assert_allclose(found.lesion, 0.4, rtol=1e-6)


def test_of_a_chain_all_models_are_named() -> None:
    models = [replace(tiny_model(fold), digest=str(fold) * 4) for fold in (0, 1, 2)]
    other = replace(tiny_model(2), digest="dddd", fingerprint="e" * 64)
    ensemble = Ensemble([models, [other, other]], torch.device("cpu"))
    assert ensemble.lineage["model_sha256"] == "0000>1111>2222;dddd"
    assert ensemble.lineage["fingerprint"] == ";".join(["f" * 64, "e" * 64])


def test_without_normal_images_each_gets_an_outline_and_a_class_of_tumours(
    images: Path, tmp_path: Path
) -> None:
    model = replace(tiny_model(), mask_rule=MaskRule(empty_below=NEVER))
    model.weights["head.output.bias"][1] = -50.0  # surely without a lesion
    path = tmp_path / "model.pt"
    path.write_bytes(model_to_bytes(model))
    gated, _ = go(str(path), images, tmp_path / "out")
    rows = table(tmp_path / "out").values()
    assert gated["num_normal"] == len(rows)
    assert {row["class"] for row in rows} == {"normal"}
    assert {row["lesion_area_px"] for row in rows} == {"0"}
    summary, _ = go(str(path), images, tmp_path / "all", normals=False)
    assert summary["num_normal"] == 0
    outlined = table(tmp_path / "all").values()
    assert {row["class"] for row in outlined} == {"benign", "malignant"}
    assert all(int(row["lesion_area_px"]) > 0 for row in outlined)
    for row, other in zip(rows, outlined, strict=True):
        assert row["lesion_probability"] == other["lesion_probability"]


def test_an_ensemble_averages_lesion_maps_and_thresholds() -> None:
    cpu = torch.device("cpu")
    grays = [speckle(1), speckle(2, 50, 80)]
    parts = [Ensemble([[tiny_model(fold)]], cpu)(grays, at_once=4) for fold in (0, 2)]
    both = Ensemble([[tiny_model(0)], [tiny_model(2)]], cpu)
    found = both(grays, at_once=4)
    assert np.abs(parts[0].lesion - parts[1].lesion).max() > 0.1
    for name, tolerance in (("lesion", 1e-6), ("malignant", 1e-12), ("presence", 1e-12)):
        values = [getattr(part, name) for part in parts]
        np.testing.assert_allclose(
            getattr(found, name), (values[0] + values[1]) / 2, rtol=tolerance
        )
    half = abs(parts[0].malignant - parts[1].malignant) / 2
    np.testing.assert_allclose(found.malignant_spread, half, rtol=1e-9)
    first, second = (part.lesion >= 0.5 for part in parts)
    dice = 2 * (first & second).sum(axis=(1, 2)) / (first.sum((1, 2)) + second.sum((1, 2)))
    np.testing.assert_allclose(found.mask_spread, 1 - dice)
    assert np.isnan(parts[0].mask_spread).all()
    assert both.threshold == pytest.approx(0.54)


def make_map_reader(seed: int, num_passes: int) -> TrainedModel:
    """Return a model sensitive to the map of the previous pass."""
    values = CONFIG | {"model": CONFIG["model"] | {"baseline": False}}
    config = config_from_dict(values)
    torch.manual_seed(seed)
    network = TwoTaskNetwork(config.model).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "prior" in name or name.startswith("head"):
                torch.nn.init.normal_(parameter, std=0.3)
    return replace(tiny_model(), config=config, weights=network.state_dict(), num_passes=num_passes)


def test_a_model_file_says_how_often_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(model_to_bytes(make_map_reader(0, num_passes=3)))
    (chain,) = load_chains(str(path))
    assert len(chain) == 3
    cpu, gray = torch.device("cpu"), speckle(1)
    found = Ensemble([chain], cpu)([gray], at_once=4)
    passes = predict_passes([Predictor(chain[0], cpu)] * 3, gray[None])
    assert not np.array_equal(passes[0].lesion, passes[2].lesion)
    np.testing.assert_array_equal(found.lesion, passes[2].lesion)
    np.testing.assert_array_equal(found.malignant, passes[2].malignant)
    np.testing.assert_array_equal(found.presence, passes[2].presence)


@pytest.mark.parametrize(("test", "rounds"), [("passes", [1, 1]), ("chain", [0, 1])])
def test_a_circle_predicts_with_its_last_round(
    tmp_path: Path, test: str, rounds: list[int]
) -> None:
    uri = str(tmp_path / "run")
    config = config_from_dict(CONFIG | {"circle": {"test": test, "num_passes": 2}})
    record = Run.create(uri, config, "data", "f" * 64)
    for number in (0, 1):
        figures = {"num_epochs": 4, "seconds": 1.0, "metrics": {"dice": 0.5}}
        record.commit(Train(number, 0), replace(tiny_model(), epoch=number), **figures)
    (chain,) = load_chains(uri)
    assert [model.epoch for model in chain] == rounds


def test_one_image(checkpoint: str, tmp_path: Path) -> None:
    image = save(tmp_path / "in" / "benign (1)_mask.png", 1)
    save(tmp_path / "in" / "benign (1).png", 2)
    summary, _ = go(checkpoint, image, tmp_path / "out")
    assert summary["num_images"] == 1
    assert list(table(tmp_path / "out")) == ["benign (1)_mask.png"]


def test_unreadable_images_are_reported_and_skipped(
    checkpoint: str, images: Path, tmp_path: Path
) -> None:
    whole = (images / "z.png").read_bytes()
    (images / "a.png").write_bytes(whole[: len(whole) // 2])
    (images / "b.jpg").write_bytes(b"not an image")
    summary, heard = go(checkpoint, images, tmp_path / "out", batch_size=2)
    rows = table(tmp_path / "out")
    assert (summary["num_images"], summary["num_unreadable"]) == (5, 2)
    assert len(heard.texts("unreadable")) == 2
    for name in ("a.png", "b.jpg"):
        assert name in rows[name]["error"]
        assert rows[name]["error"] in heard.texts("unreadable")
        assert rows[name]["malignant_probability"] == rows[name]["mask"] == ""
        assert rows[name]["model_sha256"] != ""
    assert sum(row["error"] == "" for row in rows.values()) == 5


def test_no_readable_image_is_an_error_and_writes_nothing(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of 2 in .*a\.png"):
        go(checkpoint, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "notes.txt"])
def test_a_folder_without_images(checkpoint: str, tmp_path: Path, content: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if content:
        (folder / content).write_text("none")
    with pytest.raises(DataError, match="has no image"):
        go(checkpoint, folder, tmp_path / "out")


def test_an_input_that_is_not_there(checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        go(checkpoint, tmp_path / "nowhere", tmp_path / "out")


def test_other_files_and_masks_are_left_out(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b (1).png", "b (1)_mask.png", "b (1)_mask_1.png", "alone_mask.png"):
        save(folder / name, 1)
    save(folder / ".cache" / "thumb.png", 1)
    (folder / "notes.txt").write_text("none")
    summary, heard = go(checkpoint, folder, tmp_path / "out")
    assert list(table(tmp_path / "out")) == ["alone_mask.png", "b (1).png"]
    assert (summary["num_masks_skipped"], summary["num_ignored"]) == (2, 2)
    assert [text.split()[0] for text in heard.texts("skipped")] == ["2", "2"]


def test_a_mask_of_another_folder_is_an_image() -> None:
    chosen = select_images(
        ["a/x.png", "b/x_mask.png", "b/y.JPG", "b/y_mask_12.png", "b/y_mask_a.png"]
    )
    assert chosen.names == ["a/x.png", "b/x_mask.png", "b/y.JPG", "b/y_mask_a.png"]
    assert (chosen.num_masks, chosen.num_ignored) == (1, 0)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "b.jpg"], ["a.png", "b.png"]),
        (["a.png", "a.jpg", "c.png"], ["a.png.png", "a.jpg.png", "c.png"]),
        (["d/a.png", "e/a.jpg"], ["d/a.png", "e/a.png"]),
        (["a.png", "a.jpg", "a.png.png"], ["a.png.png", "a.jpg.png", "a.png.png.png"]),
        (["v1.2.png", "v1.3.png"], ["v1.2.png", "v1.3.png"]),
        (["image"], ["image.png"]),
        (["x.jpg", "x.png/y.png"], ["x.jpg.png", "x.png/y.png"]),
        (
            ["x.jpg", "x.jpg.png/y.png", "x.png/z.png"],
            ["x.jpg.png.png", "x.jpg.png/y.png", "x.png/z.png"],
        ),
        (["a" * 251 + ".png"], ["a" * 251 + ".png"]),
    ],
)
def test_output_names(names: list[str], expected: list[str]) -> None:
    assert list(name_outputs(names).values()) == expected


def test_output_names_that_are_too_long_are_cut_and_differ(tmp_path: Path) -> None:
    long = ["ä" * 125 + "a.png", "ä" * 125 + "a.jpg", "a" * 255, "b" * 300 + "/x.png"]
    found = name_outputs(long)
    assert len(set(found.values())) == len(long)
    assert all(name.endswith(".png") for name in found.values())
    for target in found.values():
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).write_bytes(b"")  # the file system accepts the name
    assert name_outputs(long) == found


def test_images_whose_results_would_collide_keep_apart(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    names = ["x.jpg", "x.png/y.png", "n" * 251 + ".png", "n" * 251 + ".jpg", "[/foo] [b].png"]
    for name in names:
        save(folder / name, 1)
    summary, _ = go(checkpoint, folder, tmp_path / "out")
    rows = table(tmp_path / "out")
    assert sorted(rows) == sorted(names)
    assert len({row["mask"] for row in rows.values()}) == len(names)
    assert all((tmp_path / "out" / row["mask"]).is_file() for row in rows.values())
    assert summary["files"] == {
        "seen": 5, "predicted": 5, "masks": 0, "ignored": 0, "skipped": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (
            ["benign (1).png", "b/c.jpg"],
            ["benign (1)_mask.png", "benign (1)_mask_1.png", "b/c_mask.jpg"],
        ),
        (
            ["case001.png", "case002.png"],
            [
                "case001_tumor.png",
                "Case001_Tumor.PNG",
                "case002_other1.png",
                "masks/case002_tumor.png",
            ],
        ),
        (["original/000001.png"], ["GT/000001.png"]),
        (["u/original/1.png", "other/GT/1.png"], ["u/GT/1.png"]),
        (["BUSBRA/Images/bus_0001-l.png"], ["BUSBRA/Masks/mask_0001-l.png"]),
        (["images/ALWI_000.png"], ["masks/ALWI_000.png", "masks/deep/x.png"]),
        (["GT/1.png", "masks/2.png", "case001_tumor.png", "tumor.png", "a_mask.png"], []),
    ],
)
def test_masks_of_published_layouts_are_no_images(images: list[str], masks: list[str]) -> None:
    chosen = select_images(sorted([*images, *masks, "notes.txt", ".x/y.png"]))
    assert chosen.names == sorted(images)
    assert sorted(chosen.masks) == sorted(masks)
    assert (chosen.hidden, chosen.others) == ((".x/y.png",), ("notes.txt",))
    assert chosen.num_files == len(images) + len(masks) + 2


def test_every_file_is_accounted_for(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("case001.png", "case001_tumor.png", "x.png"):
        save(folder / name, 1)
    pages = [Image.fromarray(speckle(seed)) for seed in (1, 2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    (folder / "broken.png").write_bytes(b"nothing")
    os.mkfifo(folder / "pipe.png")
    (folder / "IM0001").write_bytes(b"")
    summary, heard = go(checkpoint, folder, tmp_path / "out")
    assert summary["files"]["seen"] == 7
    assert sum(summary["files"].values()) == 2 * 7
    assert summary["files"] | {"seen": 0} == {
        "seen": 0, "predicted": 2, "masks": 1, "ignored": 1, "skipped": 3,
    }  # fmt: skip
    why = {item["image"]: item["why"] for item in summary["skipped"]}
    assert list(why) == ["broken.png", "pages.tif", "pipe.png"]
    assert "several" in why["pages.tif"]
    assert "a named pipe" in why["pipe.png"]
    assert "case001_tumor.png" in heard.texts("skipped")[0]
    assert "IM0001" in heard.texts("skipped")[1]


def test_a_pipe_as_the_input_is_refused(checkpoint: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"is not a regular file\. Name an image or a folder"):
        go(checkpoint, tmp_path / "pipe.png", tmp_path / "out")


def test_an_image_is_predicted_upright_and_its_mask_lies_as_it(
    checkpoint: str, tmp_path: Path
) -> None:
    upright = Image.fromarray(speckle(3, 70, 110))
    tags = Image.Exif()
    tags[0x0112] = 6
    (tmp_path / "in").mkdir()
    upright.save(tmp_path / "in" / "upright.png")
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "in" / "turned.png", exif=tags)
    go(checkpoint, tmp_path / "in", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert (rows["turned.png"]["height"], rows["turned.png"]["width"]) == ("70", "110")
    for folder in ("mask", "overlay"):
        parts = [(tmp_path / "out" / rows[name][folder]).read_bytes() for name in rows]
        assert parts[0] == parts[1]
    figures = [rows[name]["malignant_probability"] for name in rows]
    assert figures[0] == figures[1]


@pytest.mark.parametrize("part", ["probability", "map"])
def test_what_is_no_number_is_an_error_of_the_image(
    part: str, tmp_path: Path, images: Path
) -> None:
    class Odd(Ensemble):
        def __call__(self, grays: Any, *, at_once: int) -> Any:
            predicted = super().__call__(grays, at_once=at_once)
            for index, gray in enumerate(grays):
                if gray.shape == (64, 64):  # y.tif
                    if part == "map":
                        predicted.lesion[index, 3, 3] = np.nan
                    else:
                        predicted.malignant[index] = np.nan
            return predicted

    ensemble = Odd([[tiny_model()]], torch.device("cpu"))
    source, out = LocalStore(str(images)), LocalStore(str(tmp_path / "out"))
    names, heard = source.names(), Heard()
    assert predict_images(ensemble, source, names, out, batch_size=2, listen=heard) == 4
    rows = table(tmp_path / "out")
    assert "not a finite number" in rows["y.tif"]["error"]
    assert rows["y.tif"]["malignant"] == rows["y.tif"]["mask"] == ""
    assert heard.texts("unreadable") == [rows["y.tif"]["error"]]
    with pytest.raises(DataError, match=r"none of 1 in .* y\.tif cannot be predicted"):
        predict_images(
            ensemble, source, ["y.tif"], LocalStore(str(tmp_path / "none")), batch_size=2,
            listen=heard,
        )  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_regions_of_another_frame_are_said_once(checkpoint: str, tmp_path: Path) -> None:
    for number in (1, 2):
        save_dicom(tmp_path / "in" / f"{number}.dcm", speckle(number))
    summary, heard = go(checkpoint, tmp_path / "in", tmp_path / "out")
    assert summary["num_stray_regions"] == 2
    messages = [text for text in heard.texts("skipped") if "regions" in text]
    assert messages[0].startswith("2 images have ultrasound regions that do not fit")
    assert len(messages) == 1
    plain = tmp_path / "plain"
    for number in (1, 2):
        save_dicom(plain / f"{number}.dcm", speckle(number), region=False)
    go(checkpoint, plain, tmp_path / "other")
    for name, row in table(tmp_path / "out").items():
        other = table(tmp_path / "other")[name]
        assert row["malignant_probability"] == other["malignant_probability"]


def save_dicom(path: Path, pixels: np.ndarray, *, region: bool = True) -> None:
    """Write a frame, optionally with a tissue region placed in a larger frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UltrasoundImageStorage
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()
    if region:
        item = Dataset()
        item.RegionSpatialFormat = item.RegionDataType = 1
        item.RegionLocationMinX0, item.RegionLocationMinY0 = 20, 10
        item.RegionLocationMaxX1, item.RegionLocationMaxY1 = 400, 300
        data.SequenceOfUltrasoundRegions = [item]
    data.save_as(path, enforce_file_format=True)


def test_images_of_one_stem_keep_apart(checkpoint: str, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", 1, 40, 50)
    save(tmp_path / "in" / "a.jpg", 2, 60, 70)
    go(checkpoint, tmp_path / "in", tmp_path / "out")
    for name, size in (("a.png", (50, 40)), ("a.jpg", (70, 60))):
        row = table(tmp_path / "out")[name]
        assert row["mask"] == f"masks/{name}.png"
        with Image.open(tmp_path / "out" / row["mask"]) as mask:
            assert mask.size == size


class Bucket:
    """An in-memory store for hostile names, as in a bucket."""

    uri = "s3://bucket"
    local_folder = None

    def __init__(self, **objects: bytes) -> None:
        self.objects = dict(objects)
        self.asked: list[str] = []

    def read(self, name: str) -> bytes:
        self.asked.append(name)
        if name not in self.objects:
            raise NotFoundError(f"{name} does not exist.")
        return self.objects[name]

    def chunks(self, name: str) -> Iterator[bytes]:
        yield self.read(name)

    def write(self, name: str, data: bytes) -> None:
        self.objects[name] = data

    def create(self, name: str, data: bytes) -> bool:
        return self.objects.setdefault(name, data) is data

    def exists(self, name: str) -> bool:
        return name in self.objects

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.objects if name.startswith(prefix))

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)


def test_names_that_leave_the_folder_are_not_read_or_written(tmp_path: Path) -> None:
    good = save(tmp_path / "x.png", 1).read_bytes()
    hostile = ["../a.png", "/b.png", "c//d.png", "./e.png", "f/../../g.png"]
    source = Bucket(**dict.fromkeys([*hostile, "x.png"], good))
    chosen = select_images(source.names())
    assert sorted(chosen.names) == sorted([*hostile, "x.png"])
    out = tmp_path / "deep" / "out"
    heard = Heard()
    ensemble = Ensemble([[tiny_model()]], torch.device("cpu"))
    num_read = predict_images(
        ensemble, source, chosen.names, LocalStore(str(out)), batch_size=4, listen=heard
    )
    assert num_read == 1
    assert source.asked == ["x.png"]
    assert files(out) == ["masks/x.png", "overlays/x.png", "predictions.csv"]
    assert files(tmp_path) == [*(f"deep/out/{name}" for name in files(out)), "x.png"]
    rows = table(out)
    assert all("leads out of its folder" in rows[name]["error"] for name in hostile)


def test_a_file_that_vanished_is_unreadable_but_a_dead_bucket_ends_it(tmp_path: Path) -> None:
    class Dead(Bucket):
        def read(self, name: str) -> bytes:
            raise StorageError("Bucket 'bucket' is out of reach.")

    good = save(tmp_path / "x.png", 1).read_bytes()
    ensemble = Ensemble([[tiny_model()]], torch.device("cpu"))
    out = Bucket()
    names = ["gone.png", "x.png"]
    source = Bucket(**{"x.png": good})
    assert predict_images(ensemble, source, names, out, batch_size=1, listen=Heard()) == 1
    assert b"gone.png does not exist" in out.objects["predictions.csv"]
    with pytest.raises(StorageError, match="out of reach"):
        predict_images(ensemble, Dead(), names, Bucket(), batch_size=1, listen=Heard())


def test_a_file_that_may_not_be_read_is_unreadable(
    checkpoint: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refuse(path: str | Path, *more: Any, **options: Any) -> int:
        if Path(path).name == "y.tif":
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **options)

    monkeypatch.setattr(os, "open", refuse)  # root may read everything
    summary, _ = go(checkpoint, images, tmp_path / "out")
    assert summary["num_unreadable"] == 1
    assert "Permission denied" in table(tmp_path / "out")["y.tif"]["error"]


def test_no_cell_is_a_formula(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    hostile = ["=cmd|' calc'!A0.png", "+1.png", "-1.png", "@x.png", "\tx.png", "\rx.png"]
    for name in hostile:
        save(folder / name, 1)
    (folder / "=broken.png").write_bytes(b"nothing")
    go(checkpoint, folder, tmp_path / "out")
    text = (tmp_path / "out" / "predictions.csv").read_bytes().decode()
    assert "\r" not in text
    assert "\t" not in text
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert sorted(row[0] for row in rows[1:]) == sorted(
        f"'{escape_name(name)}" for name in [*hostile, "=broken.png"]
    )
    assert not any(value.startswith(("=", "+", "-", "@")) for row in rows for value in row)


def test_cells_and_names_for_people() -> None:
    assert escape_cell("=1+1") == "'=1+1"
    assert escape_cell("\tx") == "'\\tx"
    assert escape_cell("a\nb") == "a\\nb"
    assert escape_cell("0.5") == "0.5"
    assert escape_cell("") == ""
    assert escape_name("ä b\n\x1b[31m\udcff.png") == "ä b\\n\\x1b[31m\\udcff.png"


def test_a_name_that_is_no_text(checkpoint: str, tmp_path: Path) -> None:
    name = b"x\xff.png".decode("utf-8", "surrogateescape")
    try:
        save(tmp_path / "in" / name, 1)
    except OSError:
        pytest.skip("this file system has no such names")
    go(checkpoint, tmp_path / "in", tmp_path / "out")
    assert list(table(tmp_path / "out")) == ["x\\udcff.png"]


def test_a_place_with_other_files_is_refused(checkpoint: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks" / "mine.png").write_bytes(b"drawn by hand")
    with pytest.raises(DataError, match=r"1 other file \(masks/mine\.png\)"):
        go(checkpoint, images, out)
    (out / "predictions.csv").write_text("id,probability\n")
    with pytest.raises(DataError, match="2 other files"):
        go(checkpoint, images, out)
    assert files(out) == ["masks/mine.png", "predictions.csv"]
    with pytest.raises(DataError, match="are the same place"):
        go(checkpoint, tmp_path / "empty", _made(tmp_path / "empty"))


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_place_that_is_a_file_is_refused(checkpoint: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(StorageError, match="cannot be"):
        go(checkpoint, images, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_former_result_is_replaced(checkpoint: str, images: Path, tmp_path: Path) -> None:
    out = images / "out"  # below the input: result pictures are no input
    go(checkpoint, images, out)
    first = table(out)
    (images / "z.png").unlink()
    summary, _ = go(checkpoint, images, out)
    assert summary["num_images"] == 4
    assert set(table(out)) == set(first) - {"z.png"}


def test_a_run_that_died_is_no_result_and_can_be_repeated(
    checkpoint: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    go(checkpoint, images, out)
    write: Callable[..., None] = LocalStore.write

    def fail(store: LocalStore, name: str, data: bytes) -> None:
        if name == "overlays/y.png":
            raise StorageError("The disk is full.")
        write(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", fail)
        with pytest.raises(StorageError, match="full"):
            go(checkpoint, images, out, batch_size=2)
    assert not (out / "predictions.csv").exists()
    assert (out / "masks").is_dir()
    go(checkpoint, images, out)
    assert len(table(out)) == 5
    assert not any(name.startswith(".") for name in files(out))


def test_what_is_neither_run_nor_model(run: str, images: Path, tmp_path: Path) -> None:
    cases: list[tuple[Path | str, type[MtilError], str]] = [
        (tmp_path / "nowhere", DataError, "is neither"),
        (images, DataError, "is neither"),
        (images / "z.png", CheckpointError, "not a file that mtil wrote"),
    ]
    for source, kind, message in cases:
        with pytest.raises(kind, match=message):
            go(str(source), images, tmp_path / "out")
    shutil.rmtree(Path(run) / "rounds")
    with pytest.raises(DataError, match="must have a trained fold"):
        go(run, images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lesion_is_described() -> None:
    lesion = np.zeros((4, 10), np.bool_)
    assert describe_lesion(lesion) == {
        "lesion_area_px": "0", "lesion_area_share": "0.000000", "height": "4", "width": "10",
    }  # fmt: skip
    lesion[1:3, 5:8] = True
    lesion[3, 6] = True
    assert describe_lesion(lesion) == {
        "lesion_area_px": "7", "lesion_area_share": "0.175000", "height": "4", "width": "10",
        "box_x0": "5", "box_y0": "1", "box_x1": "8", "box_y1": "4",
    }  # fmt: skip


def test_an_outline_is_the_edge_of_the_mask() -> None:
    mask = np.zeros((6, 7), np.bool_)
    assert not overlay.extract_outline(mask).any()
    mask[1:5, 0:4] = True  # reaches the border: the edge includes the border
    expected = mask.copy()
    expected[2:4, 1:3] = False
    assert (overlay.extract_outline(mask) == expected).all()
    mask[0, 6] = True  # a second lesion
    expected[0, 6] = True
    assert (overlay.extract_outline(mask) == expected).all()
    thick = np.zeros((768, 800), np.bool_)
    thick[100:200, 100:200] = True
    assert overlay.extract_outline(thick).sum() == 100 * 100 - 94 * 94
