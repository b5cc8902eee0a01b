"""Hugging Face backbones with maps at strides 4, 8, 16 and 32 (extra `mtil[hf]`)."""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.errors import ConfigError
from mtil.models.encoders.base import IMAGENET_MEAN, IMAGENET_STD, STRIDES, Encoder
from mtil.models.layers import ConvNorm

PROBE_SIZE = 64
DETAIL_CHANNELS = 24


class HuggingFaceBackbone(Encoder):
    """A `transformers` backbone; a small additional stem provides the map at stride 2."""

    # The stem of the backbone is unknown. A stem bias therefore has 12 channels at stride 2,
    # rearranged to 3 channels at full resolution and added to the pixels.

    stem_channels = 3 * 2 * 2

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = load_backbone(name, pretrained=pretrained)
        widths = probe_channels(name, self.backbone)
        self.channels = (DETAIL_CHANNELS, *widths)
        self.detail = nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(12, DETAIL_CHANNELS))

    def features(
        self, pixels: Float[Tensor, "b 3 h w"], stem_bias: Tensor | None, draws: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the five maps of normalised pixels."""
        if stem_bias is not None:
            pixels = pixels + F.pixel_shuffle(stem_bias, 2)
        return self.detail(pixels), *self.backbone(pixels).feature_maps


def load_backbone(name: str, *, pretrained: bool) -> nn.Module:
    """Load or build the backbone, with the maps of the last four stages as output.

    Raises:
        ConfigError: if `transformers` is not installed or the backbone cannot be loaded.
    """
    try:
        from transformers import AutoBackbone, AutoConfig  # an optional extra
    except ImportError:
        raise ConfigError(
            f"`model.encoder.name` hf:{name} needs the package transformers, which is not "
            "installed; run: pip install 'mtil[hf]'."
        ) from None
    try:
        config: Any = AutoConfig.from_pretrained(name)
        config = AutoConfig.from_pretrained(name, out_features=list(config.stage_names)[-4:])
        backbone: Any = AutoBackbone.from_config(config)
        # Loaded by the concrete class: `AutoBackbone` refuses folders and asks the hub first.
        if pretrained:
            backbone = type(backbone).from_pretrained(name, config=config)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`model.encoder.name` must name a Hugging Face backbone with stages, but hf:{name} "
            f"could not be loaded: {reason}"
        ) from error
    module: nn.Module = backbone
    return module


def probe_channels(name: str, backbone: nn.Module) -> tuple[int, int, int, int]:
    """Return the number of channels of the four maps, and freeze unused parameters.

    Raises:
        ConfigError: if the maps are not at strides 4, 8, 16 and 32.
    """
    training = backbone.training
    backbone.eval()
    maps = backbone(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE)).feature_maps
    strides = [PROBE_SIZE // level.shape[-2] for level in maps]
    if strides != list(STRIDES[1:]):
        raise ConfigError(
            f"An encoder must have maps at strides {list(STRIDES[1:])}, but hf:{name} has them at "
            f"{strides}; use a pyramid such as ResNet, ConvNeXt or Swin."
        )
    # Parameters without influence on the maps are frozen: distributed training waits for a gradient
    # of every trainable parameter.
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = torch.stack([level.sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    backbone.train(training)
    first, second, third, fourth = (int(level.shape[1]) for level in maps)
    return first, second, third, fourth
