"""Random streams of a phantom: shared by a patient's views, and separate for each view."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RandomStreams:
    """Two random streams. A patient's only image has a single stream under both names."""

    patient: np.random.Generator
    """Stream for shared properties of a patient's views: tissue layers, lesions, scanner settings.
    """
    frame: np.random.Generator
    """Stream for properties of a view: place and angle of the probe, speckle, gain, marks."""

    @property
    def has_views(self) -> bool:
        """Whether the patient may have several views."""
        return self.patient is not self.frame


def create_streams(seed: int, patient: int, view: int | None) -> RandomStreams:
    """Return the random streams of an image.

    Args:
        seed: seed of the folder.
        patient: index of the patient.
        view: index of the view; None for a patient's only image.
    """
    # Draws from the patient's stream must never depend on values of the frame's stream. Otherwise
    # the views of a patient would show different tissue.
    shared = np.random.default_rng((seed, patient))
    if view is None:
        return RandomStreams(shared, shared)
    return RandomStreams(shared, np.random.default_rng((seed, patient, 4, view)))
