"""Confidence intervals by a bootstrap over groups: images of a patient are drawn together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics.weighted import Array

Statistics = Callable[[Array], dict[str, Array]]
"""A function from weights (resamples, n) to figures (resamples,) by name; NaN if undefined."""

# Not a tuning knob: the chunk size determines the order of the random numbers and all intervals.
CHUNK = 250
"""Number of resamples computed at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with a 95 % percentile interval; NaN if undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return `value`, `low` and `high`, with None for NaN."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}


def finite(value: float) -> float | None:
    """Return the number as a JSON value: None for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def resample_weights(groups: npt.ArrayLike, *, resamples: int, seed: int) -> Iterator[Array]:
    """Draw groups with replacement and yield the number of draws of every image.

    A resample draws as many groups as the table has.

    Args:
        groups: (n,), the group of every image.
        resamples: number of resamples.
        seed: random seed; equal groups and seed give equal weights.

    Yields:
        Weights (up to `RESAMPLES_PER_CHUNK`, n), with `resamples` rows in total.
    """
    names, group_index = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if len(names) else 0, CHUNK):
        rows = min(CHUNK, resamples - start)
        draws = rng.integers(len(names), size=(rows, len(names)))
        # Offset the group numbers by row, so that a single `bincount` counts all resamples.
        draws += len(names) * np.arange(rows)[:, None]
        counts = np.bincount(draws.ravel(), minlength=rows * len(names))
        yield counts.reshape(rows, len(names))[:, group_index].astype(np.float64)


def bootstrap(
    groups: npt.ArrayLike, statistics: Statistics, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return figures with 95 % intervals.

    The interval of a figure ignores resamples with an undefined figure. With fewer than two groups
    the bounds are NaN.

    Args:
        groups: (n,), the group of every image.
        statistics: computes the figures from weights.
        resamples: number of resamples.
        seed: random seed.

    Raises:
        DataError: if `resamples` is not positive.
    """
    if resamples < 1:
        raise DataError(f"A bootstrap needs `resamples >= 1`, but got {resamples}; 2000 is usual.")
    groups = np.asarray(groups)
    values = statistics(np.ones((1, len(groups))))
    if len(np.unique(groups)) < 2:
        return {name: Interval(float(value[0]), np.nan, np.nan) for name, value in values.items()}
    chunks = [statistics(w) for w in resample_weights(groups, resamples=resamples, seed=seed)]
    return {
        name: _interval(float(value[0]), np.concatenate([chunk[name] for chunk in chunks]))
        for name, value in values.items()
    }


def difference(a: Statistics, b: Statistics) -> Statistics:
    """Return the paired statistics `a - b`, both computed on the same resample."""

    def statistics(weights: Array) -> dict[str, Array]:
        figures_a, figures_b = a(weights), b(weights)
        return {name: figures_a[name] - figures_b[name] for name in figures_a}

    return statistics


def _interval(value: float, samples: Array) -> Interval:
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0:
        return Interval(value, np.nan, np.nan)
    low, high = np.percentile(defined, (2.5, 97.5))
    return Interval(value, float(low), float(high))
