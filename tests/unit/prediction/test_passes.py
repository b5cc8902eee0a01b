"""Passes over an image, chains of models, and maps for the next round."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mtil.config import Config
from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import pixels, read_shard
from mtil.errors import DataError, OutOfMemoryError
from mtil.prediction.evaluation import check_predictions_complete, evaluate_predictions
from mtil.prediction.predictor import Prediction, Predictor, map_shard, predict_passes
from mtil.prediction.scoring import EVALUATION_COLUMNS, score, score_chains
from mtil.run.checkpoint import TrainedModel, model_from_bytes, model_to_bytes
from mtil.run.maps import MapOrigin, decode_maps, join_maps, quantise_probabilities
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow

MakeModel = Callable[..., TrainedModel]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def make_map_reader(make_model: MakeModel) -> MakeModel:
    """Return models sensitive to prior maps, as read from a file."""

    def make(seed: int = 0, **values: object) -> TrainedModel:
        model = make_model(seed, **values)
        drawn = torch.Generator().manual_seed(seed)
        for name, weight in model.weights.items():
            if "prior" in name:
                weight.copy_(0.5 * torch.randn(weight.shape, generator=drawn))
        return model_from_bytes(model_to_bytes(model), "model.pt")

    return make


@pytest.fixture(scope="module")
def rows(data_uri: str, manifest: Manifest) -> pa.Table:
    store = LocalStore(data_uri)
    tables = [read_shard(store, shard, EVALUATION_COLUMNS) for shard in manifest.shards]
    return pa.concat_tables(tables)


@pytest.fixture(scope="module")
def images(rows: pa.Table) -> np.ndarray:
    return to_squares(pixels(rows["image"]))[:6]


def _shown(images: np.ndarray, size: int) -> Tensor:
    shares = torch.from_numpy(images / 255).float()[:, None]
    return F.interpolate(shares, (size, size), mode="bilinear", antialias=True)


def _same(one: Prediction, other: Prediction) -> bool:
    return all(
        np.array_equal(getattr(one, item.name), getattr(other, item.name), equal_nan=True)
        for item in dataclasses.fields(Prediction)
    )


def test_the_first_pass_is_what_a_predictor_says_without_passes(
    make_map_reader: MakeModel, images: np.ndarray
) -> None:
    predictor = Predictor(make_map_reader(), CPU)
    for num_passes in (1, 3):
        passes = predict_passes([predictor] * num_passes, images)
        assert len(passes) == num_passes
        assert _same(passes[0], predictor(images))
        assert all(not _same(passes[0], later) for later in passes[1:])


def test_a_prediction_that_needs_too_much_memory_says_so(
    make_model: MakeModel, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor(make_model(), CPU)
    # No machine has memory for 2**50 numbers.
    monkeypatch.setattr(predictor, "_network", lambda *_, **__: torch.empty(2**50))
    sentence = f"too small to predict {len(images)} images of 32 pixels; end other programs"
    with pytest.raises(OutOfMemoryError, match=sentence):
        predictor(images)


def test_a_network_that_has_learned_no_map_says_the_same_in_every_pass(
    make_model: MakeModel, images: np.ndarray
) -> None:
    first, second = predict_passes([Predictor(make_model(), CPU)] * 2, images)
    assert _same(first, second)


@pytest.mark.parametrize(
    ("name", "looks"),
    [
        ("plain", [(32, False)]),
        ("flip", [(32, False), (32, True)]),
        ("flip_and_scale", [(32, False), (32, True), (64, False), (64, True)]),
    ],
)
def test_a_view_is_given_its_own_map_of_the_pass_before(
    make_map_reader: MakeModel, make_config: Callable[..., Config], images: np.ndarray,
    name: str, looks: list[tuple[int, bool]],
) -> None:  # fmt: skip
    """Compare with plain calls of two networks; the second reads the first's map, per view."""
    config = make_config(predict={"views": name})
    chain = [make_map_reader(0, config=config), make_map_reader(1, config=config, temperature=3.0)]
    networks = [model.network() for model in chain]
    lesions: list[list[Tensor]] = [[], []]
    logits: list[list[Tensor]] = [[], []]
    for size, mirrored in looks:
        seen = _shown(images, size)
        prior = torch.zeros_like(seen)
        for number, network in enumerate(networks):
            with torch.no_grad():
                output = network(torch.flip(seen, [3]) if mirrored else seen, prior)
            prior = output.mask.sigmoid()
            lesion = torch.flip(prior, [3]) if mirrored else prior
            lesions[number].append(F.interpolate(lesion, (32, 32), mode="bilinear", antialias=True))
            logits[number].append(output.malignant)
    predictions = predict_passes([Predictor(model, CPU) for model in chain], images)
    for number, (prediction, temperature) in enumerate(zip(predictions, (1.5, 3.0), strict=True)):
        lesion = torch.stack(lesions[number]).mean(dim=0)[:, 0]
        logit = torch.stack(logits[number]).mean(dim=0).double().numpy()
        np.testing.assert_allclose(prediction.lesion, lesion, atol=2e-5)
        np.testing.assert_allclose(prediction.logit, logit, atol=1e-4)
        np.testing.assert_allclose(
            prediction.malignant, 1 / (1 + np.exp(-logit / temperature)), atol=1e-4
        )


def test_the_map_is_the_view_s_own_and_not_the_average(
    make_map_reader: MakeModel, make_config: Callable[..., Config], images: np.ndarray
) -> None:
    """The mirrored view of an image is the plain view of the mirror image."""
    config = make_config(predict={"views": "flip"})
    predictor = Predictor(make_map_reader(config=config), CPU)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    for one, other in zip(
        predict_passes([predictor] * 3, images),
        predict_passes([predictor] * 3, mirrored),
        strict=True,
    ):
        np.testing.assert_allclose(one.lesion, other.lesion[:, :, ::-1], atol=1e-3)
        np.testing.assert_allclose(one.logit, other.logit, atol=1e-3)


def test_every_image_has_a_row_for_each_pass(
    make_map_reader: MakeModel, make_config: Callable[..., Config], rows: pa.Table
) -> None:
    predictor = Predictor(make_map_reader(config=make_config(predict={"views": "plain"})), CPU)
    some = rows.slice(0, 40)
    scored = score(some, predictor, num_passes=3)
    assert scored.num_rows == 120
    check_predictions_complete(scored, 40, 0)
    for number in range(3):
        of_pass = scored.filter(pa.compute.equal(scored["pass"], number))
        assert of_pass["sample_id"].to_pylist() == some["sample_id"].to_pylist()
        expected = [
            logit
            for start in (0, 32)
            for logit in predict_passes(
                [predictor] * 3, to_squares(pixels(some.slice(start, 32)["image"]))
            )[number].logit.tolist()
        ]
        assert of_pass["logit"].to_pylist() == expected
    first = scored.filter(pa.compute.equal(scored["pass"], 0))
    # Contributions to the class come from the last pass.
    alone = score(some, predictor).drop_columns("evidence_png")
    assert repr(first.drop_columns("evidence_png").to_pylist()) == repr(alone.to_pylist())
    assert scored["dice"].to_pylist()[:32] != scored["dice"].to_pylist()[32:64]


def test_a_chain_s_passes_name_the_model_of_their_round(
    make_map_reader: MakeModel, rows: pa.Table
) -> None:
    """An ensemble of two folds' chains: predictions of a round are averaged, models listed."""
    some = rows.slice(0, 5)
    models = [
        [make_map_reader(2 * f + r, threshold=0.2 * r + 0.1) for r in range(2)] for f in range(2)
    ]
    chains = [[Predictor(model, CPU) for model in chain] for chain in models]
    together = score_chains(some, chains).to_pylist()
    alone = [score_chains(some, [chain]).to_pylist() for chain in chains]
    assert [row["pass"] for row in together] == [0] * 5 + [1] * 5
    for row, one, other in zip(together, *alone, strict=True):
        number = row["pass"]
        digests = [chain[number].digest for chain in models]
        assert row["model_sha256"] == ";".join(digests)
        assert (one["model_sha256"], other["model_sha256"]) == tuple(digests)
        probability = (one["probability"] + other["probability"]) / 2
        assert row["probability"] == pytest.approx(probability)
        assert row["predicted"] == (row["probability"] >= 0.2 * number + 0.1)


def test_a_pass_that_lacks_an_image_is_noticed(make_map_reader: MakeModel, rows: pa.Table) -> None:
    scored = score(rows.slice(0, 4), Predictor(make_map_reader(), CPU), num_passes=2)
    check_predictions_complete(scored, 4, 2)
    with pytest.raises(DataError, match=r"of fold 2 .* pass 1 has 3 rows of 3 images"):
        check_predictions_complete(scored.slice(0, 7), 4, 2)
    with pytest.raises(DataError, match=r"has 0 rows .* each of the 4 images once"):
        check_predictions_complete(scored.slice(0, 0), 4, 2)


def test_figures_beside_the_passes_are_those_of_the_last(
    make_map_reader: MakeModel, rows: pa.Table
) -> None:
    at = rows.schema.get_field_index("pixel_size")
    known = rows.set_column(at, "pixel_size", pa.array([0.1] * 60, pa.float32()))
    names = pa.array(["one", "two"] * 30)
    known = known.set_column(known.schema.get_field_index("source"), "source", names)
    scored = score(known, Predictor(make_map_reader(), CPU), num_passes=2)
    last = scored.filter(pa.compute.equal(scored["pass"], 1))
    figures = evaluate_predictions(scored, run_uri="r", folds=[0])
    alone = evaluate_predictions(last, run_uri="r", folds=[0])
    assert [entry["pass"] for entry in figures["by_pass"]] == [0, 1]
    assert figures["by_pass"][0]["metrics"] != figures["by_pass"][1]["metrics"]
    for name in ("num_images", "metrics", "by_class", "by_source", "millimetres"):
        assert figures[name] == alone[name]
    assert figures["millimetres"]["count"] <= 48


def _origin(model: TrainedModel, size: int = 16) -> MapOrigin:
    return MapOrigin(
        fingerprint="f" * 64, shard="shards/part-00000.parquet", model_sha256=model.digest,
        config_digest="c" * 64, round=0, fold=0, size=size,
    )  # fmt: skip


def test_a_map_is_what_the_network_says_of_the_plain_view(
    make_map_reader: MakeModel, images: np.ndarray
) -> None:
    """Maps ignore the configured views. At half size, a pixel is the mean of four pixels."""
    model = make_map_reader()
    assert model.config.predict.views != "plain"
    prior = np.random.default_rng(0).integers(0, 256, (6, 16, 16), np.uint8)
    given = F.interpolate(torch.from_numpy(prior / 255).float()[:, None], (32, 32), mode="bilinear")
    for stored, shown in ((None, None), (prior, given)):
        with torch.no_grad():
            probabilities = model.network()(_shown(images, 32), shown).mask.sigmoid()[:, 0].numpy()
        expected = probabilities.reshape(6, 16, 2, 16, 2).mean(axis=(2, 4))
        maps = Predictor(model, CPU).maps(images, stored, 16)
        assert maps.dtype == np.uint8
        assert np.abs(maps.astype(int) - quantise_probabilities(expected)).max() <= 3  # a level
        assert np.mean(maps != quantise_probabilities(expected)) < 0.01
        assert 0.05 < np.mean(maps > 127) < 0.95


def test_a_map_shard_has_the_map_of_every_row(make_map_reader: MakeModel, rows: pa.Table) -> None:
    model = make_map_reader()
    predictor = Predictor(model, CPU)
    some = rows.slice(7, 40)
    origin, table = decode_maps(map_shard(some, predictor, _origin(model)))
    assert origin == _origin(model)
    assert table["sample_id"].to_pylist() == some["sample_id"].to_pylist()
    held = to_squares(pixels(table["map"]))
    for start in (0, 32):
        expected = predictor.maps(to_squares(pixels(some["image"]))[start : start + 32], None, 16)
        np.testing.assert_array_equal(held[start : start + 32], expected)
    _, nothing = decode_maps(map_shard(some.slice(0, 0), predictor, _origin(model)))
    assert nothing.num_rows == 0


def test_the_same_rows_give_the_same_map_shard_whoever_maps_them(
    make_map_reader: MakeModel, rows: pa.Table
) -> None:
    model = make_map_reader()
    copied = rows.slice(3, 37).take(pa.array(range(37)))
    first = map_shard(copied, Predictor(model, CPU), _origin(model))
    busy = Predictor(model, CPU)
    map_shard(rows.slice(20, 5), busy, _origin(model))
    assert map_shard(rows.slice(3, 37), busy, _origin(model)) == first


def test_a_map_shard_cannot_name_another_model(make_map_reader: MakeModel, rows: pa.Table) -> None:
    model, other = make_map_reader(), make_map_reader(1)
    with pytest.raises(AssertionError):
        map_shard(rows.slice(0, 1), Predictor(model, CPU), _origin(other))


def test_a_later_round_maps_given_the_maps_of_the_round_before(
    make_map_reader: MakeModel, make_config: Callable[..., Config], rows: pa.Table
) -> None:
    """Compare with a chain on test images: storing maps as bytes at half size costs little."""
    config = make_config(predict={"views": "plain"})
    first, second = make_map_reader(0, config=config), make_map_reader(1, config=config)
    some = rows.slice(0, 30)
    _, before = decode_maps(map_shard(some, Predictor(first, CPU), _origin(first)))
    joined = join_maps(some, [before], np.arange(30))
    _, table = decode_maps(map_shard(joined, Predictor(second, CPU), _origin(second)))
    chain = predict_passes(
        [Predictor(first, CPU), Predictor(second, CPU)], to_squares(pixels(some["image"]))
    )
    held = to_squares(pixels(table["map"])) / 255
    halved = chain[1].lesion.reshape(30, 16, 2, 16, 2).mean(axis=(2, 4))
    _, blind = decode_maps(map_shard(some, Predictor(second, CPU), _origin(second)))
    without = to_squares(pixels(blind["map"])) / 255
    assert np.abs(held - halved).mean() < 0.25 * np.abs(without - halved).mean()
