"""One synthetic image: tissue, lesions, the scan of both, and marks on it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.phantom.lesion import BENIGN_TRAITS, MALIGNANT_TRAITS, add_lesions
from mtil.phantom.marks import add_calipers, add_text
from mtil.phantom.scanner import scan
from mtil.phantom.streams import streams
from mtil.phantom.tissue import tissue

BENIGN, MALIGNANT, NORMAL = range(3)
PATTERN = (BENIGN, MALIGNANT, BENIGN, NORMAL, BENIGN, MALIGNANT, BENIGN, NORMAL, BENIGN, MALIGNANT)
"""Classes of every ten patients: 50, 30 and 20 per cent."""
TEXT_SHARE, CALIPER_SHARE = 0.14, 0.10
"""Shares of images with marks, in every class; about those of BUSI."""

_TRAITS = {BENIGN: BENIGN_TRAITS, MALIGNANT: MALIGNANT_TRAITS}


@dataclass(frozen=True)
class Phantom:
    """One synthetic image."""

    label: int
    gray: npt.NDArray[np.uint8]
    masks: tuple[npt.NDArray[np.bool_], ...]
    """One per lesion; a black one where there is none."""
    text: bool = False
    calipers: bool = False


def draw(seed: int, patient: int, image_size: int = 256, view: int | None = None) -> Phantom:
    """Draw an image of a patient; it depends on the arguments alone.

    Views of a patient show the same tissue and lesions in another place, at another angle and in
    another section, with speckle, gain and marks of their own.

    Args:
        seed: not negative.
        patient: not negative; it fixes the class.
        image_size: typical side of an image in pixels; sizes vary around it.
        view: which of the patient's views, from 0; None draws the only image of a patient.
    """
    origin = streams(seed, patient, view)
    rng = origin.frame
    label = PATTERN[patient % len(PATTERN)]
    height = int(image_size * rng.uniform(0.75, 1.0))
    width = int(image_size * rng.uniform(0.85, 1.25))
    text, calipers = rng.random() < TEXT_SHARE, rng.random() < CALIPER_SHARE
    echo = tissue(origin, height, width)
    masks: tuple[npt.NDArray[np.bool_], ...] = (np.zeros((height, width), np.bool_),)
    if label != NORMAL:
        masks = add_lesions(origin, echo, _TRAITS[label])
    gray = scan(origin, echo)
    if calipers:
        gray = add_calipers(rng, gray, masks)
    if text:
        gray = add_text(rng, gray)
    return Phantom(label, gray, masks, text, calipers)
