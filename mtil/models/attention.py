"""Attention over positions and over channels, as functions of queries, keys and values.

Tokens are laid out (batch, heads, positions, channels of a head).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mtil.models.layers import shrink_to

_SHORTEST = 1e-12

PRIOR_FLOOR = 0.01
"""The prior probability below which all pixels count as equally unlikely."""


def split_heads(tokens: Float[Tensor, "b n c"], num_heads: int) -> Float[Tensor, "b m n d"]:
    """Lay a token's channels out as heads."""
    batch, positions, channels = tokens.shape
    return tokens.view(batch, positions, num_heads, channels // num_heads).transpose(1, 2)


def merge_heads(tokens: Float[Tensor, "b m n d"]) -> Float[Tensor, "b n c"]:
    """Lay all heads out as a token's channels."""
    return tokens.transpose(1, 2).flatten(2)


def location_attention(
    query: Float[Tensor, "b m n d"],
    key: Float[Tensor, "b m k d"],
    value: Float[Tensor, "b m k d"],
    bias: Float[Tensor, "b m 1 k"] | None = None,
) -> Float[Tensor, "b m n d"]:
    """Let every position gather values from the positions whose keys resemble its query.

    Args:
        query: of the task that receives.
        key: of the task that gives; its positions carry the location information.
        value: of the task that gives.
        bias: added to the logits of the keys.
    """
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value)
    # One more channel of the keys is the bias: a mask that learns would rule out the fused kernels.
    width = query.shape[-1]
    biased = torch.cat([key, (bias * math.sqrt(width)).transpose(-2, -1).to(key.dtype)], dim=-1)
    gathered: Tensor = F.scaled_dot_product_attention(
        F.pad(query, (0, 1), value=1.0), biased, F.pad(value, (0, 1)), scale=1 / math.sqrt(width)
    )
    return gathered[..., :width]


def semantic_attention(
    query: Float[Tensor, "b m n d"],
    key: Float[Tensor, "b m n d"],
    value: Float[Tensor, "b m n d"],
    temperature: Float[Tensor, "m 1 1"],
) -> Float[Tensor, "b m n d"]:
    """Let every channel gather the channels whose keys resemble its query over all positions.

    Cross-covariance attention (El-Nouby et al. 2021): channels are compared by their cosine, so
    that the result does not depend on the number of positions.
    """
    lengths = [torch.linalg.vector_norm(x, dim=-2).clamp_min(_SHORTEST) for x in (query, key)]
    cosine = query.transpose(-2, -1) @ key / (lengths[0][..., None] * lengths[1][..., None, :])
    weight: Tensor = (cosine * temperature).softmax(dim=-1)  # (b, m, d, d)
    return value @ weight.to(value.dtype).transpose(-2, -1)


def prior_log_bias(prior: Float[Tensor, "b 1 h w"], height: int) -> Float[Tensor, "b 1 1 k"]:
    """Return each position's log-odds of being lesion over the floor, from 0 (none) to 1 (sure).

    Args:
        prior: the previous round's map.
        height: rows of the map whose positions are the keys.
    """
    cells = shrink_to(prior, height).flatten(1)[:, None, None]
    return (cells / PRIOR_FLOOR).log1p() / math.log1p(1 / PRIOR_FLOOR)
