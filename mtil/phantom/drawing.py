"""Draw a synthetic image: tissue, lesions, scan and marks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.phantom.lesion import BENIGN_TRAITS, MALIGNANT_TRAITS, add_lesions
from mtil.phantom.marks import add_calipers, add_text
from mtil.phantom.scanner import scan_tissue
from mtil.phantom.streams import create_streams
from mtil.phantom.tissue import draw_tissue

BENIGN, MALIGNANT, NORMAL = range(3)
CLASS_PATTERN = (
    BENIGN,
    MALIGNANT,
    BENIGN,
    NORMAL,
    BENIGN,
    MALIGNANT,
    BENIGN,
    NORMAL,
    BENIGN,
    MALIGNANT,
)
"""Classes of ten consecutive patients: 50 % benign, 30 % malignant, 20 % normal."""
TEXT_SHARE, CALIPER_SHARE = 0.14, 0.10
"""Shares of images with marks, equal in all classes and about as in BUSI."""

_TRAITS = {BENIGN: BENIGN_TRAITS, MALIGNANT: MALIGNANT_TRAITS}


@dataclass(frozen=True)
class Phantom:
    """A synthetic image with masks."""

    label: int
    gray: npt.NDArray[np.uint8]
    """Image (h, w)."""
    masks: tuple[npt.NDArray[np.bool_], ...]
    """A mask (h, w) per lesion; a single empty mask without a lesion."""
    text: bool = False
    """Text is burnt in."""
    calipers: bool = False
    """Calipers are burnt in."""


def draw_phantom(
    seed: int, patient: int, image_size: int = 256, view: int | None = None
) -> Phantom:
    """Draw an image of a patient. Equal arguments give equal images.

    All views of a patient show the patient's tissue and lesions. The views differ in place, angle
    and section, and in speckle, gain and marks.

    Args:
        seed: 0 or more.
        patient: index of the patient, 0 or more; decides the class.
        image_size: typical side in pixels. Heights are 75 to 100 %, widths 85 to 125 % of
            `image_size`.
        view: index of the patient's view, from 0; None draws a patient's only image.
    """
    origin = create_streams(seed, patient, view)
    rng = origin.frame
    label = CLASS_PATTERN[patient % len(CLASS_PATTERN)]
    height = int(image_size * rng.uniform(0.75, 1.0))
    width = int(image_size * rng.uniform(0.85, 1.25))
    text, calipers = rng.random() < TEXT_SHARE, rng.random() < CALIPER_SHARE
    echo = draw_tissue(origin, height, width)
    masks: tuple[npt.NDArray[np.bool_], ...] = (np.zeros((height, width), np.bool_),)
    if label != NORMAL:
        masks = add_lesions(origin, echo, _TRAITS[label])
    gray = scan_tissue(origin, echo)
    # Marks come after the scan: text and calipers have no speckle.
    if calipers:
        gray = add_calipers(rng, gray, masks)
    if text:
        gray = add_text(rng, gray)
    return Phantom(label, gray, masks, text, calipers)
