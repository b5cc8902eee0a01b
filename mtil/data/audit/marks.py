"""Flag burnt-in text and calipers in images, and odd lesions in masks.

Text and calipers tell a network who examined what, not what the tissue shows. If a class has more
marks, the marks are a shortcut.
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
"""Slices of rows and columns."""
Directions = tuple[tuple[int, int], ...]
"""Offsets in pixels: down, right."""

SOFT_MASK, NUMBERED_MASK, STRAY_REGIONS = "soft_mask", "numbered_mask", "stray_regions"
NOTE_TEXTS: Mapping[str, str] = {
    SOFT_MASK: "have a mask of more than two levels; pixels at least half as bright as the "
    "brightest are lesion",
    NUMBERED_MASK: "have a mask of small numbers; all numbers but 0 are lesion",
    STRAY_REGIONS: "have ultrasound regions that do not fit the frame; the regions and the pixel "
    "size are ignored",
}
"""Oddities of an image's files, worded as the end of a sentence about images."""

MIN_AREA_SHARE = 0.0005
"""Smallest plausible share of an image covered by a lesion."""
MAX_AREA_SHARE = 0.6
"""Largest plausible share of an image covered by a lesion."""

_STROKE_WIDTH = 6
"""Largest width of a character's upright stroke, in pixels."""
_STROKE_CONTRAST = 40
"""Smallest brightness of a stroke above both sides, in gray levels."""
_LETTER_GAP = 5
"""Largest gap between two strokes of a word, in pixels ..."""
_LETTER_GAP_SHARE = 1 / 70
"""... or as a share of the image width."""
_LINE_HEIGHTS = (5, 32)
"""Smallest and largest height of a line of text, in pixels."""
_MIN_LINE_WIDTH = 16
_MIN_LINE_ASPECT = 1.2
"""Smallest ratio of width to height of a line of text."""
_MIN_LINE_DENSITY = 0.2
"""Smallest share of a line's box covered by upright strokes."""
_MIN_LINE_STROKES = 0.75
"""Smallest number of strokes in a square of the line's height, averaged over the rows ..."""
_MIN_LONG_LINE_STROKES = 0.45
"""... and in a long line. Speckle seldom forms long lines."""
_LONG_LINE_ASPECT = 6
"""Smallest ratio of width to height of a long line."""
_CORNER_MARGIN = 3
"""Lines within this many pixels of two sides of the image are remnants of a logo."""

_MIN_CROSS_CONTRAST = 20
"""Smallest brightness of a cross above the middles of its quarters, in gray levels. Leaves few
pixels to examine closely."""
_DISTANCE_BEHIND_ARM = 3
"""Distance behind an arm's end, in pixels, at which the image is dark again ..."""
_MAX_BRIGHT_BEHIND_ARMS = 1
"""... for all arms but this many."""
_TEXT_MARGIN = 3
"""Crosses in text or within this many pixels of text are letters."""

_PLUS: Directions = ((0, 1), (1, 0))
_TIMES: Directions = ((1, 1), (1, -1))


class _Cross(NamedTuple):
    """Shape and contrast of a cross to search for."""

    arms: Directions
    """Directions of the two lines."""
    length: int
    """Length of an arm from the centre, in pixels."""
    contrast: int
    """Smallest brightness above the places between the arms, in gray levels."""
    num_bright: int
    """Largest number of bright places among the twelve places between the arms."""


_CROSSES = (
    # The shortest crosses have lines one pixel wide, seldom present by chance, so less contrast is
    # enough. Near a + a measuring line may start, and a third line may cross a short x, so some
    # places between the arms may be bright.
    (_Cross(_PLUS, 2, 12, 2), *(_Cross(_PLUS, length, 25, 2) for length in (3, 4, 5, 6, 8))),
    (_Cross(_TIMES, 2, 12, 6), *(_Cross(_TIMES, length, 25, 2) for length in (3, 4, 5, 6, 8))),
)
"""Crosses by direction, from short to long."""
_REACH = 8 + _DISTANCE_BEHIND_ARM
"""Largest distance from the centre to an examined pixel."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks drawn over an image."""

    text: bool
    calipers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFlags:
    """Measurements and oddities of a mask."""

    num_components: int
    """Number of lesion parts, 8-connected."""
    touches_border: bool
    area_share: float
    """Lesion's share of the image, in [0, 1]."""
    num_holes: int
    """Number of background parts (4-connected) enclosed by lesion."""
    implausible: bool
    """Whether the lesion's share is positive, but below `MIN_AREA_SHARE` or above
    `MAX_AREA_SHARE`."""


def flag_marks(gray: Gray) -> Marks:
    """Detect burnt-in text and calipers in a gray image (h, w).

    Text is a line of thin, upright, bright strokes close together. Speckle and tissue layers lie
    across the beam and have hardly any upright strokes. A caliper is a cross, upright or turned by
    45 degrees, with darker quarters.

    The flags estimate how common marks are in a collection. A single flag is not reliable. Checked
    by eye on 60 random images of each collection:

    Text: in BUSI 13 of 17 flagged images had text (the rest: logos, a body mark, numbers of
    calipers), and 13 of 14 images with text were flagged. In BUS-BRA, reduced to 256 pixels, 45 of
    47 (the rest: depth scales) and 45 of 45.

    Calipers: in BUSI 4 of 4 and 4 of 5. In BUS-BRA 43 of about 51 images with calipers were
    flagged, and 60 of 60 flagged images had calipers in a sample that played no part in choosing
    the thresholds.

    Not detected: faint and dotted crosses, measuring lines without crosses, single characters, and
    dark blue marks. Yellow and green marks are bright in gray and are detected. Raw speckle without
    log compression may look like text.
    """
    lines = _find_text_lines(gray)
    text = any(not _is_in_corner(line, gray.shape) for line in lines)
    return Marks(text=text, calipers=_has_cross(gray, lines))


def flag_mask(mask: Mask) -> MaskFlags:
    """Measure a mask (h, w): parts, holes, area, and whether the lesion is plausible."""
    corners = np.ones((3, 3), np.bool_)
    num_components = int(ndimage.label(mask, corners)[1])
    # The padding joins all background at the border into a single part; every further part is a
    # hole.
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


def _find_text_lines(gray: Gray) -> list[Box]:
    """Return the boxes of lines of text in an image (h, w)."""
    # The difference to the opening along the rows (a white top-hat) keeps bright structures
    # narrower than the opening, so upright strokes but no horizontal layers.
    strokes = gray - _open_rows(gray, _STROKE_WIDTH + 1) >= _STROKE_CONTRAST
    gap = max(_LETTER_GAP, round(gray.shape[1] * _LETTER_GAP_SHARE))
    # Shifting strokes to the right by up to the gap closes the gaps within a word; the box is cut
    # back by the gap.
    joined = np.pad(strokes, ((0, 0), (0, gap)))
    for shift in range(1, gap + 1):
        joined[:, shift : shift + gray.shape[1]] |= strokes
    labels, _ = ndimage.label(joined, np.ones((3, 3), np.bool_))
    lines = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        box = rows, slice(columns.start, columns.stop - gap)
        if _has_line_size(box) and _is_line(strokes[box] & (labels[box] == label)):
            lines.append(box)
    return lines


def _has_line_size(box: Box) -> bool:
    height, width = (side.stop - side.start for side in box)
    low, high = _LINE_HEIGHTS
    wide = width >= _MIN_LINE_WIDTH and width >= _MIN_LINE_ASPECT * height
    return bool(wide and low <= height <= high)


def _is_in_corner(box: Box, shape: tuple[int, ...]) -> bool:
    return all(
        side.start <= _CORNER_MARGIN or side.stop >= length - _CORNER_MARGIN
        for side, length in zip(box, shape, strict=True)
    )


def _is_line(strokes: Mask) -> bool:
    height, width = strokes.shape
    # A stroke starts at each rising edge along a row.
    num_strokes = int(strokes[:, 0].sum()) + int((strokes[:, 1:] & ~strokes[:, :-1]).sum())
    is_long = width >= _LONG_LINE_ASPECT * height
    min_strokes = _MIN_LONG_LINE_STROKES if is_long else _MIN_LINE_STROKES
    return float(strokes.mean()) >= _MIN_LINE_DENSITY and num_strokes >= min_strokes * width


def _has_cross(gray: Gray, lines: list[Box]) -> bool:
    padded = np.pad(gray, _REACH, mode="edge")
    free = np.ones(gray.shape, np.bool_)
    for rows, columns in lines:
        free[
            max(rows.start - _TEXT_MARGIN, 0) : rows.stop + _TEXT_MARGIN,
            max(columns.start - _TEXT_MARGIN, 0) : columns.stop + _TEXT_MARGIN,
        ] = False
    for crosses in _CROSSES:
        # Crosses grow from short to long, so the minimum over the arms extends the minimum of the
        # shorter cross.
        darkest = gray.copy()
        arm_length = 0
        for cross in crosses:
            for length in range(arm_length + 1, cross.length + 1):
                for down, right in _offsets_at(cross.arms, length):
                    np.minimum(darkest, _shifted(padded, down, right), out=darkest)
            arm_length = cross.length
            if _stands_out(cross, darkest, padded, free):
                return True
    return False


def _stands_out(cross: _Cross, darkest: Gray, padded: Gray, free: Mask) -> bool:
    """Return whether the image holds a cross brighter than its surroundings.

    The surroundings are the quarters between the arms and the places behind the ends of the arms.

    Args:
        cross: the cross.
        darkest: (h, w) darkest pixel of the cross centred on each pixel.
        padded: the image, padded by `_REACH` pixels on every side.
        free: (h, w) centres to examine.
    """
    # The middles of the quarters rule out most pixels cheaply. Only the remaining pixels are
    # compared with all places around the cross.
    middles = _offsets_at(_turned_45_degrees(cross.arms), cross.length)
    first, second, third, fourth = (_shifted(padded, down, right) for down, right in middles)
    dark = np.minimum(np.maximum(first, second), np.maximum(third, fourth))
    rows, columns = np.nonzero(darkest - np.minimum(darkest, dark) >= _MIN_CROSS_CONTRAST)
    is_free = free[rows, columns]
    centres = rows[is_free], columns[is_free]
    # Differences of gray levels need signed integers.
    cross_level = darkest[centres].astype(np.int16)
    quarters = np.sort(_pixels_at(padded, centres, _quarter_offsets(cross)), axis=0)
    contrast = cross_level - quarters[-1 - cross.num_bright]
    behind_arms = _pixels_at(
        padded, centres, _offsets_at(cross.arms, cross.length + _DISTANCE_BEHIND_ARM)
    )
    num_bright = (behind_arms > cross_level - contrast / 2).sum(axis=0)
    return bool(((contrast >= cross.contrast) & (num_bright <= _MAX_BRIGHT_BEHIND_ARMS)).any())


def _turned_45_degrees(arms: Directions) -> Directions:
    """Return the directions of the middles of a cross's quarters."""
    return _TIMES if arms == _PLUS else _PLUS


def _offsets_at(directions: Directions, length: int) -> Directions:
    """Return four offsets at a distance from the centre, opposite offsets side by side."""
    return tuple(
        (sign * length * down, sign * length * right)
        for down, right in directions
        for sign in (-1, 1)
    )


def _quarter_offsets(cross: _Cross) -> Directions:
    """Return three offsets in each quarter of a cross."""
    length = cross.length
    if cross.arms == _PLUS:
        offsets = [(2, length), (length, 2), (length - 1, length - 1)]
    else:
        offsets = [(length, side) for side in (-1, 0, 1)]
    all_offsets = []
    for _ in range(4):
        all_offsets += offsets
        offsets = [(right, -down) for down, right in offsets]
    return tuple(all_offsets)


def _pixels_at(
    padded: Gray, centres: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]], offsets: Directions
) -> npt.NDArray[np.int16]:
    """Return the pixels (offsets, n) at each offset from n centres."""
    rows, columns = centres[0] + _REACH, centres[1] + _REACH
    return np.stack([padded[rows + down, columns + right] for down, right in offsets]).astype(
        np.int16
    )


def _open_rows(gray: Gray, width: int) -> Gray:
    """Return the gray opening of each row with a line of odd `width`."""
    return _row_extreme(np.maximum, _row_extreme(np.minimum, gray, width), width)


def _row_extreme(minimum_or_maximum: np.ufunc, gray: Gray, width: int) -> Gray:
    """Return the minimum or maximum of the `width` pixels of a row around each pixel."""
    padded = np.pad(gray, ((0, 0), (width // 2, width // 2)), mode="edge")
    extreme = padded[:, : gray.shape[1]].copy()
    for shift in range(1, width):
        minimum_or_maximum(extreme, padded[:, shift : shift + gray.shape[1]], out=extreme)
    return extreme


def _shifted(padded: Gray, down: int, right: int) -> Gray:
    """Return the image (h, w) shifted: each pixel holds the pixel at the offset."""
    height, width = padded.shape
    return padded[_REACH + down : height - _REACH + down, _REACH + right : width - _REACH + right]
