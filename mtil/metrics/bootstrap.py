"""Intervals by a bootstrap over groups: images of one patient come and go together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics.weighted import Array

Statistics = Callable[[Array], dict[str, Array]]
"""From weights (resamples, n) to figures by name, each (resamples,), NaN where undefined."""

CHUNK = 250
"""Resamples that are worked on at once; part of the definition, as it orders random numbers."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95 % percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """Return the three numbers, None in place of NaN."""
        return {name: finite(getattr(self, name)) for name in ("value", "low", "high")}


def finite(value: float) -> float | None:
    """Return a number that JSON can hold: None in place of NaN."""
    return float(value) if np.isfinite(value) else None


def resample_weights(groups: npt.ArrayLike, *, resamples: int, seed: int) -> Iterator[Array]:
    """Draw groups with replacement, as many as there are, and yield how often each image came.

    Args:
        groups: (n,), each image's group.
        resamples: how many to draw.
        seed: of the random numbers; equal groups and seed give equal weights.

    Yields:
        weights (up to `CHUNK`, n), until there are `resamples` rows.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng(seed)
    for start in range(0, resamples if len(names) else 0, CHUNK):
        rows = min(CHUNK, resamples - start)
        drawn = rng.integers(len(names), size=(rows, len(names)))
        drawn += len(names) * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * len(names))
        yield times.reshape(rows, len(names))[:, member].astype(np.float64)


def bootstrap(
    groups: npt.ArrayLike, statistics: Statistics, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """Return figures with their 95 % intervals.

    Resamples in which a figure is undefined are left out of its interval. With fewer than two
    groups there is no interval.

    Args:
        groups: (n,), each image's group.
        statistics: computes the figures from weights.
        resamples: how many to draw.
        seed: of the random numbers.

    Raises:
        DataError: `resamples` is not positive.
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
    """Return statistics `a - b`, both of the same resample: what makes a comparison paired."""

    def statistics(weights: Array) -> dict[str, Array]:
        of_a, of_b = a(weights), b(weights)
        return {name: of_a[name] - of_b[name] for name in of_a}

    return statistics


def _interval(value: float, samples: Array) -> Interval:
    defined = samples[np.isfinite(samples)]
    if len(defined) == 0:
        return Interval(value, np.nan, np.nan)
    low, high = np.percentile(defined, (2.5, 97.5))
    return Interval(value, float(low), float(high))
