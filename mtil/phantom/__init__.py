"""Synthetic ultrasound images in BUSI's layout for the demo, the tests and the benchmarks.

Speckle is physical: scatterers of random phase, with the local strength of the tissue, are blurred
by a beam and log-compressed. Tissue has layers, fibres and lobules of fat. Lesions of both classes
have equal distributions of size, place and contrast. The classes differ in margin, rim and in
shadow or enhancement below the lesion, but no sign is present in all lesions of a class. Marks have
equal frequency in all classes. Patients may have several views, which are no near-copies.
Near-copies can be added and are listed in a file.
"""

from mtil.phantom.drawing import BENIGN, MALIGNANT, NORMAL, Phantom, draw_phantom
from mtil.phantom.duplicates import NEAR_COPY_KINDS, make_near_copy
from mtil.phantom.folder import DUPLICATES_FILE, MIN_IMAGE_SIZE, PATIENTS_FILE, write_phantoms

__all__ = [
    "BENIGN",
    "DUPLICATES_FILE",
    "MALIGNANT",
    "MIN_IMAGE_SIZE",
    "NEAR_COPY_KINDS",
    "NORMAL",
    "PATIENTS_FILE",
    "Phantom",
    "draw_phantom",
    "make_near_copy",
    "write_phantoms",
]
