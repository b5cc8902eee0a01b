"""What a lesion probability map would score under other decisions than the usual threshold."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics.segmentation import Mask

_LEVELS = 100
"""Thresholds are multiples of 1 / `_LEVELS`."""


@dataclass(frozen=True, slots=True)
class MapScores:
    """Scores of an image's probability map."""

    peak: float
    """Highest probability."""
    peak_inside: bool
    """Whether the first pixel with the highest probability lies in the lesion."""
    best_threshold: float
    """The threshold with the highest Dice; the nearest to one half of several; NaN without a
    lesion."""
    best_dice: float
    """Dice at `best_threshold`; NaN without a lesion."""
    half_peak_dice: float
    """Dice of the pixels with at least half of `peak`; NaN without a lesion."""
    half_dice: float
    """Dice of the pixels with a probability of at least one half; NaN without a lesion."""
    half_empty: bool
    """True if no pixel has a probability of at least one half."""


def score_map(probability: npt.NDArray[np.float32], target: Mask) -> MapScores:
    """Score a probability map against the true mask.

    Args:
        probability: (height, width), in [0, 1].
        target: (height, width), true inside the lesion; all false for a normal image.

    Raises:
        DataError: if the shapes differ or the image is empty.
    """
    if probability.shape != target.shape or probability.size == 0:
        raise DataError(
            f"Map and target must be images of one size, but got {probability.shape} and "
            f"{target.shape}; resize the map to the original image."
        )
    peak = float(probability.max())
    area = int(np.count_nonzero(target))
    peak_inside = bool(target.flat[int(probability.argmax())])
    if not area:
        nothing = math.nan
        return MapScores(peak, peak_inside, nothing, nothing, nothing, nothing, peak < 0.5)
    # Pixels by the largest multiple of the step that is not above their probability.
    level = np.minimum((probability * _LEVELS).astype(np.int64), _LEVELS)
    predicted, overlap = (
        np.bincount(level[chosen], minlength=_LEVELS + 1)[::-1].cumsum()[::-1][1:_LEVELS]
        for chosen in (np.ones_like(target), target)
    )
    dice = 2 * overlap / (predicted + area)
    thresholds = np.arange(1, _LEVELS) / _LEVELS
    best = thresholds[dice == dice.max()]

    def dice_from(threshold: float) -> float:
        mask = probability >= threshold
        return float(2 * np.count_nonzero(mask & target) / (np.count_nonzero(mask) + area))

    return MapScores(
        peak=peak,
        peak_inside=peak_inside,
        best_threshold=float(best[np.argmin(np.abs(best - 0.5))]),
        best_dice=float(dice.max()),
        half_peak_dice=dice_from(peak / 2),
        half_dice=dice_from(0.5),
        half_empty=peak < 0.5,
    )
