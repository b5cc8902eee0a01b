"""The error budget: in which images Dice is lost, and what other decisions would give."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from mtil.metrics.bootstrap import bootstrap
from mtil.metrics.results import Results
from mtil.metrics.weighted import Array, weighted_mean

BANDS = (0.0, 0.01, 0.5, 0.7, 1.0)
"""Bounds of Dice. Below the first inner bound a lesion is missed altogether."""
_QUARTERS = 4


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MapResults:
    """Fields of `MapScores`, a value per image, in the order of a table of results."""

    peak_inside: npt.NDArray[np.bool_]
    best_dice: npt.NDArray[np.float64]
    half_peak_dice: npt.NDArray[np.float64]
    half_dice: npt.NDArray[np.float64]
    half_empty: npt.NDArray[np.bool_]


def budget_errors(
    results: Results, maps: MapResults, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Return where Dice is lost on the tumour images.

    Args:
        results: a row per image.
        maps: scores of the probability maps of the same images, in the same order.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Returns:
        * `bands`: by range of Dice, number of images and share of all Dice that is lost;
        * `size_quarters`: mean Dice by quarter of lesion size, smallest lesions first;
        * `normal_images`: share with an empty mask, by the run's decision and by one half;
        * `peak_inside`: share of images with the highest probability inside the lesion;
        * `decisions`: mean Dice under other decisions, and `gain`, the paired difference to the
          decision of the run, with 95 % intervals over groups: `half` (the plain threshold of one
          half), `best_threshold` (the best threshold of each image, a ceiling), `half_peak` (half
          of each image's highest probability) and `half_peak_if_empty` (the same, for images
          without a predicted pixel only).
    """
    tumour = results.tumour
    table = results.select(tumour)
    lost = 1 - table.dice
    total = lost.sum()
    bands = []
    for low, high in pairwise(BANDS):
        is_last = high == BANDS[-1]
        in_band = (table.dice >= low) & ((table.dice < high) | is_last)
        bands.append(
            {
                "from": low,
                "to": high,
                "images": int(in_band.sum()),
                "share_of_loss": float(lost[in_band].sum() / total) if total > 0 else None,
            }
        )
    half_peak = maps.half_peak_dice[tumour]
    is_empty = table.tp + table.fp == 0
    decisions = {
        "half": maps.half_dice[tumour],
        "best_threshold": maps.best_dice[tumour],
        "half_peak": half_peak,
        "half_peak_if_empty": np.where(is_empty, half_peak, table.dice),
    }

    def gains(weights: Array) -> dict[str, Array]:
        return {name: weighted_mean(dice - table.dice, weights) for name, dice in decisions.items()}

    intervals = bootstrap(table.group, gains, resamples=resamples, seed=seed)
    order = np.argsort(table.tp + table.fn, kind="stable")
    return {
        "num_images": len(table),
        "bands": bands,
        "size_quarters": [_mean(table.dice[rows]) for rows in np.array_split(order, _QUARTERS)],
        "peak_inside": _mean(maps.peak_inside[tumour]),
        "empty_masks": _mean(is_empty),
        "normal_images": {
            "count": int((~tumour).sum()),
            "empty_share": _mean((results.tp + results.fp == 0)[~tumour]),
            "empty_share_half": _mean(maps.half_empty[~tumour]),
        },
        "decisions": {
            name: {"dice": _mean(dice), "gain": intervals[name].as_json()}
            for name, dice in decisions.items()
        },
    }


def _mean(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float | None:
    return float(np.mean(values)) if len(values) else None
