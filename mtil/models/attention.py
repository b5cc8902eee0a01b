"""Attention over positions and over channels, as functions of queries, keys and values.

Tokens have the layout (batch, heads, positions, channels of a head).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mtil.models.layers import average_to_height

_MIN_NORM = 1e-12

PRIOR_FLOOR = 0.01
"""The prior probability below which all pixels count as equally unlikely."""


def split_heads(tokens: Float[Tensor, "b n c"], num_heads: int) -> Float[Tensor, "b m n d"]:
    """Split the channels of tokens into heads."""
    batch, positions, channels = tokens.shape
    return tokens.view(batch, positions, num_heads, channels // num_heads).transpose(1, 2)


def merge_heads(tokens: Float[Tensor, "b m n d"]) -> Float[Tensor, "b n c"]:
    """Merge the heads of tokens into channels."""
    return tokens.transpose(1, 2).flatten(2)


def location_attention(
    query: Float[Tensor, "b m n d"],
    key: Float[Tensor, "b m k d"],
    value: Float[Tensor, "b m k d"],
    bias: Float[Tensor, "b m 1 k"] | None = None,
) -> Float[Tensor, "b m n d"]:
    """Compute attention over positions: a position gathers values by query-key similarity.

    Args:
        query: queries of the receiving task.
        key: keys of the sending task; key positions carry the location information.
        value: values of the sending task.
        bias: added to the logits of the keys, equal for all queries.
    """
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value)
    # The bias is an additional channel of the keys: an attention mask that learns would rule out
    # the fused kernels.
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
    """Compute attention over channels: a channel gathers channels by query-key similarity.

    Cross-covariance attention (El-Nouby et al. 2021). Channels are compared over all positions.
    """
    # Cosines instead of dot products: the result does not depend on the number of positions.
    norms = [torch.linalg.vector_norm(x, dim=-2).clamp_min(_MIN_NORM) for x in (query, key)]
    cosine = query.transpose(-2, -1) @ key / (norms[0][..., None] * norms[1][..., None, :])
    weight: Tensor = (cosine * temperature).softmax(dim=-1)  # (b, m, d, d)
    return value @ weight.to(value.dtype).transpose(-2, -1)


def prior_log_bias(prior: Float[Tensor, "b 1 h w"], height: int) -> Float[Tensor, "b 1 1 k"]:
    """Return the prior as a bias by position: 0 without lesion to 1 for a certain lesion.

    The bias is log(1 + p / `PRIOR_FLOOR`), scaled to [0, 1].

    Args:
        prior: lesion probability p from the previous round.
        height: number of rows of the key map.
    """
    cells = average_to_height(prior, height).flatten(1)[:, None, None]
    return (cells / PRIOR_FLOOR).log1p() / math.log1p(1 / PRIOR_FLOOR)
