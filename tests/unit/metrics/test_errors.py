"""Scores of probability maps, and the error budget: values worked out by hand."""

import math

import numpy as np
import pytest

from mtil.errors import DataError
from mtil.metrics import MapResults, Results, budget_errors, score_map


def test_a_map_is_scored_at_other_thresholds() -> None:
    """Four of eight pixels show a lesion; the threshold 0.5 finds two, and a false pixel."""
    probability = np.array([[0.9, 0.6, 0.35, 0.3], [0.7, 0.2, 0.1, 0.05]], np.float32)
    target = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)
    scores = score_map(probability, target)
    assert scores.peak == pytest.approx(0.9)
    assert scores.peak_inside
    # thresholds 0.21 to 0.30: 4 true and 1 false pixel, Dice 8 / 9
    assert scores.best_dice == pytest.approx(8 / 9)
    assert 0.2 < scores.best_threshold <= 0.3
    # thresholds 0.45 and 0.5: 2 true and 1 false pixel, Dice 4 / 7
    assert scores.half_peak_dice == pytest.approx(4 / 7)
    assert scores.half_dice == pytest.approx(4 / 7)
    assert not scores.half_empty


def test_of_several_best_thresholds_the_nearest_to_one_half_is_taken() -> None:
    probability = np.array([[0.8, 0.2]], np.float32)
    scores = score_map(probability, np.array([[True, False]]))
    assert (scores.best_dice, scores.best_threshold) == (1.0, 0.5)


def test_a_normal_image_has_a_peak_and_no_dice() -> None:
    scores = score_map(np.full((2, 2), 0.25, np.float32), np.zeros((2, 2), bool))
    assert (scores.peak, scores.peak_inside, scores.half_empty) == (0.25, False, True)
    assert all(
        math.isnan(value)
        for value in (scores.best_dice, scores.best_threshold, scores.half_peak_dice)
    )


def test_map_and_target_must_have_one_size() -> None:
    with pytest.raises(DataError, match=r"\(2, 2\) and \(3, 2\)"):
        score_map(np.zeros((2, 2), np.float32), np.zeros((3, 2), bool))


def _results(dice: list[float], labels: list[int], areas: list[int]) -> Results:
    """Return results of lesions of `areas` pixels; with a positive Dice, 1 pixel is found."""
    size, tumour = len(dice), np.array(labels) != 2
    score = np.where(tumour, dice, np.nan)
    tp = np.where(tumour & (np.array(dice) > 0), 1, 0)
    return Results(
        sample_id=np.array([f"image {index}" for index in range(size)]),
        group=np.array([f"group {index}" for index in range(size)]),
        label=np.array(labels),
        fold=np.zeros(size, int),
        probability=np.full(size, 0.5),
        predicted=np.zeros(size, bool),
        tp=tp,
        fp=np.zeros(size, int),
        fn=np.array(areas) - tp,
        dice=score,
        iou=score,
        hd95=score,
        assd=score,
        missed=tumour & (tp == 0),
        false_positive_area=np.zeros(size),
    )


def test_the_budget_says_where_dice_is_lost() -> None:
    results = _results([0.0, 0.4, 0.6, 0.8, 1.0, 0.0], [0, 1, 0, 1, 0, 2], [5, 4, 3, 2, 1, 0])
    nothing = math.nan
    maps = MapResults(
        peak_inside=np.array([False, True, True, True, True, False]),
        best_dice=np.array([0.5, 0.5, 0.7, 0.9, 1.0, nothing]),
        half_peak_dice=np.array([0.3, 0.2, 0.6, 0.7, 1.0, nothing]),
        half_dice=np.array([0.0, 0.5, 0.6, 0.8, 1.0, nothing]),
        half_empty=np.array([True, False, False, False, False, False]),
    )
    budget = budget_errors(results, maps)
    assert budget["num_images"] == 5
    # lost Dice: 1, 0.6, 0.4, 0.2 and 0, in total 2.2
    assert [band["images"] for band in budget["bands"]] == [1, 1, 1, 2]
    assert [band["share_of_loss"] for band in budget["bands"]] == pytest.approx(
        [1 / 2.2, 0.6 / 2.2, 0.4 / 2.2, 0.2 / 2.2]
    )
    assert budget["size_quarters"] == pytest.approx([0.9, 0.6, 0.4, 0.0])
    assert budget["peak_inside"] == pytest.approx(4 / 5)
    assert budget["empty_masks"] == pytest.approx(1 / 5)
    assert budget["normal_images"] == {"count": 1, "empty_share": 1.0, "empty_share_half": 0.0}
    decisions = budget["decisions"]
    assert decisions["half"]["gain"]["value"] == pytest.approx(0.1 / 5)
    assert decisions["best_threshold"]["dice"] == pytest.approx(3.6 / 5)
    assert decisions["half_peak"]["dice"] == pytest.approx(2.8 / 5)
    assert decisions["half_peak_if_empty"]["dice"] == pytest.approx(3.1 / 5)
    gain = decisions["half_peak_if_empty"]["gain"]
    assert gain["value"] == pytest.approx(0.3 / 5)
    assert 0 <= gain["low"] < gain["value"] < gain["high"]


def test_a_budget_without_tumours_or_loss_is_undefined_and_no_error() -> None:
    for labels, dice in (([2, 2], [0.0, 0.0]), ([0, 1], [1.0, 1.0])):
        results = _results(dice, labels, [0 if label == 2 else 3 for label in labels])
        found = np.where(np.array(labels) == 2, math.nan, 1.0)
        maps = MapResults(
            peak_inside=np.ones(2, bool),
            best_dice=found,
            half_peak_dice=found,
            half_dice=found,
            half_empty=np.zeros(2, bool),
        )
        budget = budget_errors(results, maps)
        assert {band["share_of_loss"] for band in budget["bands"]} == {None}
