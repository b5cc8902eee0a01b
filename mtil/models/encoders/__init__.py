"""Encoders: from a gray image to five maps at strides 2 to 32."""

from mtil.config import EncoderConfig
from mtil.errors import ConfigError
from mtil.models.encoders.base import STRIDES, Encoder
from mtil.models.encoders.efficientnet import LITE_VARIANTS, EfficientNetLite
from mtil.models.encoders.huggingface import HuggingFaceBackbone
from mtil.models.encoders.resnet import VARIANTS, ResNet

__all__ = ["STRIDES", "Encoder", "build_encoder"]

HUGGING_FACE = "hf:"


def build_encoder(config: EncoderConfig) -> Encoder:
    """Build the encoder named in the configuration.

    Raises:
        ConfigError: if the encoder does not exist, or has no pretrained weights, or the package
            of the weights is not installed.
        CheckpointError: if the packaged weights are damaged.
    """
    if config.name in LITE_VARIANTS:
        return EfficientNetLite(
            config.name, pretrained=config.pretrained, drop_path=config.drop_path
        )
    if config.name in VARIANTS:
        return ResNet(config.name, pretrained=config.pretrained)
    if config.name.startswith(HUGGING_FACE):
        name = config.name.removeprefix(HUGGING_FACE)
        return HuggingFaceBackbone(name, pretrained=config.pretrained)
    names = ", ".join([*LITE_VARIANTS, *VARIANTS, "hf:NAME"])
    raise ConfigError(f"`model.encoder.name` must be one of {names}, but got {config.name!r}.")
