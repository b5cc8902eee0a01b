"""The classification stream and the classification head."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.config import HeadConfig
from mtil.models.layers import ConvNorm, average_to_height, keep_factors, upsample_double

RING_RADIUS = 3
"""Width of the ring around the lesion, in pixels at stride 4."""
SHRINKAGE = 0.1
"""Weight of the plain average in a region average, in cells; dominates in an empty region."""


class StreamStage(nn.Module):
    """A level of the classification stream: encoder features plus the upsampled coarser level."""

    def __init__(self, encoder_channels: int, channels: int) -> None:
        super().__init__()
        self.lateral = ConvNorm(encoder_channels, channels)

    def forward(
        self, encoder: Float[Tensor, "b c h w"], coarser: Float[Tensor, "b d h2 w2"] | None
    ) -> Float[Tensor, "b d h w"]:
        """Return the map of the level; `coarser` is None at the coarsest level."""
        x: Tensor = self.lateral(encoder)
        return x if coarser is None else x + upsample_double(coarser)


class ClassificationHead(nn.Module):
    """Pools the levels of the stream and predicts the logits of malignant and of a lesion."""

    num_draws: int
    """Uniform numbers an image for dropout: one per hidden channel, 0 without dropout."""

    def __init__(self, config: HeadConfig, channels: int, num_levels: int) -> None:
        super().__init__()
        self.by_region = config.pooling == "mask"
        self.detach_mask = config.detach_mask
        num_pools = num_levels + 3 * self.by_region
        self.hidden = nn.Linear(num_pools * channels, channels)
        self.zoom = nn.Parameter(torch.zeros(channels))
        self.dropout = config.dropout
        self.num_draws = channels if config.dropout > 0 else 0
        self.output = nn.Linear(channels, 2)
        nn.init.normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        levels: Sequence[Tensor],
        mask: Float[Tensor, "b 1 h w"],
        draws: Float[Tensor, "b num_draws"] | None = None,
        zoom: Float[Tensor, "b"] | None = None,
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Return the logit of malignant, and the logit of a lesion in the image.

        Args:
            levels: maps of the stream, coarsest first.
            mask: lesion logits at stride 2.
            draws: a uniform number in [0, 1) per hidden channel, for dropout; None or no columns
                drops nothing.
            zoom: enlargement of the image in octaves; None equals all zeros.
        """
        pools = [level.mean(dim=(2, 3)) for level in levels]
        if self.by_region:
            logits = mask.detach() if self.detach_mask else mask
            weights = region_shares(logits.sigmoid(), levels[-1].shape[-2])
            pools.append(pool_regions(levels[-1], weights).flatten(1))
        hidden = self.hidden(torch.cat(pools, dim=1))
        if zoom is not None:
            hidden = hidden + zoom[:, None] * self.zoom
        hidden = F.relu(hidden)
        if draws is not None and self.num_draws:
            hidden = hidden * keep_factors(draws, self.dropout, hidden.dtype)
        malignant, presence = self.output(hidden).unbind(dim=1)
        return malignant, presence


def region_shares(prob: Float[Tensor, "b 1 h w"], height: int) -> Float[Tensor, "b 3 h2 w2"]:
    """Return the shares of lesion, surrounding ring and background in every cell; the sum is 1.

    Args:
        prob: lesion probability at stride 2.
        height: number of rows of the returned map.
    """
    lesion = F.avg_pool2d(prob, 2)
    dilated = F.max_pool2d(lesion, 2 * RING_RADIUS + 1, stride=1, padding=RING_RADIUS)
    return average_to_height(torch.cat([lesion, dilated - lesion, 1 - dilated], dim=1), height)


def pool_regions(
    x: Float[Tensor, "b c h w"], weights: Float[Tensor, "b r h w"]
) -> Float[Tensor, "b r c"]:
    """Average a map over soft regions; an empty region gets the plain average of the map."""
    values = x.flatten(2).transpose(1, 2)  # (b, h*w, c)
    sums = weights.flatten(2).to(x.dtype) @ values  # (b, r, c)
    area = weights.sum(dim=(2, 3))[..., None]
    return (sums + SHRINKAGE * values.mean(dim=1, keepdim=True)) / (area + SHRINKAGE)
