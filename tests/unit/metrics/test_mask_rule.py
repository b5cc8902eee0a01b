"""From maps to masks: rules and their choice, by hand."""

import math

import numpy as np
import pytest

from mtil.metrics.mask_rule import (
    HALF_OF_PEAK,
    NEVER,
    MappedImage,
    MaskRule,
    average_rules,
    choose_rule,
    find_expected_threshold,
)

SURE = np.array([[0.9, 0.6, 0.0, 0.6], [0.5, 0.4, 0.0, 0.55], [0.0, 0.0, 0.0, 0.0]], np.float32)
"""A region on the left with a sure pixel, and a faint region on the right."""
FAINT = np.array([[0.4, 0.25, 0.0, 0.3]], np.float32)
NOTHING = np.zeros((1, 4), bool)


def _mask(text: str) -> np.ndarray:
    return np.array([[letter == "#" for letter in row] for row in text.split()])


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (MaskRule(), "##.# #..# ...."),
        (MaskRule(threshold=0.4), "##.# ##.# ...."),
        (MaskRule(threshold=0.6, relative=1.0), "##.# ...# ...."),  # 0.54
        (MaskRule(threshold=0.6, relative=0.5), "##.# .... ...."),  # 0.57
        (MaskRule(relative=1.0), "##.# #..# ...."),  # 0.45
        (MaskRule(seed=0.9), "##.. #... ...."),
        (MaskRule(seed=0.95), ".... .... ...."),
        (MaskRule(seed=0.3), "##.# #..# ...."),  # below the threshold: every region has a seed
    ],
)
def test_regions_need_a_seed(rule: MaskRule, expected: str) -> None:
    assert np.array_equal(rule(SURE), _mask(expected))


def test_an_empty_map_has_an_empty_mask() -> None:
    empty = np.zeros((3, 4), np.float32)
    for rule in (MaskRule(), MaskRule(relative=1.0), MaskRule(filled_from=0.0)):
        assert not rule(empty, 0.9).any()


@pytest.mark.parametrize(
    ("presence", "expected"),
    [(0.1, "...."), (0.5, "...."), (0.8, "##.."), (math.nan, "....")],
)
def test_presence_empties_and_fills(presence: float, expected: str) -> None:
    """Half of the peak is 0.2: the right region reaches 0.2, but is not connected to the peak."""
    rule = MaskRule(filled_from=0.7)
    assert np.array_equal(rule(FAINT, presence), _mask(expected))
    emptied = MaskRule(threshold=0.2, empty_below=0.3)
    assert emptied(FAINT, presence).any() == (not presence < 0.3)


@pytest.mark.parametrize("presence", [0.0, 0.1, 0.9, math.nan])
def test_half_of_the_peak_outlines_every_image(presence: float) -> None:
    assert np.array_equal(HALF_OF_PEAK(FAINT, presence), _mask("##.#"))
    assert np.array_equal(HALF_OF_PEAK(FAINT / 100, presence), _mask("##.#"))


@pytest.mark.parametrize(
    ("lesion", "mask"),
    [
        # 2 S / (N + T): 0.62, 0.9, 0.76, 0.67 for the first 1 to 4 pixels
        ([0.9, 0.9, 0.1, 0.1], "##.."),
        # 0.44, 0.57, 0.42: an unsure map gets a low threshold
        ([0.4, 0.4, 0.0, 0.0], "##.."),
        # 1.6 / 2.2 = 0.73 and 2.2 / 3.1 = 0.71: half of 0.73 lies above the third pixel
        ([0.8, 0.3, 0.0, 0.0], "#..."),
        # 1.6 / 2.3 = 0.70 and 2.6 / 3.3 = 0.79: the second pixel lies above half of 0.79
        ([0.8, 0.5, 0.0, 0.0], "##.."),
        ([0.0, 0.0, 0.0, 0.0], "...."),
    ],
)
def test_the_threshold_of_the_highest_expected_dice(lesion: list[float], mask: str) -> None:
    values = np.array([lesion], np.float32)
    assert np.array_equal(MaskRule(expected=1.0)(values), _mask(mask))


def test_no_other_threshold_has_a_higher_expected_dice() -> None:
    rng = np.random.default_rng(0)
    for power in (1, 2, 4, 8):
        # Values lie in the middle of 256 levels: no level mixes different values.
        lesion = (np.floor(rng.random(5000) ** power * 256) + 0.5) / 256
        dice = {
            level / 256: 2 * lesion[lesion >= level / 256].sum()
            / ((lesion >= level / 256).sum() + lesion.sum())
            for level in range(1, 256)
        }  # fmt: skip
        threshold = find_expected_threshold(lesion.astype(np.float32))
        assert threshold == pytest.approx(max(dice.values()) / 2, abs=1e-6)
        chosen = lesion >= threshold
        own = 2 * lesion[chosen].sum() / (chosen.sum() + lesion.sum())
        assert own == pytest.approx(max(dice.values()), abs=1e-4)


def test_several_rules_share_the_expected_threshold_in_part() -> None:
    rule = average_rules([MaskRule(), MaskRule(expected=1.0)])
    lesion = np.array([[0.8, 0.5, 0.4, 0.0]], np.float32)  # thresholds 0.5 and 0.36, mean 0.43
    assert np.array_equal(rule(lesion), _mask("##.."))
    assert np.array_equal(MaskRule(expected=1.0)(lesion), _mask("###."))


def test_a_rule_is_chosen_that_finds_more() -> None:
    """The threshold 0.4 outlines all lesions, 0.5 only parts."""
    target = _mask("###.")
    lesions = [np.array([[0.9, 0.45 + step, 0.45, 0.0]], np.float32) for step in (0, 0.01, 0.02)]
    images = [MappedImage(lesion, target, math.nan) for lesion in lesions]
    rule = choose_rule(images, 0.2)
    assert all(np.array_equal(rule(lesion), target) for lesion in lesions)
    assert (rule.empty_below, rule.filled_from) == (0.0, NEVER)


def test_a_rule_that_is_not_better_is_not_taken() -> None:
    good = MappedImage(np.array([[0.9, 0.9, 0.1, 0.1]], np.float32), _mask("##.."), 0.9)
    assert choose_rule([good] * 5, 0.2) == MaskRule(expected=1.0)
    assert choose_rule([], 0.2) == MaskRule()
    normal = MappedImage(FAINT, NOTHING, 0.1)
    assert choose_rule([normal], 0.2) == MaskRule()


def test_normal_images_are_emptied_up_to_the_bound_and_tumours_are_filled() -> None:
    spurious = np.array([[0.0, 0.7, 0.0, 0.0]], np.float32)
    normals = [MappedImage(spurious, NOTHING, presence) for presence in (0.1, 0.2, 0.3, 0.6)]
    found = [MappedImage(np.array([[0.9, 0.9, 0.0, 0.0]], np.float32), _mask("##.."), 0.9)] * 3
    faint = [
        # A rule relative to the peak would also take the first pixel.
        MappedImage(np.array([[0.2, 0.0, 0.28, 0.2 + step]], np.float32), _mask("..##"), 0.8)
        for step in (0.0, 0.01, 0.02)
    ]
    rule = choose_rule([*normals, *found, *faint], 0.25)
    assert 0.3 < rule.empty_below <= 0.6  # a quarter of the normal images keeps a mask
    assert rule.empty_below <= rule.filled_from <= 0.8
    masks = [rule(image.lesion, image.presence) for image in (*normals, *found, *faint)]
    assert [mask.any() for mask in masks] == [False, False, False, True] + [True] * 6
    assert all(np.array_equal(mask, _mask("..##")) for mask in masks[-3:])


def test_several_models_share_the_mean_of_their_rules() -> None:
    rules = [MaskRule(threshold=0.4, seed=0.8, filled_from=0.6), MaskRule(empty_below=0.2)]
    mean = average_rules(rules)
    assert mean.threshold == pytest.approx(0.45)
    assert mean.seed == pytest.approx(0.4)
    assert mean.empty_below == pytest.approx(0.1)
    assert mean.filled_from > 1  # the second rule never fills


def test_a_rule_relative_to_the_peak_is_chosen_where_peaks_differ() -> None:
    """Half of the image's peak outlines every lesion; no common threshold does.

    The highest expected Dice would take only the first pixel: the probabilities are too low.
    """
    target = _mask("##..")
    images = [
        MappedImage(np.array([[peak, 0.55 * peak, 0.45 * peak, 0.0]], np.float32), target, math.nan)
        for peak in (0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    assert np.array_equal(MaskRule(expected=1.0)(images[0].lesion), _mask("#..."))
    rule = choose_rule(images, 0.2)
    assert rule.relative == 1.0
    assert all(np.array_equal(rule(image.lesion), target) for image in images)


def test_a_gate_that_costs_dice_is_not_used() -> None:
    """Presence separates badly: a gate above both normal images would also empty two tumours."""
    found = np.array([[0.9, 0.9, 0.0, 0.0]], np.float32)
    spurious = np.array([[0.0, 0.7, 0.0, 0.0]], np.float32)
    tumours = [MappedImage(found, _mask("##.."), presence) for presence in (0.3, 0.4, 0.9, 0.95)]
    normals = [MappedImage(spurious, NOTHING, presence) for presence in (0.2, 0.8)]
    rule = choose_rule([*tumours, *normals], 0.2)
    assert 0.2 < rule.empty_below <= 0.3
    assert all(rule(image.lesion, image.presence).any() for image in tumours)
    assert [rule(image.lesion, image.presence).any() for image in normals] == [False, True]
