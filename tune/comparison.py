"""A winner's test rows against the default's: a difference, and whether it may be luck. No Ray."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtil.metrics import Results, paired_difference, summarise

SHOWN = ("dice", "auc", "f1", "hd95")
"""Figures that are compared seed by seed as well, and told of in words."""
_LESS_IS_BETTER = {"hd95"}


def compared(name: str, winner: Sequence[Results], default: Sequence[Results]) -> dict[str, Any]:
    """Return how a winner's test rows compare with the default's, seed by seed and together."""
    difference = paired_difference(pooled(winner), pooled(default))
    by_seed = [
        paired_difference(one, other, resamples=1)
        for one, other in zip(winner, default, strict=True)
    ]
    return {
        "name": name,
        "metrics": summarise(pooled(winner)),
        "difference": difference,
        "difference_by_seed": {
            figure: [one[figure]["value"] for one in by_seed] for figure in SHOWN
        },
        "verdict": verdict(name, difference),
    }


def pooled(seeds: Sequence[Results]) -> Results:
    """Put the rows of several seeds together; an image's rows share its group."""
    return Results.concatenate(
        [
            dataclasses.replace(rows, sample_id=np.char.add(rows.sample_id, f" (seed {index})"))
            for index, rows in enumerate(seeds)
        ]
    )


def verdict(name: str, difference: Mapping[str, Mapping[str, float | None]]) -> str:
    """Say in words what the intervals of the shown figures allow to say."""
    better: list[str] = []
    worse: list[str] = []
    for figure in SHOWN:
        low, high = difference[figure]["low"], difference[figure]["high"]
        more, less = (worse, better) if figure in _LESS_IS_BETTER else (better, worse)
        if low is not None and low > 0:
            more.append(figure)
        elif high is not None and high < 0:
            less.append(figure)
    if not better and not worse:
        return f"{name} cannot be told from the default: all intervals hold 0."
    parts = [
        f"{what} in {' and '.join(figures)}"
        for what, figures in (("better", better), ("worse", worse))
        if figures
    ]
    return f"{name} is {' and '.join(parts)} than the default."
