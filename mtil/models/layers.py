"""Small pieces that several parts of the network share."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution, batch normalisation and, unless told otherwise, ReLU.

    Batch and not group normalisation: the encoder has it anyway, it was twice as quick as eight
    groups on the largest map on a CPU, and at inference it costs nothing once it is folded.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, kernel: int = 3, activation: bool = True
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers = [conv, nn.BatchNorm2d(out_channels)]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if activation else []))


def double(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Return the map at twice the height and width, interpolated bilinearly."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def shrink_to(x: Float[Tensor, "b c h w"], height: int) -> Float[Tensor, "b c h2 w2"]:
    """Average a map over square cells, so that `height` rows are left."""
    factor = x.shape[-2] // height
    return x if factor == 1 else F.avg_pool2d(x, factor)
