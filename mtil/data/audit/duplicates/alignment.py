"""Align pairs of thumbs by least squares, and correlate the aligned thumbs.

Crops and resizes shift and scale each axis separately, so a motion from a thumb to its copy has
four numbers: x' = tx + sx x and y' = ty + sy y, with both axes running from -1 to 1.
"""

import numpy as np
import numpy.typing as npt

MIN_OVERLAP = 0.55
"""Smallest share of a thumb shown by both thumbs. Crops of 8 per cent a side leave 0.7, and coarse
pixels at the edges reduce the share further."""
_MAX_SHIFT = 0.4
_MAX_SCALE = 1.35
"""Bounds of a motion; wider than the effect of crops of a tenth a side."""
_MAX_CHANGE = 0.06
"""Bound of a step: two pixels of a thumb. Slopes predict no further."""

_Float = npt.NDArray[np.float32]


def fit_motion(fixed: _Float, moving: _Float, motion: _Float, num_steps: int) -> _Float:
    """Refine motions by Gauss-Newton steps.

    Args:
        fixed: (p, side, side) flattened thumbs.
        moving: (p, side, side) flattened thumbs.
        motion: (p, 4) first guess of tx, sx, ty, sy from fixed to moving.
        num_steps: number of steps.

    Returns:
        The refined motions (p, 4).
    """
    for _ in range(num_steps):
        motion = _gauss_newton_step(fixed, moving, motion)
    return motion


def correlate_aligned(fixed: _Float, moving: _Float, motion: _Float) -> _Float:
    """Return the correlation of fixed and moving images (p, side, side) under motions (p, 4).

    Returns:
        Normalised cross-correlation (p,) over the overlap; 0 if the overlap is below `MIN_OVERLAP`.
    """
    warped, valid = _warp(moving, motion)
    share = valid.mean(axis=(1, 2))
    fixed_centred, moving_centred = _centre(fixed, valid), _centre(warped, valid)
    norm = np.sqrt(
        (fixed_centred * fixed_centred).sum(axis=(1, 2))
        * (moving_centred * moving_centred).sum(axis=(1, 2))
    )
    value = (fixed_centred * moving_centred).sum(axis=(1, 2)) / np.maximum(norm, 1e-6)
    return np.where(share >= MIN_OVERLAP, value, 0).astype(np.float32)


def average_squares(images: _Float, factor: int) -> _Float:
    """Average images (p, side, side) over squares of `factor` pixels a side."""
    count, side, _ = images.shape
    shape = (count, side // factor, factor, side // factor, factor)
    return np.asarray(images.reshape(shape).mean(axis=(2, 4)))


def _centre(images: _Float, valid: _Float) -> _Float:
    total = np.maximum(valid.sum(axis=(1, 2), keepdims=True), 1)
    mean = (images * valid).sum(axis=(1, 2), keepdims=True) / total
    return np.asarray((images - mean) * valid)


def _gauss_newton_step(fixed: _Float, moving: _Float, motion: _Float) -> _Float:
    """Take a Gauss-Newton step."""
    count, side, _ = fixed.shape
    warped, valid = _warp(moving, motion)
    fixed_centred, moving_centred = _centre(fixed, valid), _centre(warped, valid)
    gain = (fixed_centred * moving_centred).sum(axis=(1, 2)) / np.maximum(
        (moving_centred * moving_centred).sum(axis=(1, 2)), 1e-6
    )
    # Copies may differ in contrast: match the gain before the images are subtracted.
    moving_centred *= np.clip(gain, 0.3, 3)[:, None, None]
    grid = _grid(side)
    down, across = np.gradient((fixed_centred + moving_centred) / 2, 2 / side, axis=(1, 2))
    across, down = across * valid, down * valid
    columns = np.stack([across, across * grid, down, down * grid[:, None]], axis=1)
    columns = columns.reshape(count, 4, side * side)
    normal = columns @ columns.swapaxes(1, 2)
    # A ridge keeps the equations solvable for thumbs with little structure.
    ridge = 1e-3 * np.trace(normal, axis1=1, axis2=2)[:, None, None] + 1e-3
    target = columns @ (fixed_centred - moving_centred).reshape(count, side * side, 1)
    change = np.linalg.solve(normal + ridge * np.eye(4, dtype=np.float32), target)[..., 0]
    motion = motion + change.clip(-_MAX_CHANGE, _MAX_CHANGE)
    motion[:, [1, 3]] = motion[:, [1, 3]].clip(1 / _MAX_SCALE, _MAX_SCALE)
    motion[:, [0, 2]] = motion[:, [0, 2]].clip(-_MAX_SHIFT, _MAX_SHIFT)
    return np.asarray(motion, dtype=np.float32)


def _warp(moving: _Float, motion: _Float) -> tuple[_Float, _Float]:
    """Return the moving images on the grid of the fixed images, and 1 inside the moving images."""
    side = moving.shape[-1]
    across, in_x = _interpolation_weights(motion[:, 0], motion[:, 1], side)
    down, in_y = _interpolation_weights(motion[:, 2], motion[:, 3], side)
    warped = np.asarray(down @ moving @ across.swapaxes(1, 2), dtype=np.float32)
    return warped, in_y[:, :, None] * in_x[:, None, :]


def _interpolation_weights(shift: _Float, scale: _Float, side: int) -> tuple[_Float, _Float]:
    """Return linear interpolation weights (p, side, side) along an axis, and 1 inside."""
    position = shift[:, None] + scale[:, None] * _grid(side)
    pixel_position = (position + 1) * (side / 2) - 0.5
    pixel = np.arange(side, dtype=np.float32)
    weights = (1 - np.abs(pixel_position[:, :, None] - pixel)).clip(min=0).astype(np.float32)
    inside = (np.abs(position) <= 1 - 1 / side).astype(np.float32)
    return weights, inside


def _grid(side: int) -> _Float:
    return ((np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1).astype(np.float32)
