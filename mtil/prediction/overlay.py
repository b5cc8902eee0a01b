"""Draw a predicted outline on its image."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import binary_erosion, find_objects

from mtil.data.images.read import Gray, Mask

COLOUR = (255, 214, 0)
"""Yellow: absent from gray images, and visible on black and on white."""

_SIDE_PER_PIXEL = 256
"""Image side in pixels for each pixel of outline thickness."""


def extract_outline(mask: Mask) -> Mask:
    """Return the inner edge of a mask (h, w), thicker in larger images."""
    edge = np.zeros_like(mask)
    boxes = find_objects(mask.astype(np.uint8))
    if boxes:
        thickness = max(1, round(min(mask.shape) / _SIDE_PER_PIXEL))
        lesion = mask[boxes[0]]
        edge[boxes[0]] = lesion & ~binary_erosion(lesion, iterations=thickness)
    return edge


def draw_outline(gray: Gray, mask: Mask) -> npt.NDArray[np.uint8]:
    """Return a colour image (h, w, 3) with the outline of the mask in `COLOUR`."""
    picture = np.repeat(gray[:, :, None], 3, axis=2)
    picture[extract_outline(mask)] = COLOUR
    return picture


def encode_colour_png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Encode a colour image (h, w, 3) as PNG."""
    sink = io.BytesIO()
    # Light compression: speed matters more than file size here.
    Image.fromarray(picture).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
