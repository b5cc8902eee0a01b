"""Lesion masks from the values of a mask file."""

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Mask = npt.NDArray[np.bool_]
Kind = Literal["plain", "soft", "numbered"]

MAX_NUMBER = 16
"""Largest value of a lossless mask read as lesion numbers instead of brightness."""
_NEIGHBOURS = np.ones((3, 3), np.bool_)


class MaskReading(NamedTuple):
    """A boolean mask and the kind of values in its file."""

    mask: Mask
    kind: Kind
    """`plain`: two values, lesion and background. `soft`: values in between. `numbered`: small
    numbers that identify lesions."""


def find_lesion(
    levels: npt.NDArray[Any], *, lossy: bool = False, inverted: bool = False
) -> MaskReading:
    """Return the lesion pixels of a mask.

    - Two values: the brighter value is lesion. A single value is lesion unless 0.
    - More values, integers up to `MAX_NUMBER` in a lossless file: every value but 0 is lesion.
    - More values otherwise: lesion pixels are at least half as bright as the brightest pixel. In a
      lossless file, a lesion drawn darker as a whole is cut at half of its own brightness.

    Args:
        levels: brightness, (h, w), non-negative.
        lossy: whether the format of the file alters values.
        inverted: whether the lesion is the darker part.
    """
    low, high = float(levels.min()), float(levels.max())
    num_extreme = np.count_nonzero(levels == low) + np.count_nonzero(levels == high)
    if low == high or num_extreme == levels.size:
        lesion = levels > (low if low < high else 0)
        return MaskReading(~lesion if inverted else lesion, "plain")
    # Shift a background above black to 0: half of the maximum would count the background as lesion.
    if low > 0 and high <= 2 * low + 1:
        levels, high = levels - levels.min(), high - low
    lesion = levels > 0
    if high <= MAX_NUMBER and not lossy and levels.dtype.kind in "iu":
        return MaskReading(~lesion if inverted else lesion, "numbered")
    # Blurring, resizing and JPEG leave values in between; half of the maximum keeps the area.
    half = high / 2
    bright = np.asarray(levels >= half)
    if inverted:
        return MaskReading(~bright, "soft")
    return MaskReading(bright if lossy else bright | _darker_lesions(levels, lesion), "soft")


def split_colours(bands: npt.NDArray[Any], colour: str) -> tuple[Mask, Mask]:
    """Return two masks: the pixels of a colour, and the pixels of the opposite colour.

    Args:
        bands: (h, w) or (h, w, 3), non-negative.
        colour: `red` or `green`.
    """
    if bands.ndim == 2:
        no_pixel = np.zeros(bands.shape, np.bool_)
        return no_pixel, no_pixel
    red, green = bands[..., 0].astype(np.int32), bands[..., 1].astype(np.int32)
    # A colour must lead by half of the brightest band: JPEG noise shifts colours a little.
    lead, min_lead = red - green, bands.max(axis=2) / 2
    is_red, is_green = (lead > 0) & (lead >= min_lead), (lead < 0) & (-lead >= min_lead)
    return (is_red, is_green) if colour == "red" else (is_green, is_red)


def _darker_lesions(levels: npt.NDArray[Any], lesion: Mask) -> Mask:
    """Return lesions with a maximum of a quarter to half of the whole mask's maximum, (h, w)."""
    high = float(levels.max())
    labels, num_lesions = ndimage.label(lesion, _NEIGHBOURS)
    brightest = np.concatenate(
        [[0.0], ndimage.maximum(levels, labels, np.arange(1, num_lesions + 1))]
    )
    darker = (brightest >= high / 4) & (brightest < high / 2)
    if not darker.any():
        return np.zeros_like(lesion)
    # Lesion numbers spread over all grays have a uniform interior; residue of resampling beside a
    # lesion has none and is left out.
    own_high = brightest[labels]
    interior = ndimage.binary_erosion(darker[labels] & (levels == own_high), _NEIGHBOURS)
    uniform = np.zeros(num_lesions + 1, np.bool_)
    uniform[labels[interior]] = True
    return np.asarray(uniform[labels] & (levels >= own_high / 2))
