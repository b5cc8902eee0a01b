"""Patients, views, classes and numbers of the images in a folder."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.phantom.drawing import CLASS_PATTERN

_Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cohort:
    """Arrays over the n original images of a folder, in drawing order."""

    patients: _Numbers
    """Patient of each image (n,), ascending from 0."""
    views: _Numbers | None
    """View of each image within the patient (n,), from 0; None with a single image per patient."""
    labels: npt.NDArray[np.int8]
    """Class of each image (n,), the patient's class."""
    numbers: _Numbers
    """Number of each image within the class (n,), from 1."""


def draw_cohort(num_images: int, seed: int, max_views: int) -> Cohort:
    """Draw the number of views of every patient uniformly from 1 to `max_views`.

    The last patient may have fewer views. A larger `num_images` only appends images.
    """
    rng = np.random.default_rng((seed, 0, 3))
    num_views = rng.integers(1, max_views, num_images, endpoint=True)
    starts = np.cumsum(num_views) - num_views
    indices = np.arange(num_images)
    patients = np.searchsorted(starts, indices, side="right") - 1
    labels = np.array(CLASS_PATTERN, np.int8)[patients % len(CLASS_PATTERN)]
    numbers = np.zeros(num_images, np.int32)
    for label in set(CLASS_PATTERN):
        of_class = labels == label
        numbers[of_class] = np.arange(1, of_class.sum() + 1)
    views = (indices - starts[patients]).astype(np.int32) if max_views > 1 else None
    return Cohort(patients.astype(np.int32), views, labels, numbers)
