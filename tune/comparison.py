"""Compare test results of a winner with the default: differences and intervals. No Ray."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtil.metrics import Results, paired_difference, summarise

COMPARED_FIGURES = ("dice", "auc", "f1", "hd95")
"""Figures compared seed by seed and named in the verdict."""
_LOWER_IS_BETTER = {"hd95"}


def compare_with_default(
    name: str, winner: Sequence[Results], default: Sequence[Results]
) -> dict[str, Any]:
    """Return the comparison of a winner with the default, by seed and over all seeds."""
    difference = paired_difference(pool_seeds(winner), pool_seeds(default))
    # A single resample is enough, since differences by seed are reported without intervals.
    by_seed = [
        paired_difference(winner_rows, default_rows, resamples=1)
        for winner_rows, default_rows in zip(winner, default, strict=True)
    ]
    return {
        "name": name,
        "metrics": summarise(pool_seeds(winner)),
        "difference": difference,
        "difference_by_seed": {
            figure: [seed_difference[figure]["value"] for seed_difference in by_seed]
            for figure in COMPARED_FIGURES
        },
        "verdict": describe_verdict(name, difference),
    }


def pool_seeds(seeds: Sequence[Results]) -> Results:
    """Concatenate the results of several seeds, with the seed added to the sample ids.

    The rows of an image keep a common group: intervals are over groups.
    """
    return Results.concatenate(
        [
            dataclasses.replace(rows, sample_id=np.char.add(rows.sample_id, f" (seed {index})"))
            for index, rows in enumerate(seeds)
        ]
    )


def describe_verdict(name: str, difference: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return a sentence with the figures whose interval excludes 0."""
    better: list[str] = []
    worse: list[str] = []
    for figure in COMPARED_FIGURES:
        low, high = difference[figure]["low"], difference[figure]["high"]
        rising, falling = (worse, better) if figure in _LOWER_IS_BETTER else (better, worse)
        if low is not None and low > 0:
            rising.append(figure)
        elif high is not None and high < 0:
            falling.append(figure)
    if not better and not worse:
        return f"{name} shows no difference from the default: all intervals contain 0."
    parts = [
        f"{word} in {' and '.join(figures)}"
        for word, figures in (("better", better), ("worse", worse))
        if figures
    ]
    return f"{name} is {' and '.join(parts)} than the default."
