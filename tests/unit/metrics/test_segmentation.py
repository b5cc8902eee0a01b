import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from mtil.errors import DataError
from mtil.metrics.segmentation import find_outline, score_mask

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance


def mask(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def square(top, left, size, shape=(20, 30)):
    image = np.zeros(shape, bool)
    image[top : top + size, left : left + size] = True
    return image


def blob(rng, shape, sigma, share):
    smooth = ndimage.gaussian_filter(rng.normal(size=shape), sigma)
    return smooth > np.quantile(smooth, 1 - share)


def _cases():
    """Yield pairs of non-empty masks: blobs, borders, single pixels, several components."""
    rng = np.random.default_rng(3)
    shape = (41, 33)
    for sigma, share in [(6, 0.2), (4, 0.3), (2, 0.4), (1, 0.1), (0.5, 0.5)] * 3:
        yield blob(rng, shape, sigma, share), blob(rng, shape, sigma, share)
    single, other = np.zeros(shape, bool), np.zeros(shape, bool)
    single[7, 30] = other[40, 0] = True
    yield single, other
    yield single, blob(rng, shape, 5, 0.3)
    yield np.ones(shape, bool), single
    yield np.ones(shape, bool), np.ones(shape, bool)
    border = np.zeros(shape, bool)
    border[:, :4] = border[36:, :] = True
    yield border, blob(rng, shape, 5, 0.3)
    yield border | single, border
    yield rng.random((1, 9)) < 0.5, np.ones((1, 9), bool)
    yield rng.random((2, 9)) < 0.5, np.ones((2, 9), bool)


CASES = list(_cases())


def brute_force(prediction, target, spacing):
    """Return HD95 and ASSD from all pairs of outline pixels, a brute-force reference."""

    def points(image):
        padded = np.pad(image, 1)
        return [
            (row * spacing[0], column * spacing[1])
            for row, column in zip(*np.nonzero(image), strict=True)
            if not all(
                padded[row + 1 + y, column + 1 + x] for y, x in ((0, 1), (1, 0), (0, -1), (-1, 0))
            )
        ]

    a, b = np.array(points(prediction)), np.array(points(target))
    pairs = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    there, back = pairs.min(axis=1), pairs.min(axis=0)

    def percentile(distances):
        ordered = sorted(distances)
        position = 0.95 * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    mean = (sum(there) + sum(back)) / (len(there) + len(back))
    return max(percentile(there), percentile(back)), mean


def test_counts_and_overlap_by_hand():
    scores = score_mask(mask("##..", "##.."), mask(".##.", ".##."))
    assert (scores.tp, scores.fp, scores.fn) == (2, 2, 2)
    assert scores.dice == 0.5
    assert scores.iou == 1 / 3
    assert not scores.missed
    assert scores.false_positive_area == 2 / 8


def test_distances_of_two_pixels_by_hand():
    prediction, target = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    prediction[1, 1] = target[4, 5] = True
    scores = score_mask(prediction, target)
    assert scores.hd95 == scores.assd == 5.0
    assert score_mask(prediction, target, spacing=(4.0, 4.0)).hd95 == 20.0
    assert score_mask(prediction, target, spacing=(5.0, 2.0)).hd95 == 17.0  # 15 and 8


def test_equal_masks_have_no_distance():
    scores = score_mask(square(3, 3, 5), square(3, 3, 5))
    assert (scores.dice, scores.iou, scores.hd95, scores.assd) == (1.0, 1.0, 0.0, 0.0)
    assert scores.false_positive_area == 0


def test_a_miss_counts_as_the_diagonal_not_as_zero():
    scores = score_mask(np.zeros((30, 40), bool), square(2, 2, 5, (30, 40)))
    assert (scores.hd95, scores.assd) == (50.0, 50.0)
    assert scores.dice == scores.iou == 0
    assert scores.missed
    scaled = score_mask(np.zeros((30, 40), bool), square(2, 2, 5, (30, 40)), spacing=(0.2, 0.2))
    assert scaled.hd95 == scaled.assd == pytest.approx(10.0)


def test_the_diagonal_is_worse_than_the_worst_prediction():
    corner, opposite = square(0, 0, 1), square(19, 29, 1)
    empty = score_mask(np.zeros((20, 30), bool), corner)
    assert score_mask(opposite, corner).hd95 < empty.hd95


def test_a_prediction_beside_the_lesion_is_a_miss_with_its_own_distance():
    scores = score_mask(square(0, 0, 1), square(0, 10, 1))
    assert scores.missed
    assert scores.dice == 0
    assert scores.hd95 == 10.0


def test_a_normal_image_scores_only_its_false_positive_area():
    scores = score_mask(square(0, 0, 6), np.zeros((20, 30), bool))
    assert np.isnan([scores.dice, scores.iou, scores.hd95, scores.assd]).all()
    assert not scores.missed
    assert scores.false_positive_area == 36 / 600
    clean = score_mask(np.zeros((20, 30), bool), np.zeros((20, 30), bool))
    assert clean.false_positive_area == 0
    assert not clean.missed


@pytest.mark.parametrize(("prediction", "target"), CASES)
def test_the_outline_is_the_mask_minus_its_erosion(prediction, target):
    for image in (prediction, target):
        np.testing.assert_array_equal(find_outline(image), image & ~ndimage.binary_erosion(image))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.3, 1.7)])
@pytest.mark.parametrize(("prediction", "target"), CASES)
def test_distances_equal_those_of_all_pairs(prediction, target, spacing):
    scores = score_mask(prediction, target, spacing=spacing)
    expected = brute_force(prediction, target, spacing)
    assert (scores.hd95, scores.assd) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # inside MONAI
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0)])
@pytest.mark.parametrize(("prediction", "target"), CASES)
def test_distances_equal_those_of_monai(prediction, target, spacing):
    a, b = torch.from_numpy(prediction)[None, None], torch.from_numpy(target)[None, None]
    both = {"include_background": True}
    if spacing != (1.0, 1.0):  # a spacing scales MONAI's distances, not the outlines
        both["spacing"] = list(spacing)
    scores = score_mask(prediction, target, spacing=spacing)
    hd95 = compute_hausdorff_distance(a, b, percentile=95, **both).item()
    assd = compute_average_surface_distance(a, b, symmetric=True, **both).item()
    assert (scores.hd95, scores.assd) == pytest.approx((hd95, assd), rel=1e-5, abs=1e-6)


def test_the_masks_are_left_as_they_were():
    prediction, target = square(0, 0, 6), square(2, 2, 6)
    score_mask(prediction, target)
    np.testing.assert_array_equal(prediction, square(0, 0, 6))
    np.testing.assert_array_equal(target, square(2, 2, 6))


@pytest.mark.parametrize(
    ("prediction", "target", "spacing", "message"),
    [
        (np.zeros((3, 3)), np.zeros((3, 3), bool), (1, 1), "boolean, but got float64"),
        (np.zeros((3, 4), bool), np.zeros((3, 3), bool), (1, 1), r"\(3, 4\) and \(3, 3\)"),
        (np.zeros((1, 3, 3), bool), np.zeros((1, 3, 3), bool), (1, 1), r"\(1, 3, 3\)"),
        (np.zeros((0, 3), bool), np.zeros((0, 3), bool), (1, 1), r"\(0, 3\)"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (0.0, 1.0), r"got \(0.0, 1.0\)"),
        (np.zeros((3, 3), bool), np.zeros((3, 3), bool), (1.0, math.nan), "nan"),
    ],
)
def test_bad_input_is_refused(prediction, target, spacing, message):
    with pytest.raises(DataError, match=message):
        score_mask(prediction, target, spacing=spacing)
