"""Which part of an image is tissue: the rest of a screen takes no part in a comparison.

Tissue is textured in every place, a screen's background is constant or smooth, and its furniture
(text, scales, a gray bar, a logo) is thin or lies on a constant background.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""First row, first column, and the row and the column behind the last."""

_COARSE = 96
_FINE = 128
_MARK = 40
_STEPS = (4.0, 1.5)
_VARIATION = 6.0
_FULL = 0.03


def find_box(gray: Gray) -> Box | None:
    """Return the box of an image's (h, w) tissue, or None if there is none."""
    height, width = gray.shape
    fine, scale = _reduced(gray, _FINE)
    if _varies(fine, 0.2).all() and _varies(fine.T, 0.2).all():
        return 0, 0, height, width
    coarse, factor = _reduced(gray, _COARSE)
    for step in _STEPS:
        box = _core(coarse, gray, factor, step)
        if box is not None:
            break
    else:
        marked = coarse.max() - np.median(coarse) > _MARK
        return None if marked else (0, 0, height, width)
    fine, scale = _reduced(gray, 2 * _FINE)
    top, left, bottom, right = _grown(fine, _scaled(box, factor / scale, fine.shape))
    top, left, bottom, right = top * scale, left * scale, bottom * scale, right * scale
    bottom, right = min(bottom, height), min(right, width)
    if top <= _FULL * height and bottom >= (1 - _FULL) * height:
        top, bottom = 0, height
    if left <= _FULL * width and right >= (1 - _FULL) * width:
        left, right = 0, width
    return top, left, bottom, right


def _reduced(gray: Gray, side: int) -> tuple[npt.NDArray[np.int32], int]:
    factor = max(1, -(-max(gray.shape) // side))
    image = Image.fromarray(gray)
    return np.asarray(image.reduce(factor) if factor > 1 else image, np.int32), factor


def _scaled(box: Box, scale: float, shape: tuple[int, ...]) -> Box:
    top, left, bottom, right = (round(edge * scale) for edge in box)
    return max(top, 0), max(left, 0), min(bottom, shape[0]), min(right, shape[1])


def _core(coarse: npt.NDArray[np.int32], gray: Gray, factor: int, step: float) -> Box | None:
    textured = np.zeros(coarse.shape, np.uint8)
    across = np.abs(np.diff(coarse, axis=1)) > step
    down = np.abs(np.diff(coarse, axis=0)) > step
    textured[:, 1:] |= across
    textured[:, :-1] |= across
    textured[1:] |= down
    textured[:-1] |= down
    dense = ndimage.uniform_filter(textured * np.uint8(90), 3, mode="nearest") >= 50
    opened = ndimage.binary_opening(np.pad(dense, 2, mode="edge"), np.ones((3, 3)))[2:-2, 2:-2]
    labels, count = ndimage.label(opened)
    if not count:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    boxes = ndimage.find_objects(labels)
    best: list[tuple[int, int]] = []
    for index in np.argsort(-sizes, kind="stable").tolist():
        if sizes[index] < 0.25 * (best[0][0] if best else sizes.max()):
            break
        rows, columns = boxes[index]
        part = gray[
            rows.start * factor : rows.stop * factor, columns.start * factor : columns.stop * factor
        ]
        if not _is_furniture(part):
            best.append((int(sizes[index]), index))
    if not best:
        return None
    kept = [boxes[index] for _, index in best]
    return (
        min(rows.start for rows, _ in kept),
        min(columns.start for _, columns in kept),
        max(rows.stop for rows, _ in kept),
        max(columns.stop for _, columns in kept),
    )


def _is_furniture(part: Gray) -> bool:
    """Say whether most of a part (h, w) is a constant background."""
    counts = np.bincount(part[::2, ::2].ravel(), minlength=256)
    near = np.convolve(counts, np.ones(3, np.int64), mode="same")
    return bool(near.max() > 0.65 * counts.sum())


def _grown(fine: npt.NDArray[np.int32], box: Box) -> Box:
    top, left, bottom, right = box
    for _ in range(2):
        rows = _varies(fine[:, left:right], 0.05)
        top, bottom = _extended(rows, top, bottom)
        columns = _varies(fine[top:bottom].T, 0.05)
        left, right = _extended(columns, left, right)
    return top, left, bottom, right


def _varies(lines: npt.NDArray[np.int32], ends: float) -> Mask:
    """Say of each line (n, m) whether it is not constant."""
    count = lines.shape[1]
    cut = int(ends * count)
    ordered = np.sort(lines, axis=1)
    return np.asarray(ordered[:, count - 1 - cut] - ordered[:, cut] > _VARIATION)


def _extended(varies: Mask, start: int, stop: int) -> tuple[int, int]:
    middle = (start + stop) // 2
    before = np.flatnonzero(~varies[:middle])
    after = np.flatnonzero(~varies[middle:])
    inner = np.flatnonzero(varies[start:stop])
    if not len(inner):
        return start, stop
    before = before[before < start]
    after = after[after + middle >= stop]
    first = int(before[-1]) + 1 if len(before) else 0
    last = middle + int(after[0]) if len(after) else len(varies)
    if first == start:  # nothing to add: the core may end in a constant line
        first = start + int(inner[0])
    if last == stop:
        last = start + int(inner[-1]) + 1
    return first, last
