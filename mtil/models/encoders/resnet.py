"""ResNets with basic blocks (He et al. 2016), without packaged weights."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.errors import ConfigError
from mtil.models.encoders.base import IMAGENET_MEAN, IMAGENET_STD, Encoder

VARIANTS = {
    "resnet10_tiny": ((1, 1, 1, 1), 16),
    "resnet18": ((2, 2, 2, 2), 64),
    "resnet34": ((3, 4, 6, 3), 64),
}
"""Blocks by stage, and channels of the first stage; later stages double the channels."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the identity (after ReLU) at initialisation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Apply the block."""
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x), inplace=True)


class ResNet(Encoder):
    """A ResNet with basic blocks and without classification head."""

    def __init__(self, name: str, *, pretrained: bool) -> None:
        if pretrained:
            raise ConfigError(
                f"`model.encoder.pretrained` must be false for {name}, which has no packaged "
                "weights; set `--model.encoder.pretrained false` or use the default encoder."
            )
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        depths, width = VARIANTS[name]
        self.stem_channels = width
        self.channels = (width, width, 2 * width, 4 * width, 8 * width)
        self.conv = nn.Conv2d(3, self.stem_channels, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(self.stem_channels)
        self.stages = nn.ModuleList()
        for index, (channels, depth) in enumerate(zip(self.channels[1:], depths, strict=True)):
            blocks = [BasicBlock(width, channels, stride=1 if index == 0 else 2)]
            blocks += [BasicBlock(channels, channels, stride=1) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
            width = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(
        self, pixels: Float[Tensor, "b 3 h w"], stem_bias: Tensor | None, draws: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the five maps of normalised pixels."""
        x = self.conv(pixels)
        x = F.relu(self.norm(x if stem_bias is None else x + stem_bias), inplace=True)
        maps = [x]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return tuple(maps)
