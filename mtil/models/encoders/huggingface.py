"""Any Hugging Face backbone with maps at strides 4, 8, 16 and 32 (extra `mtil[hf]`)."""

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
    """A `transformers` backbone; a light stem of our own adds the map at stride 2.

    Since its stem is unknown, a stem bias has twelve channels at stride 2, which are laid out as
    three channels at full resolution and added to the pixels.
    """

    stem_channels = 3 * 2 * 2

    def __init__(self, name: str, *, pretrained: bool) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.backbone = load_backbone(name, pretrained=pretrained)
        widths = probe(name, self.backbone)
        self.channels = (DETAIL_CHANNELS, *widths)
        self.detail = nn.Sequential(nn.PixelUnshuffle(2), ConvNorm(12, DETAIL_CHANNELS))

    def features(
        self, pixels: Float[Tensor, "b 3 h w"], stem_bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the five maps of normalised pixels."""
        if stem_bias is not None:
            pixels = pixels + F.pixel_shuffle(stem_bias, 2)
        return self.detail(pixels), *self.backbone(pixels).feature_maps


def load_backbone(name: str, *, pretrained: bool) -> nn.Module:
    """Load or build the backbone so that it returns the maps of its last four stages.

    Raises:
        ConfigError: if `transformers` is missing or has no such backbone.
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
        if pretrained:  # by its own class: AutoBackbone refuses folders and asks the hub first
            backbone = type(backbone).from_pretrained(name, config=config)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"`model.encoder.name` must name a Hugging Face backbone with stages, but hf:{name} "
            f"could not be loaded: {reason}"
        ) from error
    module: nn.Module = backbone
    return module


def probe(name: str, backbone: nn.Module) -> tuple[int, int, int, int]:
    """Return the channels of the four maps, after one pass over an empty image.

    Parameters that the maps do not depend on are frozen: distributed training has to know them.

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
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    total = torch.stack([level.sum() for level in maps]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    backbone.train(training)
    first, second, third, fourth = (int(level.shape[1]) for level in maps)
    return first, second, third, fourth
