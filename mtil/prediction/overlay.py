"""A predicted outline drawn on the image it belongs to."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion, find_objects

from mtil.data.images.read import Gray, Mask

COLOUR = (255, 214, 0)
"""Yellow: nothing in a gray image has it, and it shows on black and on white."""

_SIDE_PER_PIXEL = 256


def outline(mask: Mask) -> Mask:
    """Return the inner edge of a mask (h, w), thicker in larger images; empty if the mask is."""
    edge = np.zeros_like(mask)
    box = find_objects(mask.astype(np.uint8))
    if box:
        thickness = max(1, round(min(mask.shape) / _SIDE_PER_PIXEL))
        lesion = mask[box[0]]
        edge[box[0]] = lesion & ~binary_erosion(lesion, iterations=thickness)
    return edge


def draw(gray: Gray, mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the image in colour (h, w, 3), with the mask's outline in `COLOUR`."""
    picture = np.repeat(gray[:, :, None], 3, axis=2)
    picture[outline(mask)] = COLOUR
    return picture


def encode_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return a PNG of a colour picture (h, w, 3), packed lightly: speed is worth more here."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
