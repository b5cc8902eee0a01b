"""Layers and resampling functions shared by several modules of the network."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, if `activation`, ReLU."""

    # Batch instead of group normalisation: the encoder uses batch normalisation anyway. On a CPU,
    # batch normalisation of the largest map was twice as fast as eight groups. Folded into the
    # convolution, batch normalisation costs nothing at inference.

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, activation: bool = True
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers = [conv, nn.BatchNorm2d(out_channels)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activation else []))


def keep_factors(
    draws: Float[Tensor, "*shape"], rate: float, dtype: torch.dtype
) -> Float[Tensor, "*shape"]:
    """Return the factors of dropout: 0 with probability `rate`, else 1 / (1 - rate).

    Args:
        draws: uniform numbers in [0, 1).
        rate: from 0 to below 1.
        dtype: type of the factors.
    """
    return (draws >= rate).to(dtype) / (1 - rate)


def upsample_double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Double height and width by bilinear interpolation."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def average_to_height(x: Float[Tensor, "b c h w"], height: int) -> Float[Tensor, "b c h2 w2"]:
    """Average a map over square cells, down to `height` rows."""
    factor = x.shape[-2] // height
    return x if factor == 1 else F.avg_pool2d(x, factor)


def widen(values: Tensor) -> Tensor:
    """Return bf16 values as float32; values in float32 or float64 stay unchanged."""
    return values.float() if values.dtype == torch.bfloat16 else values
