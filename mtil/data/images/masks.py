"""Values of a mask file to lesion or not."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Kind = Literal["plain", "soft", "numbered"]

MAX_NUMBER = 16
"""A lossless mask whose values go no further numbers its lesions."""
_AROUND = np.ones((3, 3), np.bool_)


class MaskReading(NamedTuple):
    """A mask and what its file was like."""

    mask: Mask
    kind: Kind
    """`plain` with lesion and background only; `soft` with values in between; `numbered` where
    small numbers tell lesions apart."""


def read_levels(
    levels: npt.NDArray[Any], *, lossy: bool = False, inverted: bool = False
) -> MaskReading:
    """Say which pixels of a mask are lesion.

    Of two values the brighter is lesion; a single value is lesion unless it is 0. More values are
    left by blurring, resizing and JPEG: lesion is what is at least half as bright as the brightest.
    A lesion that is drawn darker than that as a whole is measured by its own brightness. Where all
    values are small numbers, each number but 0 is lesion.

    Args:
        levels: (h, w) brightness, not negative.
        lossy: whether the file's format alters values.
        inverted: whether the lesion is the darker part.
    """
    low, most = float(levels.min()), float(levels.max())
    num_extreme = np.count_nonzero(levels == low) + np.count_nonzero(levels == most)
    if low == most or num_extreme == levels.size:
        lesion = levels > (low if low < most else 0)
        return MaskReading(~lesion if inverted else lesion, "plain")
    if low > 0 and most <= 2 * low + 1:  # a background that is not black
        levels, most = levels - levels.min(), most - low
    lesion = levels > 0
    if most <= MAX_NUMBER and not lossy and levels.dtype.kind in "iu":
        return MaskReading(~lesion if inverted else lesion, "numbered")
    half = most / 2
    bright = np.asarray(levels >= half)
    if inverted:
        return MaskReading(~bright, "soft")
    return MaskReading(bright if lossy else bright | _darker_lesions(levels, lesion), "soft")


def of_colour(bands: npt.NDArray[Any], colour: str) -> tuple[Mask, Mask]:
    """Say which pixels are of one of the colours red and green, and which of the other.

    Args:
        bands: (h, w) or (h, w, 3), not negative.
        colour: `red` or `green`.
    """
    if bands.ndim == 2:
        neither = np.zeros(bands.shape, np.bool_)
        return neither, neither
    red, green = bands[..., 0].astype(np.int32), bands[..., 1].astype(np.int32)
    lead, least = red - green, bands.max(axis=2) / 2  # noise of JPEG has no colour
    is_red, is_green = (lead > 0) & (lead >= least), (lead < 0) & (-lead >= least)
    return (is_red, is_green) if colour == "red" else (is_green, is_red)


def _darker_lesions(levels: npt.NDArray[Any], lesion: Mask) -> Mask:
    """Return the lesions that stay below half of the brightest value as a whole.

    They have an even inside, as numbers of lesions that are spread over all grays have; what
    resampling leaves beside a lesion has not.
    """
    most = float(levels.max())
    labels, number = ndimage.label(lesion, _AROUND)
    brightest = np.concatenate([[0.0], ndimage.maximum(levels, labels, np.arange(1, number + 1))])
    darker = (brightest >= most / 4) & (brightest < most / 2)
    if not darker.any():
        return np.zeros_like(lesion)
    own = brightest[labels]
    inside = ndimage.binary_erosion(darker[labels] & (levels == own), _AROUND)
    even = np.zeros(number + 1, np.bool_)
    even[labels[inside]] = True
    return np.asarray(even[labels] & (levels >= own / 2))
