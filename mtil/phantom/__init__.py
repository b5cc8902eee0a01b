"""Synthetic ultrasound images in BUSI's layout for the demo, the tests and the benchmarks.

Speckle is physical: scatterers of random phase, with the local strength of the tissue, are blurred
by a beam and log-compressed. Tissue has layers, fibres and lobules of fat. Lesions of both classes
have equal distributions of size, place and contrast. The classes differ in margin, rim and in
shadow or enhancement below the lesion, but no sign is present in all lesions of a class. Marks have
equal frequency in all classes. Patients may have several views, which are no near-copies.
Near-copies can be added and are listed in a file.
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
