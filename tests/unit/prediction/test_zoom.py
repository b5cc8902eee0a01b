"""Windows proposed by a map, and maps pasted from windows; values worked by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mtil.config import Config, ZoomConfig
from mtil.models.windows import Window
from mtil.prediction.predictor import Predictor, predict_passes
from mtil.prediction.zoom import paste_windows, propose_windows
from mtil.run.checkpoint import TrainedModel

CPU = torch.device("cpu")

SIDE = 100
CONFIG = ZoomConfig(num_windows=3, margin=2, min_side=0.1, max_edge=0.4, least_peak=0.2)


def _map(*regions: tuple[slice, slice, float]) -> np.ndarray:
    lesion = np.zeros((SIDE, SIDE), np.float32)
    for rows, columns, probability in regions:
        lesion[rows, columns] = probability
    return lesion


def test_a_window_is_twice_the_longer_edge_round_the_region() -> None:
    lesion = _map((slice(40, 60), slice(45, 55), 0.9))
    assert propose_windows(lesion, CONFIG) == [Window(30, 30, 40)]


def test_a_region_ends_at_half_of_its_peak() -> None:
    lesion = _map((slice(30, 70), slice(30, 70), 0.39), (slice(45, 55), slice(45, 55), 0.8))
    assert propose_windows(lesion, CONFIG)[0] == Window(40, 40, 20)
    lesion[30:70, 30:70] = np.maximum(lesion[30:70, 30:70], np.float32(0.41))
    assert propose_windows(lesion, CONFIG) == [Window(10, 10, 80)]


def test_the_higher_peak_comes_first() -> None:
    low, high = (slice(10, 20), slice(10, 20), 0.4), (slice(70, 80), slice(70, 80), 0.7)
    assert propose_windows(_map(low, high), CONFIG) == [Window(65, 65, 20), Window(5, 5, 20)]


def test_no_more_windows_than_asked_for() -> None:
    lesion = _map(*((slice(at, at + 6), slice(at, at + 6), at / 100) for at in (20, 40, 60, 80)))
    tops = [window.top for window in propose_windows(lesion, CONFIG)]
    assert tops == [77, 57, 37]
    one = ZoomConfig(num_windows=1, margin=2, min_side=0.1)
    assert [window.top for window in propose_windows(lesion, one)] == [77]
    assert propose_windows(lesion, ZoomConfig(num_windows=0)) == []


def test_a_region_inside_an_earlier_window_gets_none() -> None:
    lesion = _map((slice(40, 50), slice(40, 50), 0.9), (slice(52, 55), slice(40, 50), 0.4))
    assert propose_windows(lesion, CONFIG) == [Window(35, 35, 20)]


def test_a_large_region_gets_no_window_but_a_small_one_beside_it() -> None:
    large, small = (slice(0, 41), slice(0, 10), 0.9), (slice(80, 90), slice(80, 90), 0.5)
    assert propose_windows(_map(large, small), CONFIG) == [Window(75, 75, 20)]


@pytest.mark.parametrize(("peak", "number"), [(0.19, 0), (0.21, 1)])
def test_a_weak_region_gets_no_window(peak: float, number: int) -> None:
    lesion = _map((slice(40, 50), slice(40, 50), peak))
    assert len(propose_windows(lesion, CONFIG)) == number


def test_a_small_region_gets_the_least_side() -> None:
    assert propose_windows(_map((slice(50, 51), slice(50, 51), 0.9)), CONFIG)[0].side == 10


def test_an_empty_map_and_its_own_values_stay() -> None:
    lesion = _map()
    assert propose_windows(lesion, CONFIG) == []
    lesion = _map((slice(40, 50), slice(40, 50), 0.9))
    before = lesion.copy()
    propose_windows(lesion, CONFIG)
    np.testing.assert_array_equal(lesion, before)


def test_maps_are_averaged_inside_a_window_only() -> None:
    lesion = np.full((4, 4), 0.5, np.float32)
    look = np.array([[1, 0], [0.5, 0.7]], np.float32)
    pasted = paste_windows(lesion, [Window(1, 2, 2)], [look])
    expected = np.full((4, 4), 0.5)
    expected[1:3, 2:4] = [[0.75, 0.25], [0.5, 0.6]]
    np.testing.assert_allclose(pasted, expected, atol=1e-7)
    assert pasted.dtype == np.float32


def test_where_windows_overlap_all_maps_count_alike() -> None:
    lesion = np.zeros((3, 3), np.float32)
    looks = [np.full((2, 2), 0.6, np.float32), np.full((2, 2), 0.9, np.float32)]
    pasted = paste_windows(lesion, [Window(0, 0, 2), Window(1, 1, 2)], looks)
    assert pasted[1, 1] == pytest.approx(0.5)
    assert pasted[0, 0] == pytest.approx(0.3)
    assert pasted[2, 2] == pytest.approx(0.45)
    assert pasted[0, 2] == 0


STORED = 64


@pytest.fixture
def predictor(
    make_model: Callable[..., TrainedModel], make_config: Callable[..., Config]
) -> Predictor:
    """A model with a zoom pass for every region; the network reads enlargement and prior map."""
    config = make_config(
        zoom={"num_windows": 2, "least_peak": 0.0, "max_edge": 1.0, "margin": 1.0},
        predict={"views": "flip"},
    )
    model = make_model(3)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(value.shape, generator=generator) * 0.1
        if name in ("zoom_stem", "head.zoom", "prior_stem.weight")
        else value
        for name, value in model.weights.items()
    }
    return Predictor(replace(model, config=config, weights=weights), CPU)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (3, STORED, STORED), dtype=np.uint8)


def _enlarge(values: np.ndarray, size: int) -> np.ndarray:
    enlarged = F.interpolate(
        torch.from_numpy(values)[None, None], (size, size), mode="bilinear", antialias=True
    )
    return enlarged[0, 0].numpy()


@pytest.mark.parametrize(("num_passes", "weight"), [(1, 0.0), (1, 0.5), (2, 0.25)])
def test_a_zoom_pass_follows_the_others(
    predictor: Predictor, images: np.ndarray, num_passes: int, weight: float
) -> None:
    """Compare with plain network calls on both mirror images of every window, averaged.

    The network reads a map in the window only if an earlier pass has read a map.
    """
    config = predictor.model.config
    config = replace(config, zoom=replace(config.zoom, logit_weight=weight))
    predictor = Predictor(replace(predictor.model, config=config), CPU)
    *passes, zoomed = predict_passes([predictor] * num_passes, images)
    assert len(passes) == num_passes
    network = predictor.model.network()
    for index, image in enumerate(images):
        coarse = _enlarge(passes[-1].lesion[index], STORED)
        windows = propose_windows(coarse, predictor.model.config.zoom)
        assert windows
        total, count = coarse.astype(np.float64), np.ones_like(coarse)
        logits = []
        for window in windows:
            part = torch.from_numpy(_enlarge(image[window.cut].astype(np.float32) / 255, 32))
            prior = torch.zeros(32, 32)
            if num_passes > 1:
                prior = torch.from_numpy(_enlarge(coarse[window.cut], 32))
            zoom = torch.tensor([np.log2(STORED / window.side)], dtype=torch.float32)
            with torch.inference_mode():
                plain, mirrored = (
                    network(one[None, None], given[None, None], zoom=zoom)
                    for one, given in ((part, prior), (part.flip(-1), prior.flip(-1)))
                )
            look = (plain.mask.sigmoid() + mirrored.mask.sigmoid().flip(-1))[0, 0].numpy() / 2
            total[window.cut] += _enlarge(look, window.side)
            count[window.cut] += 1
            logits.append(float((plain.malignant + mirrored.malignant) / 2))
        # The prior map is rounded to bytes.
        np.testing.assert_allclose(zoomed.lesion[index], total / count, atol=2e-3)
        expected = (1 - weight) * passes[-1].logit[index] + weight * logits[0]
        assert zoomed.logit[index] == pytest.approx(expected, abs=2e-3)


def test_a_prediction_does_not_depend_on_the_other_images(
    predictor: Predictor, images: np.ndarray
) -> None:
    def zoom(some: np.ndarray) -> np.ndarray:
        return predict_passes([predictor], some)[-1].lesion

    together = zoom(images)
    for index in range(len(images)):
        np.testing.assert_allclose(zoom(images[index : index + 1])[0], together[index], atol=1e-5)


def test_without_a_window_the_prediction_stays(
    predictor: Predictor, images: np.ndarray, make_config: Callable[..., Config]
) -> None:
    config = make_config(zoom={"num_windows": 2, "least_peak": 1.0}, predict={"views": "flip"})
    blind = Predictor(replace(predictor.model, config=config), CPU)
    coarse, zoomed = predict_passes([blind], images)
    np.testing.assert_array_equal(coarse.logit, zoomed.logit)
    np.testing.assert_array_equal(coarse.presence, zoomed.presence)
    np.testing.assert_allclose(zoomed.lesion[0], _enlarge(coarse.lesion[0], STORED), atol=1e-6)
