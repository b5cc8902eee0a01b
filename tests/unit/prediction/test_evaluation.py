"""Test rows to predictions to figures: values, lineage and determinism."""

import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from mtil import __version__
from mtil.config import Config, compute_config_digest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import read_shard
from mtil.errors import CheckpointError, DataError
from mtil.metrics import calibrate_logits
from mtil.metrics.mask_rule import MaskRule
from mtil.prediction.evaluation import (
    check_predictions_complete,
    evaluate_predictions,
    fill_sources,
    to_metric_results,
)
from mtil.prediction.predictor import Predictor, explain_chain, list_views, resize_map
from mtil.prediction.scoring import (
    EVALUATION_COLUMNS,
    SCORED_SCHEMA,
    describe_origin,
    score,
    score_chains,
)
from mtil.run import pictures
from mtil.run.checkpoint import TrainedModel, model_from_bytes, model_to_bytes
from mtil.storage import LocalStore

MakeModel = Callable[..., TrainedModel]
CPU = torch.device("cpu")

METRICS = {
    "dice", "dice_pooled", "iou", "hd95", "assd", "miss_rate", "false_positive_area", "f1",
    "macro_f1", "auc", "average_precision", "accuracy", "sensitivity", "specificity",
    "sensitivity_at_90_specificity", "ece", "brier", "presence_auc", "three_class_accuracy",
    "three_class_macro_f1",
}  # fmt: skip


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> TrainedModel:
    """Return a model as read from a file, with a digest and a threshold between the images."""
    return model_from_bytes(model_to_bytes(make_model()), "model.pt")


@pytest.fixture(scope="module")
def rows(data_uri: str, manifest: Manifest) -> pa.Table:
    """All 60 rows of the data set."""
    store = LocalStore(data_uri)
    tables = [read_shard(store, shard, EVALUATION_COLUMNS) for shard in manifest.shards]
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def predictions(model: TrainedModel, rows: pa.Table) -> pa.Table:
    return score(rows, Predictor(model, CPU))


def _images(rows: pa.Table) -> np.ndarray:
    side = math.isqrt(len(rows["image"][0].as_py()))
    return np.stack([np.frombuffer(row, np.uint8) for row in rows["image"].to_pylist()]).reshape(
        -1, side, side
    )


def test_a_predictor_says_what_the_network_says(
    make_model: MakeModel, make_config: Callable[..., Config], rows: pa.Table
) -> None:
    model = make_model(config=make_config(predict={"views": "plain"}))
    images = _images(rows)[:5]
    prediction = Predictor(model, CPU)(images)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(images / 255).float()[:, None], (32, 32), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        expected = model.network()(small)
    np.testing.assert_allclose(prediction.lesion, expected.mask[:, 0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(prediction.logit, expected.malignant, atol=1e-4)
    np.testing.assert_allclose(
        prediction.malignant,
        1 / (1 + np.exp(-expected.malignant.double().numpy() / 1.5)),
        atol=1e-4,
    )
    assert prediction.lesion.shape == (5, 32, 32)
    assert (prediction.lesion.dtype, prediction.logit.dtype, prediction.malignant.dtype) == (
        np.float32, np.float32, np.float64,
    )  # fmt: skip
    assert 0.05 < (prediction.lesion > 0.5).mean() < 0.95


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("plain", [(32, False)]),
        ("flip", [(32, False), (32, True)]),
        ("flip_and_scale", [(32, False), (32, True), (64, False), (64, True)]),
    ],
)
def test_a_predictor_averages_its_views(
    make_model: MakeModel, make_config: Callable[..., Config], rows: pa.Table,
    name: str, looks: list[tuple[int, bool]],
) -> None:  # fmt: skip
    model = make_model(config=make_config(predict={"views": name}))
    images = _images(rows)[:5]
    logits, lesions = [], []
    for size, mirrored in looks:
        seen = torch.nn.functional.interpolate(
            torch.from_numpy(images / 255).float()[:, None], (size, size), mode="bilinear",
            antialias=True,
        )  # fmt: skip
        with torch.no_grad():
            output = model.network()(torch.flip(seen, [3]) if mirrored else seen)
        lesion = output.mask.sigmoid()
        lesion = torch.flip(lesion, [3]) if mirrored else lesion
        logits.append(output.malignant)
        lesions.append(
            torch.nn.functional.interpolate(lesion, (32, 32), mode="bilinear", antialias=True)
        )
    averaged = Predictor(model, CPU)(images)
    np.testing.assert_allclose(averaged.logit, sum(logits) / len(looks), atol=1e-4)
    np.testing.assert_allclose(averaged.lesion, sum(lesions)[:, 0] / len(looks), atol=1e-5)


@pytest.mark.parametrize(("size", "larger"), [(32, 64), (96, 128), (160, 192), (256, 320)])
def test_the_larger_view_is_about_a_fifth_larger(
    make_config: Callable[..., Config], size: int, larger: int
) -> None:
    looks = list_views(make_config(data={"image_size": size}))
    assert {view.size for view in looks} == {size, larger}


def test_a_predictor_neither_keeps_nor_changes_what_it_sees(
    model: TrainedModel, rows: pa.Table
) -> None:
    images = _images(rows)[:3]
    images.flags.writeable = False
    before = images.copy()
    predictor = Predictor(model, CPU)
    first = predictor(images)
    predictor(255 - images)
    again = predictor(images)
    np.testing.assert_array_equal(first.lesion, again.lesion)
    np.testing.assert_array_equal(first.malignant, again.malignant)
    np.testing.assert_array_equal(images, before)


def test_a_predictor_in_bf16_answers_in_full_precision(
    make_model: MakeModel, make_config: Callable[..., Config], rows: pa.Table
) -> None:
    images = _images(rows)[:3]
    plain = Predictor(make_model(), CPU)(images)
    half = Predictor(make_model(config=make_config(train={"precision": "bf16"})), CPU)(images)
    assert half.lesion.dtype == half.logit.dtype == np.float32
    np.testing.assert_allclose(half.lesion, plain.lesion, atol=0.1)
    assert not np.array_equal(half.lesion, plain.lesion)


def test_a_model_whose_weights_do_not_fit_is_refused(make_model: MakeModel) -> None:
    weights = make_model().weights
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match="do not fit"):
        Predictor(make_model(weights={name: weights[name]}), CPU)


def test_calibration_divides_the_logit() -> None:
    logits = np.array([0.0, 2.0, -3.0, 30.0], np.float32)
    expected = [0.5, 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1.5)), 1 / (1 + math.exp(-15))]
    np.testing.assert_allclose(calibrate_logits(logits, 2.0), expected, rtol=1e-12)
    assert calibrate_logits(logits, 2.0).dtype == np.float64
    assert calibrate_logits(np.array([-1e4, 1e4]), 0.1).tolist() == [0, 1]  # no overflow


def test_a_map_is_resized_about_the_centres_of_its_pixels() -> None:
    lesion = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    np.testing.assert_allclose(resize_map(lesion, 3, 4), [[0, 0.25, 0.75, 1]] * 3)
    np.testing.assert_array_equal(resize_map(lesion, 2, 2), lesion)
    np.testing.assert_allclose(resize_map(np.full((8, 8), 0.3, np.float32), 5, 19), 0.3, rtol=1e-6)
    grown = resize_map(np.eye(32, dtype=np.float32), 70, 110)
    assert grown.shape == (70, 110)
    assert grown.min() >= 0
    assert grown.max() <= 1


def test_every_row_is_scored_at_its_original_size(
    model: TrainedModel, rows: pa.Table, predictions: pa.Table
) -> None:
    """Compare with a plain computation on masks decoded by Pillow."""
    assert predictions.schema == SCORED_SCHEMA
    assert predictions.num_rows == rows.num_rows == 60
    prediction = Predictor(model, CPU)(_images(rows.slice(0, 32)))
    for index, (row, scored_row) in enumerate(
        zip(rows.slice(0, 32).to_pylist(), predictions.to_pylist(), strict=False)
    ):
        for name in ("sample_id", "group", "label", "fold"):
            assert scored_row[name] == row[name]
        mask = np.array(Image.open(io.BytesIO(row["mask_png"]))).astype(bool)
        assert mask.shape == (row["height"], row["width"])
        found = resize_map(prediction.lesion[index], *mask.shape) >= 0.5
        tp, fp, fn = (int(part.sum()) for part in (found & mask, found & ~mask, mask & ~found))
        assert (scored_row["tp"], scored_row["fp"], scored_row["fn"]) == (tp, fp, fn)
        assert scored_row["false_positive_area"] == fp / mask.size
        lesion = resize_map(prediction.lesion[index], *mask.shape)
        assert scored_row["peak"] == float(lesion.max())
        assert scored_row["peak_inside"] == bool(mask.flat[lesion.argmax()])
        if row["label"] == 2:
            assert math.isnan(scored_row["dice"])
        else:
            assert scored_row["dice"] == 2 * tp / (2 * tp + fp + fn)
        assert scored_row["pass"] == 0
        assert scored_row["logit"] == prediction.logit[index]
        assert scored_row["probability"] == prediction.malignant[index]
        assert scored_row["predicted"] == (scored_row["probability"] >= model.threshold)


def test_pictures_show_mask_map_and_contributions(
    model: TrainedModel, rows: pa.Table, predictions: pa.Table
) -> None:
    prediction = Predictor(model, CPU)(_images(rows.slice(0, 32)))
    evidence = explain_chain([Predictor(model, CPU)], _images(rows.slice(0, 32)))
    for index, scored_row in enumerate(predictions.slice(0, 32).to_pylist()):
        height, width = rows["height"][index].as_py(), rows["width"][index].as_py()
        found = resize_map(prediction.lesion[index], height, width) >= 0.5
        mask = pictures.decode(scored_row["mask_png"]) > 0
        assert mask.shape == (256, 256)
        assert mask.mean() == pytest.approx(found.mean(), abs=0.02)
        lesion = pictures.decode(scored_row["map_png"])
        assert lesion.shape == (96, 96)
        assert lesion.mean() / 255 == pytest.approx(prediction.lesion[index].mean(), abs=0.02)
        shown = pictures.decode(scored_row["evidence_png"]).astype(float) - 128
        assert shown.shape == evidence[index].shape
        largest = np.abs(evidence[index]).max()
        np.testing.assert_allclose(shown / 127 * largest, evidence[index], atol=largest / 200)


def test_many_images_have_few_pictures(model: TrainedModel, rows: pa.Table) -> None:
    scored = score_chains(rows.slice(0, 4), [[Predictor(model, CPU)]], num_images=10**9)
    for field in pictures.PICTURE_FIELDS:
        assert scored[field.name].null_count == 4
    assert scored["dice"].null_count == 0
    chosen = sum(pictures.has_picture(f"image {index}", 20_000) for index in range(20_000))
    assert 1_800 < chosen < 2_200
    assert pictures.has_picture("any", 2_000)


def test_masks_follow_the_rule_of_the_model(model: TrainedModel, rows: pa.Table) -> None:
    some = rows.slice(0, 6)
    rule = MaskRule(threshold=0.4, seed=0.7, empty_below=0.5)
    ruled = model_from_bytes(model_to_bytes(replace(model, mask_rule=rule)), "model.pt")
    assert ruled.mask_rule == rule
    prediction = Predictor(model, CPU)(_images(some))
    plain = score(some, Predictor(model, CPU)).to_pylist()
    for index, scored_row in enumerate(score(some, Predictor(ruled, CPU)).to_pylist()):
        mask = np.array(Image.open(io.BytesIO(some["mask_png"][index].as_py()))).astype(bool)
        found = rule(resize_map(prediction.lesion[index], *mask.shape), prediction.presence[index])
        assert (scored_row["tp"], scored_row["fp"]) == (
            int((found & mask).sum()),
            int((found & ~mask).sum()),
        )
        assert scored_row["half_dice"] == pytest.approx(plain[index]["dice"], nan_ok=True)
        assert scored_row["half_empty"] == (plain[index]["tp"] + plain[index]["fp"] == 0)


def test_the_threshold_decides_what_is_called_malignant(
    model: TrainedModel, rows: pa.Table
) -> None:
    some = rows.slice(0, 6)
    probabilities = score(some, Predictor(model, CPU))["probability"].to_pylist()
    at = sorted(probabilities)[2]
    moved = TrainedModel(**vars(model) | {"threshold": at})
    called = score(some, Predictor(moved, CPU))["predicted"].to_pylist()
    assert called == [probability >= at for probability in probabilities]
    assert sum(called) == 4  # including the image at the threshold


def test_the_same_rows_give_the_same_figures_whoever_has_them(
    model: TrainedModel, rows: pa.Table, predictions: pa.Table
) -> None:
    """Workers get shards in any order; a slice of a larger table equals a copy."""
    starts = [0, 32]  # as units of a shard are cut
    units = [rows.slice(start, 32) for start in starts]
    parts = [score(unit, Predictor(model, CPU)) for unit in reversed(units)]
    assert _same(pa.concat_tables(parts), predictions)
    copied = rows.take(pa.array(range(32, 60)))
    assert _same(score(copied, Predictor(model, CPU)), parts[0])
    assert not _same(parts[0], parts[1])


def _same(one: pa.Table, other: pa.Table) -> bool:
    """Return whether results are equal to the last digit, NaN included, in any order."""
    return repr(one.sort_by("sample_id").to_pylist()) == repr(
        other.sort_by("sample_id").to_pylist()
    )


def test_neighbours_change_nothing_that_matters(
    model: TrainedModel, rows: pa.Table, predictions: pa.Table
) -> None:
    alone = score(rows.slice(17, 1), Predictor(model, CPU)).to_pylist()[0]
    among = predictions.to_pylist()[17]
    assert alone["probability"] == pytest.approx(among["probability"], abs=1e-5)
    assert alone["sample_id"] == among["sample_id"]


def test_no_rows_give_no_predictions(model: TrainedModel, rows: pa.Table) -> None:
    nothing = score(rows.slice(0, 0), Predictor(model, CPU))
    assert nothing.schema == SCORED_SCHEMA
    assert nothing.num_rows == 0


def test_predictions_name_model_data_and_configuration(
    model: TrainedModel, predictions: pa.Table
) -> None:
    assert describe_origin([model]) == {
        "model_sha256": model.digest,
        "fingerprint": "f" * 64,
        "config_digest": compute_config_digest(model.config),
        "version": __version__,
    }
    assert len(model.digest) == 64
    for name, value in describe_origin([model]).items():
        assert set(predictions[name].to_pylist()) == {value}


def test_results_are_ordered_and_keep_their_rows(predictions: pa.Table) -> None:
    shuffled = predictions.take(pa.array(np.random.default_rng(0).permutation(60)))
    results = to_metric_results(shuffled)
    expected = sorted(predictions.to_pylist(), key=lambda row: row["sample_id"])
    assert results.sample_id.tolist() == [row["sample_id"] for row in expected]
    assert results.group.tolist() == [row["group"] for row in expected]
    assert results.probability.tolist() == [row["probability"] for row in expected]
    assert results.tp.tolist() == [row["tp"] for row in expected]


@pytest.mark.slow
def test_models_that_judge_together_are_averaged(
    make_model: Callable[..., TrainedModel], rows: pa.Table
) -> None:
    models = [make_model(), make_model(temperature=4.0, threshold=0.9)]
    alone = [score(rows, Predictor(model)).to_pylist() for model in models]
    together = score(rows, *map(Predictor, models)).to_pylist()
    for one, other, both in zip(*alone, together, strict=True):
        probability = (one["probability"] + other["probability"]) / 2
        assert both["probability"] == pytest.approx(probability)
        assert both["logit"] == pytest.approx((one["logit"] + other["logit"]) / 2, abs=1e-6)
        assert both["predicted"] == (probability >= (models[0].threshold + 0.9) / 2)
        assert both["model_sha256"] == ";".join(model.digest for model in models)


def test_each_source_has_its_own_figures(predictions: pa.Table) -> None:
    names = [("one", "two")[index % 3 == 0] for index in range(predictions.num_rows)]
    at = predictions.schema.get_field_index("source")
    table = predictions.set_column(at, "source", pa.array(names))
    found = evaluate_predictions(table, run_uri="s3://bucket/run", folds=(0, 2))["by_source"]
    assert set(found) == {"one", "two"}
    for name, part in found.items():
        rows = [row for row in table.to_pylist() if row["source"] == name]
        tumours = [row["dice"] for row in rows if row["label"] < 2]
        assert part["num_images"] == len(rows)
        assert part["metrics"]["dice"]["value"] == pytest.approx(np.mean(tumours))


def test_images_with_an_objection_are_told_apart(model: TrainedModel, rows: pa.Table) -> None:
    """A third of the rows has an objection in `meta`, copied to a column of the scores."""
    given = ["axilla" if index % 3 == 0 else "" for index in range(rows.num_rows)]
    meta = [[("age", "40"), *([("objection", text)] if text else [])] for text in given]
    at = rows.schema.get_field_index("meta")
    objected = rows.set_column(at, "meta", pa.array(meta, rows.schema.field("meta").type))
    scored = score(objected, Predictor(model, CPU))
    assert scored["objection"].to_pylist() == given
    found = evaluate_predictions(scored, run_uri="r", folds=(0,))["by_objection"]
    assert list(found) == ["none", "axilla"]
    for name, part in found.items():
        own = [row for row in scored.to_pylist() if (row["objection"] or "none") == name]
        tumours = [row["dice"] for row in own if row["label"] < 2]
        assert (part["num_images"], part["num_tumours"]) == (len(own), len(tumours))
        assert part["metrics"]["dice"]["value"] == pytest.approx(np.mean(tumours))


def test_the_first_collection_has_its_name(predictions: pa.Table, manifest: Manifest) -> None:
    """Rows of the first collection have no source in the shards, even after `--append`."""
    names = [("", "udiat")[index % 3 == 0] for index in range(predictions.num_rows)]
    at = predictions.schema.get_field_index("source")
    table = predictions.set_column(at, "source", pa.array(names))
    (first,) = manifest.sources
    assert (first.prefix, first.name) == ("", "BUSI")
    appended = replace(first, prefix="udiat", name="UDIAT")
    named = fill_sources(table, replace(manifest, sources=(first, appended)))
    assert named["source"].to_pylist() == [name or "BUSI" for name in names]
    assert named.schema == predictions.schema
    assert set(evaluate_predictions(named, run_uri="r", folds=(0,))["by_source"]) == {
        "BUSI",
        "udiat",
    }
    both = replace(manifest, sources=(replace(first, prefix="busi"), appended))
    assert fill_sources(table, both)["source"] == table["source"]


def test_distances_are_in_millimetres_where_pixels_are_known(
    model: TrainedModel, rows: pa.Table
) -> None:
    at = rows.schema.get_field_index("pixel_size")
    sizes = pa.array([0.5 if index % 2 else None for index in range(rows.num_rows)], pa.float32())
    scored = score(rows.set_column(at, "pixel_size", sizes), Predictor(model))
    for index, row in enumerate(scored.to_pylist()):
        for name in ("hd95", "assd"):
            if not index % 2:
                assert row[f"{name}_mm"] is None
            elif row["label"] < 2:
                assert row[f"{name}_mm"] == row[name] / 2
    known = [row for row in scored.to_pylist()[1::2] if row["label"] < 2]
    figures = evaluate_predictions(scored, run_uri="r", folds=(0,))["millimetres"]
    assert figures["count"] == len(known)
    assert figures["hd95"] == pytest.approx(np.mean([row["hd95_mm"] for row in known]))


def test_the_figures_are_those_that_are_promised(predictions: pa.Table) -> None:
    figures = evaluate_predictions(predictions, run_uri="s3://bucket/run", folds=(0, 2))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures.keys() == {
        "run", "folds", "num_images", "metrics", "by_class", "by_size", "by_source", "by_objection",
        "millimetres", "uncertainty", "errors", "by_pass",
    }  # fmt: skip
    assert [part["count"] for part in figures["by_size"].values()] == [16, 16, 16]
    assert figures["by_source"] == {}
    assert figures["by_objection"] == {}
    assert figures["uncertainty"] == {}
    assert figures["millimetres"] == {"count": 0, "hd95": None, "assd": None}
    assert (figures["run"], figures["folds"]) == ("s3://bucket/run", [0, 2])
    assert figures["num_images"] == 60
    assert set(figures["metrics"]) == METRICS
    assert all(
        set(interval) == {"value", "low", "high"} for interval in figures["metrics"].values()
    )
    assert figures["by_class"].keys() == {"benign", "malignant", "normal"}
    assert figures["by_pass"] == [{"pass": 0, "metrics": figures["metrics"]}]

    tumours = [row for row in predictions.to_pylist() if row["label"] < 2]
    assert len(tumours) == 48
    assert sum(band["images"] for band in figures["errors"]["bands"]) == 48
    best = figures["errors"]["decisions"]["best_threshold"]["dice"]
    assert best == pytest.approx(np.mean([row["best_dice"] for row in tumours]))
    metrics = {name: interval["value"] for name, interval in figures["metrics"].items()}
    assert metrics["dice"] == pytest.approx(np.mean([row["dice"] for row in tumours]))
    assert metrics["accuracy"] == np.mean([row["predicted"] == row["label"] for row in tumours])
    overlap = sum(2 * row["tp"] for row in tumours)
    assert metrics["dice_pooled"] == pytest.approx(
        overlap / (overlap + sum(row["fp"] + row["fn"] for row in tumours))
    )
    interval = figures["metrics"]["dice"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert [figures["by_class"][name]["count"] for name in ("benign", "malignant", "normal")] == [
        30, 18, 12,
    ]  # fmt: skip


def test_figures_do_not_depend_on_the_order_of_rows(predictions: pa.Table) -> None:
    shuffled = predictions.take(pa.array(np.random.default_rng(1).permutation(60)))
    figures = [
        evaluate_predictions(table, run_uri="r", folds=[0]) for table in (predictions, shuffled)
    ]
    assert figures[0] == figures[1]


def _with(table: pa.Table, **columns: Sequence[Any]) -> pa.Table:
    """Return a table with new values in some columns."""
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        table = table.set_column(
            at, table.schema.field(name), pa.array(values, table.schema.field(name).type)
        )
    return table


def test_passes_are_told_apart_and_the_last_one_counts(predictions: pa.Table) -> None:
    """Add a second pass with perfect outlines of every tumour."""
    dice = [1.0 if label < 2 else math.nan for label in predictions["label"].to_pylist()]
    second = _with(predictions, **{"pass": [1] * 60, "dice": dice})
    figures = evaluate_predictions(pa.concat_tables([second, predictions]), run_uri="r", folds=[0])
    assert [entry["pass"] for entry in figures["by_pass"]] == [0, 1]
    first, last = (entry["metrics"] for entry in figures["by_pass"])
    assert first == evaluate_predictions(predictions, run_uri="r", folds=[0])["metrics"]
    assert first["dice"]["value"] < 1
    assert last["dice"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert figures["metrics"] == last
    assert figures["by_class"]["benign"]["dice"] == 1
    assert figures["num_images"] == 60


def test_an_image_cannot_be_scored_twice_in_a_pass(predictions: pa.Table) -> None:
    twice = pa.concat_tables([predictions, predictions.slice(4, 1)])
    with pytest.raises(DataError, match="must be scored once"):
        evaluate_predictions(twice, run_uri="r", folds=[0])


def test_a_fold_must_be_complete(predictions: pa.Table) -> None:
    check_predictions_complete(predictions, 60, 1)
    with pytest.raises(DataError, match=r"fold 1 .* has 60 rows .* each of the 61 images once"):
        check_predictions_complete(predictions, 61, 1)
    twice = pa.concat_tables([predictions, predictions.slice(0, 1)])
    with pytest.raises(DataError, match=r"has 61 rows of 60 images, .* each of the 60 "):
        check_predictions_complete(twice, 60, 0)
    swapped = pa.concat_tables([predictions.slice(1), predictions.slice(1, 1)])
    with pytest.raises(DataError, match=r"has 60 rows of 59 images, .* each of the 60 "):
        check_predictions_complete(swapped, 60, 0)
