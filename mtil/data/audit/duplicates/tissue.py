"""Find the tissue in an image, so that the rest of a screen takes no part in a comparison.

A screen's background is constant or smooth. Its furniture (text, scales, a gray bar, a logo) is
thin, or stands apart from the tissue. Tissue varies everywhere.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Levels = npt.NDArray[np.int32]
"""Gray levels; NumPy sorts 32-bit integers several times faster than 8-bit ones."""
Box = tuple[int, int, int, int]
"""First row, first column, and the row and the column behind the last."""

VARIATION = 6
"""Gray levels between the low and the high end of a line of pixels that is not constant. Noise and
JPEG artifacts of a margin stay below it, since lines are taken from a reduced image. In BUSI 98 of
100 images have no constant line but for a dark lower edge."""
_MIN_VARIATION, _VARIATION_SHARE = 1.0, 0.1
"""In dark images the variation is this share of their contrast, at least so many gray levels."""
_ENDS, _INNER_ENDS = 0.05, 0.2
"""Shares of a line left off at its low and at its high end: text crosses a line in few pixels."""
_STEPS = (4, 1.5)
"""Gray levels between neighbours in textured areas; the second is for very dark images."""
_COARSE, _MIDDLE, _FINE = 160, 128, 256
"""Longest sides, at most, of the reduced images."""
_MIN_DENSITY = 5
"""Textured pixels of the nine around a pixel of tissue."""
_THIN = 5
"""Pixels of the coarse image: 3 per cent of its side. Narrower areas are text, rulers or bars."""
_MIN_SIDE = 0.12
"""Least sides of the tissue's parts, as shares of the image's sides. Bars and texts are thinner."""
_MIN_PART = 0.25
"""Least area of a part of the tissue, as a share of the largest part's."""
_MAX_BACKGROUND = 0.65
"""Share of one gray level in an area of text or symbols. Tissue has less of any level."""
_RIM = 0.15
"""Share of the tissue's side at whose end a constant line separates furniture from the tissue."""
_ABRUPT = 4
"""Least range of gray levels, in multiples of `VARIATION`, of the lines above a lower margin. Deep
tissue that fades out has no margin below: copies of another brightness fade out elsewhere."""
_LAST = 2
"""Lines of the fine image that are looked at for that."""
_WHOLE = 0.03
"""Margins below this share of the side are not cut off."""
_MAX_BLANK_SCREEN = 0.8
"""Share of one gray level in an image without tissue."""
_MIN_BLANK, _MAX_BLANK = 0.03, 0.8
"""Share of a thumb outside the tissue that is evened out."""
_MIN_BLANK_TOP = 4
"""Pixels of a thumb's first row with the gray level of the blank surroundings. At the probe tissue
is bright; dark tissue below it is no surroundings."""
_TOLERANCE = 2
"""Gray levels around that of the blank surroundings."""
_SPREAD = 3.0
"""Radius of the blur, in thumb pixels, that continues the tissue over blank surroundings."""


def find_box(gray: Gray) -> Box | None:
    """Return the box of an image's (h, w) tissue.

    The box is the whole image if no line of pixels is constant, and if tissue cannot be told from
    its surroundings. It is None if most of the image has one gray level.
    """
    height, width = gray.shape
    middle, _ = _reduced(gray, _MIDDLE)
    if _all_vary(middle) and _all_vary(middle.T):
        return 0, 0, height, width
    coarse, factor = _reduced(gray, _COARSE)
    cores = (_core(coarse, gray, factor, step) for step in _STEPS)
    core = next((box for box in cores if box is not None), None)
    if core is None:
        return None if _share_of_level(gray) > _MAX_BLANK_SCREEN else (0, 0, height, width)
    fine, scale = _reduced(gray, _FINE)
    low, high = np.percentile(middle, (5, 95))
    variation = min(max(_VARIATION_SHARE * (high - low), _MIN_VARIATION), VARIATION)
    top, left, bottom, right = _fitted(fine, core, factor / scale, variation)
    if min(bottom - top, right - left) < _THIN:  # constant lines all over dark tissue
        return 0, 0, height, width
    last = fine[max(bottom - _LAST, 0) : bottom, left:right]
    is_abrupt = _varies(last, _ENDS, _ABRUPT * VARIATION).all()
    top, left, bottom, right = (scale * edge for edge in (top, left, bottom, right))
    top, bottom = _whole(top, min(bottom, height), height)
    left, right = _whole(left, min(right, width), width)
    if (top, left, right) == (0, 0, width) and not is_abrupt:
        return 0, 0, height, width
    return top, left, bottom, right


def without_blank(thumb: Gray) -> Gray:
    """Continue the tissue of a thumb (side, side) smoothly over blank surroundings.

    Blank areas have one gray level, that of blank pixels in the first row, and reach the edge: the
    corners beside a sector, or the space between two regions. Their outline is the same for all
    images of a probe.
    """
    counts = np.bincount(thumb[0], minlength=256)
    window = np.convolve(counts, np.ones(2 * _TOLERANCE + 1, np.int64), mode="same")
    level = int(window.argmax())
    if window[level] < _MIN_BLANK_TOP:
        return thumb
    near = np.abs(thumb.astype(np.int16) - level) <= _TOLERANCE
    if near.mean() < _MIN_BLANK:  # spares most images the search for connected areas
        return thumb
    labels, count = ndimage.label(near)
    reaches_edge = np.zeros(count + 1, np.bool_)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        reaches_edge[line] = True
    reaches_edge[0] = False
    blank = reaches_edge[labels]
    if not _MIN_BLANK <= blank.mean() <= _MAX_BLANK:
        return thumb
    shown = (~ndimage.binary_dilation(blank, np.ones((3, 3), np.bool_))).astype(np.float32)
    weight = ndimage.gaussian_filter(shown, _SPREAD, truncate=20)
    blurred = ndimage.gaussian_filter(thumb * shown, _SPREAD, truncate=20)
    smooth = np.rint(blurred / np.maximum(weight, 1e-6))
    return np.where(shown > 0, thumb, smooth.clip(0, 255)).astype(np.uint8)


def _all_vary(lines: Levels) -> bool:
    return bool(_varies(lines, _INNER_ENDS, VARIATION).all())


def _reduced(gray: Gray, side: int) -> tuple[Levels, int]:
    """Average an image over squares so that its longest side is at most `side`.

    Returns:
        The reduced image, and the squares' side in pixels.
    """
    factor = max(1, -(-max(gray.shape) // side))
    image = Image.fromarray(gray)
    return np.asarray(image.reduce(factor) if factor > 1 else image, np.int32), factor


def _core(coarse: Levels, gray: Gray, factor: int, step: float) -> Box | None:
    """Return the box, in pixels of the coarse image, of the textured areas that are no furniture.

    Args:
        coarse: the reduced image.
        gray: the image.
        factor: by how much it was reduced.
        step: gray levels between neighbours in textured areas.
    """
    textured = np.zeros(coarse.shape, np.uint8)
    across = np.abs(np.diff(coarse, axis=1)) > step
    down = np.abs(np.diff(coarse, axis=0)) > step
    textured[:, 1:] |= across
    textured[:, :-1] |= across
    textured[1:] |= down
    textured[:-1] |= down
    density = ndimage.uniform_filter(textured * np.uint8(9), 3, mode="nearest")
    labels, count = ndimage.label(_opened(density >= _MIN_DENSITY, _THIN))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    least = [_MIN_SIDE * side for side in coarse.shape]
    boxes = ndimage.find_objects(labels)
    largest = 0
    kept: list[tuple[slice, slice]] = []
    for part in np.argsort(-sizes, kind="stable").tolist():
        if sizes[part] < _MIN_PART * largest:
            break
        if any(s.stop - s.start < side for s, side in zip(boxes[part], least, strict=True)):
            continue
        rows, columns = (slice(side.start * factor, side.stop * factor) for side in boxes[part])
        if _share_of_level(gray[rows, columns]) <= _MAX_BACKGROUND:
            largest = largest or int(sizes[part])
            kept.append(boxes[part])
    if not kept:
        return None
    return (
        min(rows.start for rows, _ in kept),
        min(columns.start for _, columns in kept),
        max(rows.stop for rows, _ in kept),
        max(columns.stop for _, columns in kept),
    )


def _opened(mask: Mask, width: int) -> Mask:
    """Return the opening of a mask (h, w) with a square of an odd width."""
    padded = np.pad(mask, width, mode="edge").astype(np.uint8)
    for extreme in (ndimage.minimum_filter1d, ndimage.maximum_filter1d):
        for axis in (0, 1):
            padded = extreme(padded, width, axis=axis)
    return np.asarray(padded[width:-width, width:-width], np.bool_)


def _share_of_level(part: Gray) -> float:
    """Return the share of the most frequent gray level, and its neighbours, in an area (h, w)."""
    counts = np.bincount(part[::2, ::2].ravel(), minlength=256)
    near = np.convolve(counts, np.ones(3, np.int64), mode="same")
    return float(near.max() / counts.sum())


def _fitted(fine: Levels, core: Box, scale: float, variation: float) -> Box:
    """Fit the core's box to the constant lines around the tissue.

    Args:
        fine: a reduced image.
        core: the box in a coarser image.
        scale: pixels of `fine` for one of the coarser image.
        variation: as `VARIATION`.
    """
    top, left, bottom, right = (round(scale * edge) for edge in core)
    for _ in range(2):  # the second time without furniture that the first cut off
        if bottom <= top or right <= left:
            break
        top, bottom = _between_constant(_varies(fine[:, left:right], _ENDS, variation), top, bottom)
        left, right = _between_constant(_varies(fine[top:bottom].T, _ENDS, variation), left, right)
    return top, left, bottom, right


def _varies(lines: Levels, ends: float, variation: float) -> Mask:
    """Return for each line (n, m) whether it varies without its lowest and highest pixels.

    Args:
        lines: the pixels.
        ends: the share of a line's pixels to leave off at either end.
        variation: as `VARIATION`.
    """
    last = lines.shape[1] - 1
    cut = int(ends * (last + 1))
    ordered = np.sort(lines, axis=1)
    return np.asarray(ordered[:, last - cut] - ordered[:, cut] > variation)


def _between_constant(varies: Mask, start: int, stop: int) -> tuple[int, int]:
    """Move both ends of a range of lines to the nearest constant line at its rim or beyond it."""
    rim = max(int(_RIM * (stop - start)), 1)
    constant = np.flatnonzero(~varies)
    before, after = constant[constant < start + rim], constant[constant >= stop - rim]
    first = int(before[-1]) + 1 if len(before) else 0
    last = int(after[0]) if len(after) else len(varies)
    return first, last


def _whole(start: int, stop: int, side: int) -> tuple[int, int]:
    """Return a range, or the whole side if the range leaves off next to nothing."""
    if start <= _WHOLE * side and stop >= (1 - _WHOLE) * side:
        return 0, side
    return start, stop
