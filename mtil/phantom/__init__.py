"""Synthetic ultrasound images in BUSI's layout: for the demo, the tests and the benchmarks.

Scatterers of random phase, as strong as the tissue there, are blurred by a beam and log-compressed,
which gives real speckle. Tissue has layers, fibres and lobules of fat; lesions of both classes have
the same sizes, places and contrasts, and differ in margin, rim and in what lies below them, though
none of that always. Marks are alike in all classes. Patients may have several views, which are
no near-copies. Near-duplicates can be planted and are listed.
"""

from mtil.phantom.drawing import BENIGN, MALIGNANT, NORMAL, Phantom, draw
from mtil.phantom.duplicates import KINDS, duplicate
from mtil.phantom.folder import DUPLICATES, MIN_IMAGE_SIZE, PATIENTS, write

__all__ = [
    "BENIGN",
    "DUPLICATES",
    "KINDS",
    "MALIGNANT",
    "MIN_IMAGE_SIZE",
    "NORMAL",
    "PATIENTS",
    "Phantom",
    "draw",
    "duplicate",
    "write",
]
