"""From a lesion probability map to a mask: a rule, and its choice on inner validation images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field
from pydantic.dataclasses import dataclass as validated

from mtil.config import STRICT, Share

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]

NEVER = 2.0
"""Bound that no probability reaches."""
_Gate = Annotated[float, Field(ge=0, le=NEVER)]
_THRESHOLDS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
_SEEDS = (0.0, 0.6, 0.7, 0.8, 0.9)
_NUM_LEVELS = 256


@validated(frozen=True, kw_only=True, config=STRICT)
class MaskRule:
    """How a mask follows from a map. The default is the plain threshold of one half.

    With `presence` known, an image that probably shows no lesion gets an empty mask, and an image
    that probably shows one gets no empty mask.
    """

    threshold: Share = 0.5
    """Least probability of a pixel in the mask."""
    relative: Share = 0.0
    """From 0, where `threshold` is absolute, to 1, where `threshold` is a share of the map's
    highest probability, as in `HALF_OF_PEAK`."""
    expected: Share = 0.0
    """Weight of `find_expected_threshold` in the threshold of a map: 0 to 1. `threshold` and
    `relative` have the remaining weight."""
    seed: Share = 0.0
    """A connected region needs a pixel of at least this probability (hysteresis)."""
    empty_below: _Gate = 0.0
    """The mask is empty if the probability of a lesion in the image is lower."""
    filled_from: _Gate = NEVER
    """Least probability of a lesion in the image at which an empty mask is filled, by the region
    round the highest pixel with at least half of the highest probability. 0 always, above 1
    never."""

    def __call__(self, lesion: Map, presence: float = math.nan) -> Mask:
        """Return the mask (h, w) of a map (h, w).

        Args:
            lesion: lesion probability of each pixel.
            presence: probability of a lesion in the image; NaN if unknown, which neither empties
                nor fills a mask.
        """
        if presence < self.empty_below:
            return np.zeros(lesion.shape, np.bool_)
        level = self.threshold * (1 - self.relative * (1 - float(lesion.max())))
        if self.expected > 0:
            level += self.expected * (find_expected_threshold(lesion) - level)
        mask = (lesion >= level) & (lesion > 0)
        if self.seed > level:
            from scipy import ndimage

            regions, num_regions = ndimage.label(mask)
            has_seed = np.zeros(num_regions + 1, np.bool_)
            has_seed[regions[mask & (lesion >= self.seed)]] = True
            mask = has_seed[regions]
        is_filled = presence >= self.filled_from or self.filled_from == 0
        if is_filled and not mask.any() and lesion.any():
            from scipy import ndimage

            regions, _ = ndimage.label(lesion >= lesion.max() / 2)
            mask = regions == regions.flat[int(lesion.argmax())]
        return mask


HALF_OF_PEAK = MaskRule(threshold=0.5, relative=1.0)
"""All pixels of at least half the highest probability: the rule for images that are known to show a
lesion. Such images mostly come from another scanner, where models give other probabilities; a
fitted rule and the highest expected Dice then outline worse (docs/results.md)."""


def find_expected_threshold(lesion: Map) -> float:
    """Return the threshold of a map with the highest expected Dice of the mask.

    The probabilities are taken literally, as those of independent pixels, and the expectation of
    the ratio as the ratio of expectations: 2 S / (N + T) with the sum S and the number N of the
    probabilities from the threshold on, and the sum T of all. The best threshold is half of the
    highest expected Dice (Lipton et al. 2014, arXiv:1402.1892): an unsure map gets a lower one.
    Thresholds below 1/256 are not considered.

    Args:
        lesion: lesion probability of each pixel, of any shape.
    """
    values = lesion.ravel()
    bins = np.minimum((values * _NUM_LEVELS).astype(np.intp), _NUM_LEVELS - 1)
    counts = np.bincount(bins, minlength=_NUM_LEVELS)
    sums = np.bincount(bins, weights=values, minlength=_NUM_LEVELS)
    numbers, totals = (part[::-1].cumsum()[::-1] for part in (counts, sums))
    dice = 2 * totals / np.maximum(numbers + totals[0], 1e-12)
    return max(float(dice[1:].max()) / 2, 1 / _NUM_LEVELS)


_FAMILIES = (MaskRule(expected=1.0), MaskRule(), MaskRule(relative=1.0))
"""Rules from which the choice starts, the first preferred."""


def average_rules(rules: Sequence[MaskRule]) -> MaskRule:
    """Return the rule of several models that predict together: the mean of each value."""
    return MaskRule(
        **{
            field.name: float(np.mean([getattr(rule, field.name) for rule in rules]))
            for field in fields(MaskRule)
        }
    )


@dataclass(frozen=True, eq=False)
class MappedImage:
    """An inner validation image: its map, its true mask and the probability of a lesion."""

    lesion: Map
    """(h, w)."""
    target: Mask
    """(h, w), true inside the lesion; all false for a normal image."""
    presence: float
    """NaN if the model cannot tell."""


def choose_rule(images: Sequence[MappedImage], max_false_positives: float) -> MaskRule:
    """Choose the rule with the highest mean Dice on the images that show a lesion.

    At most the share `max_false_positives` of the images without a lesion may get a mask, if the
    probability of a lesion is known and a rule attains this without a lower mean Dice than the
    default rule's. A rule is left for another only if
    Dice rises by more than one standard error of the difference: with few images, small
    differences are chance (one-standard-error rule, Breiman et al. 1984). The rule of the highest
    expected Dice comes first: it has nothing to fit. Without an image that shows a lesion, the
    default rule is returned.

    Args:
        images: inner validation images.
        max_false_positives: bound on the share of normal images with a predicted pixel.
    """
    tumours = [image for image in images if image.target.any()]
    normals = [image for image in images if not image.target.any()]
    if not tumours:
        return MaskRule()
    best, best_dice = _choose_in_family(_FAMILIES[0], tumours, normals, max_false_positives)
    for family in _FAMILIES[1:]:
        rule, dice = _choose_in_family(family, tumours, normals, max_false_positives)
        if _is_better(dice, best_dice):
            best, best_dice = rule, dice
    return best


def _choose_in_family(
    start: MaskRule,
    tumours: Sequence[MappedImage],
    normals: Sequence[MappedImage],
    max_false_positives: float,
) -> tuple[MaskRule, Scores]:
    """Return the best rule with `expected` and `relative` of a rule, and the Dice of tumours."""
    best, best_dice = start, _dice(start, tumours)
    thresholds = (start.threshold,) if start.expected else _THRESHOLDS
    for threshold, seed in product(thresholds, _SEEDS):
        rule = replace(start, threshold=threshold, seed=seed)
        if seed and seed <= threshold:
            continue
        dice = _dice(rule, tumours)
        if _is_better(dice, best_dice):
            best, best_dice = rule, dice
    if normals and all(math.isfinite(image.presence) for image in (*tumours, *normals)):
        best, best_dice = _gate(best, tumours, normals, max_false_positives)
        for filled_from in sorted({image.presence for image in tumours}):
            if filled_from < best.empty_below:
                continue
            rule = replace(best, filled_from=filled_from)
            dice = _dice(rule, tumours)
            is_allowed = _false_positives(rule, normals) <= max(
                max_false_positives, _false_positives(best, normals)
            )
            if is_allowed and _is_better(dice, best_dice):
                best, best_dice = rule, dice
    return best, best_dice


def _gate(
    rule: MaskRule,
    tumours: Sequence[MappedImage],
    normals: Sequence[MappedImage],
    max_false_positives: float,
) -> tuple[MaskRule, Scores]:
    """Return the rule with the lowest gate within the bound, and the Dice of the tumour images.

    A gate with a lower mean Dice than the default rule is not used; the false-positive share may
    then exceed the bound.
    """
    floor = min(_dice(MaskRule(), tumours).mean(), _dice(rule, tumours).mean())
    best, best_dice = rule, _dice(rule, tumours)
    # A level just above an image's probability empties the image's mask.
    levels = sorted({math.nextafter(image.presence, math.inf) for image in normals})
    for empty_below in (0.0, *levels):
        gated = replace(rule, empty_below=empty_below)
        dice = _dice(gated, tumours)
        if dice.mean() < floor:
            break
        best, best_dice = gated, dice
        if _false_positives(gated, normals) <= max_false_positives:
            break
    return best, best_dice


def _dice(rule: MaskRule, images: Sequence[MappedImage]) -> Scores:
    """Return the Dice (n,) of images that show a lesion."""
    scores = []
    for image in images:
        mask = rule(image.lesion, image.presence)
        overlap = 2 * np.count_nonzero(mask & image.target)
        scores.append(overlap / (np.count_nonzero(mask) + np.count_nonzero(image.target)))
    return np.array(scores)


def _false_positives(rule: MaskRule, normals: Sequence[MappedImage]) -> float:
    """Return the share of images without a lesion that get a mask."""
    return float(np.mean([rule(image.lesion, image.presence).any() for image in normals]))


def _is_better(dice: Scores, best: Scores) -> bool:
    """Return whether the mean gain exceeds its standard error."""
    gain = dice - best
    if len(gain) < 2:
        return bool(gain.mean() > 0)
    return bool(gain.mean() > gain.std(ddof=1) / math.sqrt(len(gain)))
