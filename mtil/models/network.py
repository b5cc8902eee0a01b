"""The network: one encoder, a segmentation decoder and a classification stream that interact."""

import dataclasses
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtil.config import AggregationConfig, AttentionConfig, ModelConfig, PriorConfig
from mtil.models.aggregation import Aggregation
from mtil.models.classification import ClassificationHead, StreamStage
from mtil.models.encoders import STRIDES, build_encoder
from mtil.models.interaction import TaskInteraction
from mtil.models.layers import double

STREAM_CHANNELS = 128
LESION_SHARE = 0.1
"""A lesion's usual share of the image: what the untrained network says everywhere."""


class Output(NamedTuple):
    """What the network says about a batch of images."""

    mask: Float[Tensor, "b 1 h w"]
    """Logits of the lesion at the input's resolution."""
    side: tuple[Tensor, ...]
    """Logits of the lesion at strides 16, 8 and 4, each (b, 1, h / stride, w / stride)."""
    malignant: Float[Tensor, "b"]
    """Logit of malignant."""

    def as_prior(self) -> Float[Tensor, "b 1 h w"]:
        """Return what the network says of the mask as a prior map for its next pass."""
        return self.mask.detach().float().sigmoid()


class TwoTaskNetwork(nn.Module):
    """Outlines the lesion and says whether it is malignant.

    From coarse to fine, both streams take up the encoder's map of a stride and, at the strides of
    `attention.levels`, exchange what they know. Whatever the full network has beyond the baseline
    starts as the identity, and so does every path that the prior map enters by.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.baseline:
            config = as_baseline(config)
        self.encoder = build_encoder(config.encoder)
        widths = dict(zip(STRIDES, self.encoder.channels, strict=True))
        segmentation = dict(
            zip((32, 16, 8, 4, 2), (widths[32], *config.decoder_channels), strict=True)
        )
        levels = config.attention.levels if config.attention.kind != "none" else ()

        self.prior_stem: nn.Conv2d | None = None
        if config.prior.stem:
            self.prior_stem = nn.Conv2d(
                1, self.encoder.stem_channels, 3, stride=2, padding=1, bias=False
            )
            nn.init.zeros_(self.prior_stem.weight)
        self.stream = nn.ModuleDict(
            {
                str(stride): StreamStage(widths[stride], STREAM_CHANNELS)
                for stride in ((32, 16, 8) if 8 in levels else (32, 16))
            }
        )
        self.interaction = nn.ModuleDict(
            {
                str(stride): TaskInteraction(
                    config.attention,
                    {"segmentation": segmentation[stride], "classification": STREAM_CHANNELS},
                    stride=stride,
                    prior=config.prior.attention,
                )
                for stride in levels
            }
        )
        self.decoder = nn.ModuleDict(
            {
                str(stride): Aggregation(
                    config.aggregation,
                    widths[stride],
                    segmentation[2 * stride],
                    segmentation[stride],
                    prior=config.prior.aggregation,
                )
                for stride in (16, 8, 4, 2)
            }
        )
        self.logits = nn.ModuleDict(
            {str(stride): mask_layer(segmentation[stride]) for stride in (16, 8, 4, 2)}
        )
        self.head = ClassificationHead(config.head, STREAM_CHANNELS, len(self.stream))

    def forward(
        self,
        image: Float[Tensor, "b 1 h w"],
        prior: Float[Tensor, "b 1 h w"] | None = None,
    ) -> Output:
        """Run both tasks.

        Args:
            image: gray values in [0, 1]; height and width are multiples of 32.
            prior: the previous round's probability of lesion; none is the same as all zeros.
        """
        if prior is None:
            prior = torch.zeros_like(image)
        stem_bias = None if self.prior_stem is None else self.prior_stem(prior)
        maps = dict(zip(STRIDES, self.encoder(image, stem_bias), strict=True))

        segmentation, classification = maps[32], None
        logits, levels = [], []
        for stride in (32, 16, 8, 4, 2):
            name = str(stride)
            if name in self.decoder:
                segmentation = self.decoder[name](maps[stride], segmentation, prior)
            if name in self.stream:
                classification = self.stream[name](maps[stride], classification)
            if name in self.interaction:
                segmentation, classification = self.interaction[name](
                    segmentation, classification, prior
                )
            if name in self.stream:
                levels.append(classification)
            if name in self.logits:
                logits.append(self.logits[name](segmentation))
        *side, mask = logits
        return Output(double(mask), tuple(side), self.head(levels, mask))


def as_baseline(config: ModelConfig) -> ModelConfig:
    """Return the configuration with everything switched off that the baseline lacks."""
    return dataclasses.replace(
        config,
        attention=AttentionConfig(kind="none"),
        aggregation=AggregationConfig(kind="concat"),
        prior=PriorConfig(stem=False, aggregation=False, attention=False),
        head=dataclasses.replace(config.head, pooling="plain"),
    )


def mask_layer(channels: int) -> nn.Conv2d:
    """Return a layer that turns features into logits of lesion, starting at its usual share."""
    layer = nn.Conv2d(channels, 1, 1)
    nn.init.normal_(layer.weight, std=0.01)
    layer.bias = nn.Parameter(torch.full((1,), math.log(LESION_SHARE / (1 - LESION_SHARE))))
    return layer
