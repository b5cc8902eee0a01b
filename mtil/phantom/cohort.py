"""Whose images a folder holds: patients, their views, and how they are numbered."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.phantom.drawing import PATTERN

_Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cohort:
    """The originals of a folder, in the order in which they are drawn."""

    patients: _Numbers
    """(n,), from 0 and in order."""
    views: _Numbers | None
    """Which of its patient's images each is (n,), from 0; None if patients have one each."""
    labels: npt.NDArray[np.int8]
    """Classes (n,), those of the patients."""
    numbers: _Numbers
    """Which of its class each is (n,), from 1."""


def cohort(num_images: int, seed: int, max_views: int) -> Cohort:
    """Give every patient 1 to `max_views` images, as many of each number; the last may have fewer.

    More images only add to fewer.
    """
    rng = np.random.default_rng((seed, 0, 3))
    num_views = rng.integers(1, max_views, num_images, endpoint=True)
    starts = np.cumsum(num_views) - num_views
    indices = np.arange(num_images)
    patients = np.searchsorted(starts, indices, side="right") - 1
    labels = np.array(PATTERN, np.int8)[patients % len(PATTERN)]
    numbers = np.zeros(num_images, np.int32)
    for label in set(PATTERN):
        of_class = labels == label
        numbers[of_class] = np.arange(1, of_class.sum() + 1)
    views = (indices - starts[patients]).astype(np.int32) if max_views > 1 else None
    return Cohort(patients.astype(np.int32), views, labels, numbers)
