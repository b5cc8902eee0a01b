"""Where a phantom's random numbers come from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Streams:
    """Two sources of random numbers; for an image that is no view of a patient, they are one."""

    patient: np.random.Generator
    """For what the views of a patient share: layers of tissue, lesions, the scanner's settings."""
    frame: np.random.Generator
    """For what each view has of its own: place and angle of the probe, speckle, gain, marks."""

    @property
    def of_a_view(self) -> bool:
        """Whether there may be other views of the patient."""
        return self.patient is not self.frame


def streams(seed: int, patient: int, view: int | None) -> Streams:
    """Return the streams of an image; None is for a patient's only one.

    Whatever is drawn from the patient's stream must not depend on what the frame's gives: it would
    no longer be alike in all views.
    """
    one = np.random.default_rng((seed, patient))
    if view is None:
        return Streams(one, one)
    return Streams(one, np.random.default_rng((seed, patient, 4, view)))
