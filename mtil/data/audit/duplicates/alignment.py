"""How alike two thumbs are once one is laid over the other, found by least squares.

Crops and resizes move and scale each axis by itself, so the map from one thumb to the other has
four numbers: x' = tx + sx x and y' = ty + sy y, with both axes running from -1 to 1.
"""

import numpy as np
import numpy.typing as npt

MIN_OVERLAP = 0.55
"""Least share of a thumb that both show: crops of 8 per cent a side leave 0.7, of which coarse
pixels at the edges take more."""
_MAX_SHIFT = 0.4
_MAX_SCALE = 1.35
"""Bounds of the map, past what crops of a tenth a side do to it."""
_MAX_CHANGE = 0.06
"""Bound of one step: two pixels of a thumb, as far as its slopes say anything."""

_Float = npt.NDArray[np.float32]


def fit(fixed: _Float, moving: _Float, motion: _Float, num_steps: int) -> _Float:
    """Refine first guesses of the maps by Gauss-Newton steps.

    Args:
        fixed: (p, side, side), evened out.
        moving: (p, side, side), likewise.
        motion: (p, 4) tx, sx, ty, sy from fixed to moving.
        num_steps: how many steps.

    Returns:
        The maps (p, 4).
    """
    for _ in range(num_steps):
        motion = _step(fixed, moving, motion)
    return motion


def correlation(fixed: _Float, moving: _Float, motion: _Float) -> _Float:
    """Return the correlation of fixed and moving images (p, side, side) under maps (p, 4).

    Returns:
        Normalised cross-correlation (p,) where both show something; 0 if that is too little.
    """
    warped, valid = _warped(moving, motion)
    share = valid.mean(axis=(1, 2))
    a, b = _centred(fixed, valid), _centred(warped, valid)
    norm = np.sqrt((a * a).sum(axis=(1, 2)) * (b * b).sum(axis=(1, 2)))
    value = (a * b).sum(axis=(1, 2)) / np.maximum(norm, 1e-6)
    return np.where(share >= MIN_OVERLAP, value, 0).astype(np.float32)


def reduced(images: _Float, factor: int) -> _Float:
    """Average images (p, side, side) over squares."""
    count, side, _ = images.shape
    shape = (count, side // factor, factor, side // factor, factor)
    return np.asarray(images.reshape(shape).mean(axis=(2, 4)))


def _centred(images: _Float, valid: _Float) -> _Float:
    total = np.maximum(valid.sum(axis=(1, 2), keepdims=True), 1)
    mean = (images * valid).sum(axis=(1, 2), keepdims=True) / total
    return np.asarray((images - mean) * valid)


def _step(fixed: _Float, moving: _Float, motion: _Float) -> _Float:
    """Take one Gauss-Newton step."""
    count, side, _ = fixed.shape
    warped, valid = _warped(moving, motion)
    a, b = _centred(fixed, valid), _centred(warped, valid)
    gain = (a * b).sum(axis=(1, 2)) / np.maximum((b * b).sum(axis=(1, 2)), 1e-6)
    b *= np.clip(gain, 0.3, 3)[:, None, None]
    grid = _grid(side)
    down, across = np.gradient((a + b) / 2, 2 / side, axis=(1, 2))
    across, down = across * valid, down * valid
    columns = np.stack([across, across * grid, down, down * grid[:, None]], axis=1)
    columns = columns.reshape(count, 4, side * side)
    normal = columns @ columns.swapaxes(1, 2)
    ridge = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-3
    target = columns @ (a - b).reshape(count, side * side, 1)
    change = np.linalg.solve(normal + ridge * np.eye(4, dtype=np.float32), target)[..., 0]
    motion = motion + change.clip(-_MAX_CHANGE, _MAX_CHANGE)
    motion[:, [1, 3]] = motion[:, [1, 3]].clip(1 / _MAX_SCALE, _MAX_SCALE)
    motion[:, [0, 2]] = motion[:, [0, 2]].clip(-_MAX_SHIFT, _MAX_SHIFT)
    return np.asarray(motion, dtype=np.float32)


def _warped(moving: _Float, motion: _Float) -> tuple[_Float, _Float]:
    """Return the moving images on the fixed ones' grid, and 1 where they show something."""
    side = moving.shape[-1]
    across, in_x = _interpolation(motion[:, 0], motion[:, 1], side)
    down, in_y = _interpolation(motion[:, 2], motion[:, 3], side)
    warped = np.asarray(down @ moving @ across.swapaxes(1, 2), dtype=np.float32)
    return warped, in_y[:, :, None] * in_x[:, None, :]


def _interpolation(shift: _Float, scale: _Float, side: int) -> tuple[_Float, _Float]:
    """Return linear interpolation (p, side, side) along an axis, and where it is inside."""
    at = shift[:, None] + scale[:, None] * _grid(side)
    place = (at + 1) * (side / 2) - 0.5
    pixel = np.arange(side, dtype=np.float32)
    weights = (1 - np.abs(place[:, :, None] - pixel)).clip(min=0).astype(np.float32)
    inside = (np.abs(at) <= 1 - 1 / side).astype(np.float32)
    return weights, inside


def _grid(side: int) -> _Float:
    return ((np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1).astype(np.float32)
