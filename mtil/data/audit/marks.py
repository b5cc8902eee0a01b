"""Signs of trouble in an image or a mask: burnt-in text and calipers, odd lesions.

Text and calipers tell a network who looked at what, not what is there: where one class has more of
them, they are a shortcut.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[slice, slice]
"""Rows and columns."""
Directions = tuple[tuple[int, int], ...]
"""Pixels down and to the right."""

SOFT_MASK, NUMBERED_MASK, STRAY_REGIONS = "soft_mask", "numbered_mask", "stray_regions"
NOTES: Mapping[str, str] = {
    SOFT_MASK: "have a mask of more than two levels, whose lesion is what is at least half as "
    "bright as its brightest",
    NUMBERED_MASK: "have a mask of small numbers, each of which but 0 is lesion",
    STRAY_REGIONS: "have ultrasound regions that do not fit their frame, so that neither regions "
    "nor their pixel size are used",
}
"""What can be odd about an image's files, as the end of a sentence about images."""

MIN_AREA_SHARE = 0.0005
"""A lesion that covers less of its image is implausible."""
MAX_AREA_SHARE = 0.6
"""A lesion that covers more of its image is implausible."""

_STROKE_WIDTH = 6
"""The widest upright stroke of a character, in pixels."""
_STROKE_CONTRAST = 40
"""How much brighter than both its sides an upright stroke is, in gray levels."""
_LETTER_GAP = 5
"""Strokes that are at most so far apart, in pixels, belong to one word..."""
_LETTER_GAP_SHARE = 1 / 70
"""... or so far apart as a share of the image's width."""
_LINE_HEIGHTS = (5, 32)
"""From the lowest to the highest line of text, in pixels."""
_MIN_LINE_WIDTH = 16
_MIN_LINE_ASPECT = 1.2
"""A line of text is so many times as wide as it is high."""
_MIN_LINE_DENSITY = 0.2
"""Share of a line's box that its upright strokes cover."""
_MIN_LINE_STROKES = 0.75
"""Upright strokes in a square as high as the line, as a mean over its rows..."""
_MIN_LONG_LINE_STROKES = 0.45
"""... or in that of a long line, which speckle seldom makes..."""
_LONG_LINE_ASPECT = 6
"""... and which is so many times as wide as it is high."""
_CORNER = 3
"""Lines so near to two sides of the image are remnants of a logo, in pixels."""

_LEAST_CONTRAST = 20
"""How much brighter than the middles of its quarters a cross is, in gray levels; few pixels of an
image are left to look at."""
_BEYOND = 3
"""So far behind an arm's end, in pixels, it is dark again..."""
_NUM_BRIGHT_BEYOND = 1
"""... but for so many arms."""
_TEXT_MARGIN = 3
"""Crosses in text, or so many pixels from it, are letters."""

_PLUS: Directions = ((0, 1), (1, 0))
_TIMES: Directions = ((1, 1), (1, -1))


class _Cross(NamedTuple):
    """A cross to look for."""

    arms: Directions
    """Of its two lines."""
    length: int
    """From the centre, in pixels."""
    contrast: int
    """How much brighter than what lies between its arms it is, in gray levels. The shortest have
    lines of one pixel's width, which are seldom there by chance."""
    num_bright: int
    """So many of the twelve places between the arms may be bright: near a + there may be the start
    of a measuring line, and through a short x a third line."""


_CROSSES = (
    (_Cross(_PLUS, 2, 12, 2), *(_Cross(_PLUS, length, 25, 2) for length in (3, 4, 5, 6, 8))),
    (_Cross(_TIMES, 2, 12, 6), *(_Cross(_TIMES, length, 25, 2) for length in (3, 4, 5, 6, 8))),
)
"""By direction, and from short to long."""
_REACH = 8 + _BEYOND
"""The pixels that are looked at lie so far from the centre."""


@dataclass(frozen=True, slots=True)
class Marks:
    """What was drawn over an image."""

    text: bool
    calipers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFlags:
    """What is noteworthy in a mask."""

    num_components: int
    """Parts that touch not even at a corner."""
    touches_border: bool
    area_share: float
    """Of the image, in [0, 1]."""
    num_holes: int
    """Parts of the background that lesion surrounds, if it is joined at corners."""
    implausible: bool
    """Whether there is a lesion, but below `MIN_AREA_SHARE` or above `MAX_AREA_SHARE`."""


def flag_image(gray: Gray) -> Marks:
    """Say whether burnt-in text and calipers lie over an image (h, w).

    Text is a line of thin, upright, bright strokes that stand close together: speckle and tissue
    layers lie across the beam, and have hardly any. A caliper is a cross, upright or turned by 45
    degrees, with darker quarters.

    This is an estimate for whole collections and not a finding about an image. By eye, on 60 random
    images of each collection: text in BUSI 13 of 17 flagged (the others were logos, a body mark,
    numbers of calipers) and 13 of 14 found; in BUS-BRA, reduced to 256 pixels, 45 of 47 (the others
    were depth scales) and 45 of 45. Calipers in BUSI 4 of 4 and 4 of 5; in BUS-BRA 43 of about 51
    found, and 60 of 60 flagged on others that no threshold was chosen on. It misses faint and
    dotted crosses, and measuring lines without any; and raw speckle that is not log-compressed may
    look like text. Single characters are no text. Yellow and green marks are bright in gray too; a
    dark blue one is not seen.
    """
    lines = _text_lines(gray)
    text = any(not _in_corner(line, gray.shape) for line in lines)
    return Marks(text=text, calipers=_has_cross(gray, lines))


def flag_mask(mask: Mask) -> MaskFlags:
    """Count a mask's (h, w) parts and holes, and say whether its lesion is plausible."""
    corners = np.ones((3, 3), np.bool_)
    num_components = int(ndimage.label(mask, corners)[1])
    num_backgrounds = int(ndimage.label(np.pad(~mask, 1, constant_values=True))[1])
    area_share = float(mask.mean())
    borders = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return MaskFlags(
        num_components=num_components,
        touches_border=any(bool(border.any()) for border in borders),
        area_share=area_share,
        num_holes=num_backgrounds - 1,
        implausible=num_components > 0 and not MIN_AREA_SHARE <= area_share <= MAX_AREA_SHARE,
    )


def _text_lines(gray: Gray) -> list[Box]:
    """Return the boxes of lines of text."""
    strokes = gray - _opened(gray, _STROKE_WIDTH + 1) >= _STROKE_CONTRAST
    gap = max(_LETTER_GAP, round(gray.shape[1] * _LETTER_GAP_SHARE))
    joined = np.pad(strokes, ((0, 0), (0, gap)))
    for shift in range(1, gap + 1):
        joined[:, shift : shift + gray.shape[1]] |= strokes
    labels, _ = ndimage.label(joined, np.ones((3, 3), np.bool_))
    lines = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        box = rows, slice(columns.start, columns.stop - gap)
        if _has_size_of_line(box) and _is_line(strokes[box] & (labels[box] == label)):
            lines.append(box)
    return lines


def _has_size_of_line(box: Box) -> bool:
    height, width = (side.stop - side.start for side in box)
    low, high = _LINE_HEIGHTS
    wide = width >= _MIN_LINE_WIDTH and width >= _MIN_LINE_ASPECT * height
    return bool(wide and low <= height <= high)


def _in_corner(box: Box, shape: tuple[int, ...]) -> bool:
    return all(
        side.start <= _CORNER or side.stop >= length - _CORNER
        for side, length in zip(box, shape, strict=True)
    )


def _is_line(strokes: Mask) -> bool:
    height, width = strokes.shape
    num_strokes = int(strokes[:, 0].sum()) + int((strokes[:, 1:] & ~strokes[:, :-1]).sum())
    is_long = width >= _LONG_LINE_ASPECT * height
    least = _MIN_LONG_LINE_STROKES if is_long else _MIN_LINE_STROKES
    return float(strokes.mean()) >= _MIN_LINE_DENSITY and num_strokes >= least * width


def _has_cross(gray: Gray, lines: list[Box]) -> bool:
    padded = np.pad(gray, _REACH, mode="edge")
    free = np.ones(gray.shape, np.bool_)
    for rows, columns in lines:
        free[
            max(rows.start - _TEXT_MARGIN, 0) : rows.stop + _TEXT_MARGIN,
            max(columns.start - _TEXT_MARGIN, 0) : columns.stop + _TEXT_MARGIN,
        ] = False
    for crosses in _CROSSES:
        darkest = gray.copy()  # of the cross around each pixel, as it grows
        grown = 0
        for cross in crosses:
            for length in range(grown + 1, cross.length + 1):
                for down, right in _around(cross.arms, length):
                    np.minimum(darkest, _moved(padded, down, right), out=darkest)
            grown = cross.length
            if _stands_out(cross, darkest, padded, free):
                return True
    return False


def _stands_out(cross: _Cross, darkest: Gray, padded: Gray, free: Mask) -> bool:
    """Say whether all of a cross is brighter somewhere than its quarters and what lies behind it.

    Args:
        cross: what to look for.
        darkest: the darkest pixel of the cross around each pixel (h, w).
        padded: the image with `_REACH` more pixels on every side.
        free: where to look (h, w).
    """
    middles = _around(_turned(cross.arms), cross.length)
    first, second, third, fourth = (_moved(padded, down, right) for down, right in middles)
    dark = np.minimum(np.maximum(first, second), np.maximum(third, fourth))
    rows, columns = np.nonzero(darkest - np.minimum(darkest, dark) >= _LEAST_CONTRAST)
    is_free = free[rows, columns]
    at = rows[is_free], columns[is_free]
    least = darkest[at].astype(np.int16)
    quarters = np.sort(_at(padded, at, _quarters(cross)), axis=0)
    contrast = least - quarters[-1 - cross.num_bright]
    beyond = _at(padded, at, _around(cross.arms, cross.length + _BEYOND))
    num_bright = (beyond > least - contrast / 2).sum(axis=0)
    return bool(((contrast >= cross.contrast) & (num_bright <= _NUM_BRIGHT_BEYOND)).any())


def _turned(arms: Directions) -> Directions:
    """Return the middle lines of a cross's quarters."""
    return _TIMES if arms == _PLUS else _PLUS


def _around(directions: Directions, length: int) -> Directions:
    """Return the four places at a distance from the centre, opposite ones together."""
    return tuple(
        (sign * length * down, sign * length * right)
        for down, right in directions
        for sign in (-1, 1)
    )


def _quarters(cross: _Cross) -> Directions:
    """Return three places in each quarter of a cross, from its centre."""
    length = cross.length
    if cross.arms == _PLUS:
        places = [(2, length), (length, 2), (length - 1, length - 1)]
    else:
        places = [(length, side) for side in (-1, 0, 1)]
    turned = []
    for _ in range(4):
        turned += places
        places = [(right, -down) for down, right in places]
    return tuple(turned)


def _at(
    padded: Gray, at: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], places: Directions
) -> npt.NDArray[np.int16]:
    """Return the pixels (places, n) around n pixels."""
    rows, columns = at[0] + _REACH, at[1] + _REACH
    return np.stack([padded[rows + down, columns + right] for down, right in places]).astype(
        np.int16
    )


def _opened(gray: Gray, width: int) -> Gray:
    """Return the gray opening of the rows with a line of `width`, which must be odd."""
    return _extreme(np.maximum, _extreme(np.minimum, gray, width), width)


def _extreme(pick: np.ufunc, gray: Gray, width: int) -> Gray:
    """Return the least or the largest of the `width` pixels of a row around each."""
    padded = np.pad(gray, ((0, 0), (width // 2, width // 2)), mode="edge")
    picked = padded[:, : gray.shape[1]].copy()
    for shift in range(1, width):
        pick(picked, padded[:, shift : shift + gray.shape[1]], out=picked)
    return picked


def _moved(padded: Gray, down: int, right: int) -> Gray:
    """Return the image as seen from each pixel's neighbour."""
    height, width = padded.shape
    return padded[_REACH + down : height - _REACH + down, _REACH + right : width - _REACH + right]
