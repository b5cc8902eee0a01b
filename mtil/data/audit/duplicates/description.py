"""What is kept of an image to find its near-duplicates: a small picture and its hashes.

A window's hash is the signs of its lowest cosine coefficients (a pHash). A crop moves every edge
by itself, so each image is hashed over windows whose edges lie at three offsets: of two crops of
one image, some window of one shows what some window of the other shows.
"""

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from mtil.data.audit.duplicates import tissue

VERSION = 2
"""Of descriptions: 1 described the whole image, 2 describes the tissue. `describe` makes 2 of the
thumb of 1, less precisely than of the image; where tissue fills the image, both are the same."""
SIDE = 64
"""Side of a thumb: speckle is averaged away, a lesion's outline is not."""
OFFSETS = (0.0, 0.025, 0.075)
"""Where a window's edge may lie, as shares of the side. Their differences are all multiples of
0.025 up to 0.075, so crops up to 8 per cent a side meet within half a step."""
SPANS = tuple(itertools.product(OFFSETS, OFFSETS))
"""Windows along an axis: what is left off at the start and at the end."""
NUM_HASHES = len(SPANS) ** 2
NUM_COEFFICIENTS = 8
"""Cosines along an axis; finer ones are lost to a shift of half a step."""
MIRRORED_WINDOWS = (
    np.arange(NUM_HASHES)
    .reshape(len(SPANS), len(SPANS))[:, [SPANS.index((end, start)) for start, end in SPANS]]
    .ravel()
)
"""(NUM_HASHES,) which window of an image is which of its mirror image, left to right."""
MIRRORED_BITS = np.uint64(0xAAAA_AAAA_AAAA_AAAA)
"""Bits that a mirror image has otherwise: every second cosine across changes its sign."""
NOISE = 2.0
"""Gray levels of local contrast that are taken for noise, which must not be blown up."""
MIN_STRUCTURE = 0.25
"""Least deviation of an evened-out thumb (a textured one has about 0.9): two thirds of a gray
level. Below it there is nothing to compare."""
_LOCAL = 8.0
"""Radius, in thumb pixels, over which brightness and contrast are evened out: an eighth of the
side, wider than most lesions' rims and narrower than the layers of tissue."""

_Float = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Description:
    """A fixed-size summary of an image."""

    hashes: npt.NDArray[np.uint64]
    """(NUM_HASHES,), by vertical, then horizontal window; all zero if there is nothing to see."""
    thumb: npt.NDArray[np.uint8]
    """(SIDE, SIDE)"""


def describe(gray: npt.NDArray[np.uint8]) -> Description:
    """Describe an image (h, w) of any size.

    Only tissue is described: `tissue.find_box` cuts off the rest of a screen. An image without
    tissue has no hashes, and a thumb of the whole image.

    The result depends on the image's pixels alone. A phantom of 128 pixels takes about 0.6 ms, an
    image of BUSI 2 ms.
    """
    box = tissue.find_box(gray)
    if box is None:
        return Description(np.zeros(NUM_HASHES, np.uint64), _thumb(gray))
    top, left, bottom, right = box
    thumb = tissue.without_blank(_thumb(gray[top:bottom, left:right]))
    return Description(_hashes(thumb), thumb)


def _thumb(gray: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    small = Image.fromarray(gray).resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3)
    return np.asarray(small, dtype=np.uint8)


def flatten(thumbs: npt.NDArray[np.uint8]) -> _Float:
    """Even out the brightness and contrast of thumbs (n, SIDE, SIDE): equal for any gain.

    What is left are outlines and textures, which images of different tissue do not share, without
    the decay with depth, which all do.
    """
    blur = _blur()
    image = thumbs.astype(np.float32)
    image -= blur @ image @ blur.T
    contrast = np.sqrt(blur @ image**2 @ blur.T)
    return np.asarray(image / (contrast + NOISE), dtype=np.float32)


def mirrored(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the hashes (n, NUM_HASHES) of the images' mirror images, left to right."""
    flipped = hashes[:, MIRRORED_WINDOWS]
    flipped[hashes.any(axis=1)] ^= MIRRORED_BITS
    return flipped


@cache
def _blur() -> _Float:
    """Return the matrix (SIDE, SIDE) that blurs along an axis."""
    kernel = ndimage.gaussian_filter1d(np.eye(SIDE), _LOCAL, axis=0, truncate=2.0)
    return np.asarray(kernel, dtype=np.float32)


def _hashes(thumb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    flat = flatten(thumb[None])[0]
    if flat.std() < MIN_STRUCTURE:
        return np.zeros(NUM_HASHES, np.uint64)
    basis = _cosines()
    spans, size = len(SPANS), NUM_COEFFICIENTS
    coefficients = (basis @ flat @ basis.T).reshape(spans, size, spans, size)
    return _packed(coefficients.swapaxes(1, 2).reshape(NUM_HASHES, size, size) > 0)


def _packed(bits: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint64]:
    """Pack signs (..., 8, 8) into integers (...); the mean's place is always 0."""
    bits = bits.copy()
    bits[..., 0, 0] = False
    packed = np.packbits(bits.reshape(*bits.shape[:-2], -1), axis=-1, bitorder="little")
    return packed.view(np.dtype("<u8"))[..., 0].astype(np.uint64)


@cache
def _cosines() -> _Float:
    """Return each span's cosines (len(SPANS) * NUM_COEFFICIENTS, SIDE), each of zero sum."""
    rows = []
    pixel = np.arange(SIDE)
    for start, end in SPANS:
        low, high = SIDE * start, SIDE * (1 - end)
        cover = (np.minimum(pixel + 1, high) - np.maximum(pixel, low)).clip(0, 1)
        position = (pixel + 0.5 - low) / (high - low)
        for frequency in range(NUM_COEFFICIENTS):
            wave = cover * np.cos(np.pi * frequency * position)
            rows.append(wave - cover * (wave.sum() / cover.sum()) if frequency else cover)
    return np.array(rows, np.float32)
