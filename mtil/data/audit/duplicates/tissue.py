"""Find the tissue in an image, to exclude the rest of a screen from comparisons.

The background of a screen is constant or smooth. Screen furniture (text, scales, a gray bar, a
logo) is thin, or stands apart from the tissue. Tissue varies everywhere.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.int32]
"""Gray levels. NumPy sorts 32-bit integers several times faster than 8-bit integers."""
Box = tuple[int, int, int, int]
"""First row, first column, and the row and column behind the last."""

MAX_CONSTANT_RANGE = 6
"""Range of gray levels above which a line of pixels is not constant. Noise and JPEG artifacts of a
margin stay below, as lines come from a reduced image. In BUSI 98 of 100 images have no constant
line except for a dark lower edge."""
_MIN_VARIATION, _VARIATION_SHARE = 1.0, 0.1
"""In dark images the variation is this share of the contrast, but at least `_MIN_VARIATION`
levels."""
_ENDS, _INNER_ENDS = 0.05, 0.2
"""Shares of a line's pixels left off at the low and at the high end: text crosses a line in few
pixels."""
_STEPS = (4, 1.5)
"""Gray levels between neighbours in textured areas; the second is for very dark images."""
_COARSE, _MIDDLE, _FINE = 160, 128, 256
"""Largest sides of the reduced images, in pixels."""
_MIN_DENSITY = 5
"""Smallest number of textured pixels in the 3 x 3 neighbourhood of tissue."""
_MIN_TISSUE_WIDTH = 5
"""Smallest width of tissue in pixels of the coarse image, 3 per cent of its side. Narrower areas
are text, rulers or bars."""
_MIN_SIDE = 0.12
"""Smallest sides of a tissue part, as shares of the image's sides. Bars and texts are thinner."""
_MIN_PART = 0.25
"""Smallest area of a tissue part, as a share of the largest part's area."""
_MAX_LEVEL_SHARE = 0.65
"""Largest share of the most frequent gray level in tissue. Text and symbols have more."""
_RIM = 0.15
"""Share of the tissue's side, at both ends, where a constant line separates furniture from
tissue."""
_MIN_ABRUPT_RANGE = 4
"""Smallest range of gray levels, in multiples of `MAX_CONSTANT_RANGE`, in the lines above a lower
margin.
Deep tissue that fades out has no margin below: copies of different brightness fade out at different
depths."""
_NUM_LAST_LINES = 2
"""Number of lines of the fine image examined for `_MIN_ABRUPT_RANGE`."""
_MIN_MARGIN = 0.03
"""Margins below this share of the side are not cut off."""
_MAX_BLANK_SCREEN = 0.8
"""Largest share of a gray level in an image with tissue."""
_MIN_BLANK, _MAX_BLANK = 0.03, 0.8
"""Smallest and largest share of blank surroundings in a thumb to be filled."""
_MIN_BLANK_TOP = 4
"""Smallest number of pixels in a thumb's first row with the gray level of blank surroundings.
Tissue is bright at the probe, so dark tissue further down does not count as surroundings."""
_LEVEL_TOLERANCE = 2
"""Largest difference from the gray level of the blank surroundings."""
_BLUR_RADIUS = 3.0
"""Radius of the blur that continues tissue over blank surroundings, in thumb pixels."""


def find_tissue_box(gray: Gray) -> Box | None:
    """Return the box of the tissue in a gray image (h, w).

    Returns:
        The box; the whole image if no line of pixels is constant or if tissue cannot be told from
        the surroundings; None if most of the image has a single gray level.
    """
    height, width = gray.shape
    # An image without constant lines is all tissue and needs none of the searches below.
    middle, _ = _reduce(gray, _MIDDLE)
    if _all_vary(middle) and _all_vary(middle.T):
        return 0, 0, height, width
    coarse, factor = _reduce(gray, _COARSE)
    # Only very dark images need the smaller step, so it is tried second.
    cores = (_find_core(coarse, gray, factor, step) for step in _STEPS)
    core = next((box for box in cores if box is not None), None)
    if core is None:
        return None if _share_of_top_level(gray) > _MAX_BLANK_SCREEN else (0, 0, height, width)
    fine, scale = _reduce(gray, _FINE)
    low, high = np.percentile(middle, (5, 95))
    variation = min(max(_VARIATION_SHARE * (high - low), _MIN_VARIATION), MAX_CONSTANT_RANGE)
    top, left, bottom, right = _fit_to_constant_lines(fine, core, factor / scale, variation)
    # Dark tissue may have constant lines everywhere.
    if min(bottom - top, right - left) < _MIN_TISSUE_WIDTH:
        return 0, 0, height, width
    last_lines = fine[max(bottom - _NUM_LAST_LINES, 0) : bottom, left:right]
    is_abrupt = _varies(last_lines, _ENDS, _MIN_ABRUPT_RANGE * MAX_CONSTANT_RANGE).all()
    top, left, bottom, right = (scale * edge for edge in (top, left, bottom, right))
    top, bottom = _range_or_whole_side(top, min(bottom, height), height)
    left, right = _range_or_whole_side(left, min(right, width), width)
    # A lower margin alone is cut off only if the image above ends abruptly.
    if (top, left, right) == (0, 0, width) and not is_abrupt:
        return 0, 0, height, width
    return top, left, bottom, right


def fill_blank_areas(thumb: Gray) -> Gray:
    """Fill blank surroundings of a thumb (side, side) smoothly from the tissue.

    Blank areas have a single gray level, found in the first row, and reach the edge: the corners
    beside a sector, or the space between two regions. All images of a probe share the outline of
    the blank areas.
    """
    counts = np.bincount(thumb[0], minlength=256)
    window = np.convolve(counts, np.ones(2 * _LEVEL_TOLERANCE + 1, np.int64), mode="same")
    level = int(window.argmax())
    if window[level] < _MIN_BLANK_TOP:
        return thumb
    is_level = np.abs(thumb.astype(np.int16) - level) <= _LEVEL_TOLERANCE
    # Return early: the search for connected areas is slow, and most images have no blank area.
    if is_level.mean() < _MIN_BLANK:
        return thumb
    labels, count = ndimage.label(is_level)
    reaches_edge = np.zeros(count + 1, np.bool_)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reaches_edge[line] = True
    # Label 0 is the rest of the thumb, not a blank area.
    reaches_edge[0] = False
    blank = reaches_edge[labels]
    if not _MIN_BLANK <= blank.mean() <= _MAX_BLANK:
        return thumb
    # Pixels next to a blank area mix blank and tissue, since the thumb is a reduced image.
    tissue = (~ndimage.binary_dilation(blank, np.ones((3, 3), np.bool_))).astype(np.float32)
    weight = ndimage.gaussian_filter(tissue, _BLUR_RADIUS, truncate=20)
    blurred = ndimage.gaussian_filter(thumb * tissue, _BLUR_RADIUS, truncate=20)
    # Dividing by the blurred weight averages over tissue pixels only.
    smooth = np.rint(blurred / np.maximum(weight, 1e-6))
    return np.where(tissue > 0, thumb, smooth.clip(0, 255)).astype(np.uint8)


def _all_vary(lines: Levels) -> bool:
    return bool(_varies(lines, _INNER_ENDS, MAX_CONSTANT_RANGE).all())


def _reduce(gray: Gray, side: int) -> tuple[Levels, int]:
    """Average an image over squares, so that the longest side is at most `side`.

    Returns:
        The reduced image, and the side of the squares in pixels.
    """
    factor = max(1, -(-max(gray.shape) // side))
    image = Image.fromarray(gray)
    return np.asarray(image.reduce(factor) if factor > 1 else image, np.int32), factor


def _find_core(coarse: Levels, gray: Gray, factor: int, step: float) -> Box | None:
    """Return the box of the textured areas without furniture, in pixels of the coarse image.

    Args:
        coarse: the reduced image.
        gray: the full image.
        factor: pixels of the full image for one of the reduced image.
        step: smallest difference of gray levels between neighbours in textured areas.

    Returns:
        The box; None without textured areas.
    """
    textured = np.zeros(coarse.shape, np.uint8)
    across = np.abs(np.diff(coarse, axis=1)) > step
    down = np.abs(np.diff(coarse, axis=0)) > step
    textured[:, 1:] |= across
    textured[:, :-1] |= across
    textured[1:] |= down
    textured[:-1] |= down
    # The mean of nine pixels with the value 9 is their number.
    density = ndimage.uniform_filter(textured * np.uint8(9), 3, mode="nearest")
    labels, count = ndimage.label(_open_mask(density >= _MIN_DENSITY, _MIN_TISSUE_WIDTH))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    min_sides = [_MIN_SIDE * side for side in coarse.shape]
    boxes = ndimage.find_objects(labels)
    largest_size = 0
    boxes_kept: list[tuple[slice, slice]] = []
    for part in np.argsort(-sizes, kind="stable").tolist():
        if sizes[part] < _MIN_PART * largest_size:
            break
        if any(s.stop - s.start < side for s, side in zip(boxes[part], min_sides, strict=True)):
            continue
        rows, columns = (slice(side.start * factor, side.stop * factor) for side in boxes[part])
        if _share_of_top_level(gray[rows, columns]) <= _MAX_LEVEL_SHARE:
            largest_size = largest_size or int(sizes[part])
            boxes_kept.append(boxes[part])
    if not boxes_kept:
        return None
    return (
        min(rows.start for rows, _ in boxes_kept),
        min(columns.start for _, columns in boxes_kept),
        max(rows.stop for rows, _ in boxes_kept),
        max(columns.stop for _, columns in boxes_kept),
    )


def _open_mask(mask: Mask, width: int) -> Mask:
    """Return the opening of a mask (h, w) with a square of odd width."""
    padded = np.pad(mask, width, mode="edge").astype(np.uint8)
    for extreme in (ndimage.minimum_filter1d, ndimage.maximum_filter1d):
        for axis in (0, 1):
            padded = extreme(padded, width, axis=axis)
    return np.asarray(padded[width:-width, width:-width], np.bool_)


def _share_of_top_level(part: Gray) -> float:
    """Return the share of the most frequent gray level, +-1, in an area (h, w)."""
    # A quarter of the pixels is enough to estimate a share.
    counts = np.bincount(part[::2, ::2].ravel(), minlength=256)
    near = np.convolve(counts, np.ones(3, np.int64), mode="same")
    return float(near.max() / counts.sum())


def _fit_to_constant_lines(fine: Levels, core: Box, scale: float, variation: float) -> Box:
    """Move the edges of the core's box to the constant lines around the tissue.

    Args:
        fine: a reduced image.
        core: the box in a coarser image.
        scale: pixels of `fine` for one of the coarser image.
        variation: as `MAX_CONSTANT_RANGE`.
    """
    top, left, bottom, right = (round(scale * edge) for edge in core)
    # Repeat once: furniture cut off in the first turn no longer makes lines vary in the second.
    for _ in range(2):
        if bottom <= top or right <= left:
            break
        top, bottom = _extend_to_constant(
            _varies(fine[:, left:right], _ENDS, variation), top, bottom
        )
        left, right = _extend_to_constant(
            _varies(fine[top:bottom].T, _ENDS, variation), left, right
        )
    return top, left, bottom, right


def _varies(lines: Levels, ends: float, variation: float) -> Mask:
    """Return whether each line (n, m) varies, apart from its lowest and highest pixels.

    Args:
        lines: gray levels.
        ends: share of a line's pixels to leave off at both ends of the sorted line.
        variation: as `MAX_CONSTANT_RANGE`.
    """
    last = lines.shape[1] - 1
    cut = int(ends * (last + 1))
    ordered = np.sort(lines, axis=1)
    return np.asarray(ordered[:, last - cut] - ordered[:, cut] > variation)


def _extend_to_constant(varies: Mask, start: int, stop: int) -> tuple[int, int]:
    """Move both ends of a range of lines to the nearest constant line at the rim or beyond."""
    rim = max(int(_RIM * (stop - start)), 1)
    constant = np.flatnonzero(~varies)
    before, after = constant[constant < start + rim], constant[constant >= stop - rim]
    first = int(before[-1]) + 1 if len(before) else 0
    last = int(after[0]) if len(after) else len(varies)
    return first, last


def _range_or_whole_side(start: int, stop: int, side: int) -> tuple[int, int]:
    """Return a range, or the whole side if the range leaves off next to nothing."""
    if start <= _MIN_MARGIN * side and stop >= (1 - _MIN_MARGIN) * side:
        return 0, side
    return start, stop
