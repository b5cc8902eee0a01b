"""Prior maps for training, made from reference masks with random errors.

A map of a new image is wrong in ways in which a map of a training image is not: the region lies
beside the lesion, has another size, is missing, or there is a second region. A network that has
seen such errors learns to correct maps (CascadePSP, Cheng et al. 2020, arXiv:2005.02551).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mtil.training.augment import blur
from mtil.training.randomness import ImageRandomness, Purpose
from mtil.training.tensors import move_to_device

SHIFT = 0.2
"""Largest shift of a lesion along each axis, as a share of the root of its area."""
SCALE = 1.3
"""Largest enlargement of a lesion; the largest reduction is the inverse."""
ROTATION = 20.0
"""Largest rotation of a lesion in degrees."""
MISSING_SHARE = 0.15
"""Share of the maps without the lesion."""
FALSE_SHARE = 0.25
"""Share of the maps with a false region."""
FALSE_RADII = (0.04, 0.25)
"""Least and largest radius of a false region, an ellipse, as a share of the side."""
LEAST_CONFIDENCE = 0.3
"""Least probability inside a region; the largest is 1."""
SOFTNESS = 0.03
"""Radius in which edges are blurred, as a share of the side."""


class _Draws(NamedTuple):
    """Uniform numbers (b,) of a batch of maps."""

    row: Tensor
    column: Tensor
    scale: Tensor
    angle: Tensor
    confidence: Tensor
    missing: Tensor
    false: Tensor
    false_row: Tensor
    false_column: Tensor
    false_height: Tensor
    false_width: Tensor
    false_angle: Tensor
    false_confidence: Tensor


def corrupt_masks(
    mask: Float[Tensor, "b 1 s s"], random: ImageRandomness
) -> Float[Tensor, "b 1 s s"]:
    """Return a map of lesion probabilities for each reference mask, with random errors.

    A lesion is shifted, scaled and turned about its centre. Some maps lack the lesion, and some
    have a false region, as may have the maps of normal images. Both regions have a confidence of
    their own, and soft edges.

    Args:
        mask: 1 in the lesion, 0 elsewhere, or a probability.
        random: random numbers of the images.
    """
    numbers = random.uniforms(Purpose.CORRUPTION, len(_Draws._fields)).to(mask.dtype).T
    draws = _Draws(*move_to_device(numbers.contiguous(), mask.device))
    lesion = _move_lesion(mask, draws)
    lesion = lesion * _as_maps(_confidence(draws.confidence) * (draws.missing >= MISSING_SHARE))
    ellipse = _draw_ellipses(mask, draws)
    ellipse = ellipse * _as_maps(_confidence(draws.false_confidence) * (draws.false < FALSE_SHARE))
    radius = max(1, round(SOFTNESS * mask.shape[-1]))
    return blur(torch.maximum(lesion, ellipse), radius).clamp(0, 1)


def _move_lesion(mask: Float[Tensor, "b 1 s s"], draws: _Draws) -> Float[Tensor, "b 1 s s"]:
    """Return the masks with each lesion shifted, scaled and turned about its centre."""
    side = mask.shape[-1]
    area = mask.sum(dim=(1, 2, 3))
    pixels = torch.arange(side, dtype=mask.dtype, device=mask.device)
    centre = (
        torch.stack([(mask.sum(dim=(1, dim)) * pixels).sum(dim=1) for dim in (2, 3)], dim=1)
        / area.clamp_min(1)[:, None]
    )  # column, row
    # Coordinates of `grid_sample`: the image reaches from -1 to 1.
    centre = (2 * centre + 1) / side - 1
    signed = 2 * torch.stack([draws.column, draws.row], dim=1) - 1
    shift = 2 / side * SHIFT * area.sqrt()[:, None] * signed
    turned = _rotations(ROTATION * (2 * draws.angle - 1))
    back = turned.transpose(1, 2) / (SCALE ** (2 * draws.scale - 1))[:, None, None]
    offset = centre - (back @ (centre + shift)[..., None])[..., 0]
    grid = F.affine_grid(
        torch.cat([back, offset[..., None]], dim=2), list(mask.shape), align_corners=False
    )
    return F.grid_sample(mask, grid, align_corners=False)


def _draw_ellipses(mask: Float[Tensor, "b 1 s s"], draws: _Draws) -> Float[Tensor, "b 1 s s"]:
    """Return maps with an ellipse of ones each, anywhere in the image."""
    side = mask.shape[-1]
    low, high = FALSE_RADII
    radii = torch.stack([draws.false_width, draws.false_height], dim=1)
    radii = 2 * low * (high / low) ** radii
    centre = 2 * torch.stack([draws.false_column, draws.false_row], dim=1) - 1
    axis = (2 * torch.arange(side, dtype=mask.dtype, device=mask.device) + 1) / side - 1
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    positions = torch.stack([columns, rows], dim=-1).flatten(0, 1) - centre[:, None]
    turned = positions @ _rotations(180 * draws.false_angle)
    inside = (turned / radii[:, None]).square().sum(dim=2) <= 1
    return inside.to(mask.dtype).view(mask.shape)


def _rotations(degrees: Float[Tensor, "b"]) -> Float[Tensor, "b 2 2"]:
    """Return the matrices of rotations."""
    angle = degrees * (math.pi / 180)
    sine, cosine = angle.sin(), angle.cos()
    return torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)


def _confidence(draw: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    return LEAST_CONFIDENCE + (1 - LEAST_CONFIDENCE) * draw


def _as_maps(values: Float[Tensor, "b"]) -> Float[Tensor, "b 1 1 1"]:
    return values[:, None, None, None]
