"""The network: an encoder, a segmentation decoder and an interacting classification stream."""

import dataclasses
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.config import AggregationConfig, AttentionConfig, ModelConfig, PriorConfig
from mtil.models.aggregation import Aggregation
from mtil.models.classification import ClassificationHead, StreamStage
from mtil.models.encoders import STRIDES, build_encoder
from mtil.models.interaction import TaskInteraction
from mtil.models.layers import upsample_double, widen

STREAM_CHANNELS = 128
LESION_SHARE = 0.1
"""Usual share of a lesion in an image; the initial lesion probability of every pixel."""


class NetworkOutput(NamedTuple):
    """Predictions for a batch of images."""

    mask: Float[Tensor, "b 1 h w"]
    """Lesion logits at the resolution of the input."""
    side: tuple[Tensor, ...]
    """Lesion logits at strides 16, 8 and 4: (b, 1, h / stride, w / stride)."""
    malignant: Float[Tensor, "b"]
    """Logit of malignant."""
    presence: Float[Tensor, "b"]
    """Logit of a lesion in the image."""

    def as_prior(self) -> Float[Tensor, "b 1 h w"]:
        """Return the predicted mask as the prior map of the next pass."""
        return widen(self.mask.detach()).sigmoid()


class TwoTaskNetwork(nn.Module):
    """Predicts the mask of the lesion, and whether it is malignant and whether there is one.

    From coarse to fine, both streams add the encoder map of a stride. At the strides in
    `attention.levels`, the streams interact. All blocks beyond the baseline, and all inputs of the
    prior map and of the enlargement, start as the identity.
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

        self.zoom_stem = nn.Parameter(torch.zeros(self.encoder.stem_channels))
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

    @property
    def num_draws(self) -> int:
        """Uniform numbers an image for a pass in training, first the encoder's, then the head's."""
        return self.encoder.num_draws + self.head.num_draws

    def forward(
        self,
        image: Float[Tensor, "b 1 h w"],
        prior: Float[Tensor, "b 1 h w"] | None = None,
        draws: Float[Tensor, "b num_draws"] | None = None,
        zoom: Float[Tensor, "b"] | None = None,
    ) -> NetworkOutput:
        """Run both tasks.

        Args:
            image: gray values in [0, 1]; height and width are multiples of 32.
            prior: lesion probability from the previous round or pass; None equals all zeros.
            draws: in training, uniform numbers in [0, 1) for stochastic depth and dropout; None
                draws the numbers from torch's global generator. Ignored in evaluation.
            zoom: enlargement of the image in octaves, 0 for a whole image; None equals all zeros.
        """
        if not self.training:
            draws = None
        elif draws is None:
            draws = torch.rand(len(image), self.num_draws, device=image.device)
        encoder_draws = None if draws is None else draws[:, : self.encoder.num_draws]
        head_draws = None if draws is None else draws[:, self.encoder.num_draws :]
        zoom = image.new_zeros(len(image)) if zoom is None else zoom
        levels, (*side, mask) = self._run_streams(image, prior, encoder_draws, zoom)
        malignant, presence = self.head(levels, mask, head_draws, zoom)
        return NetworkOutput(upsample_double(mask), tuple(side), malignant, presence)

    def explain(
        self, image: Float[Tensor, "b 1 h w"], prior: Float[Tensor, "b 1 h w"] | None = None
    ) -> Float[Tensor, "b h2 w2"]:
        """Return what each place of the image adds to the malignancy logit.

        The logit's gradient times the activations, summed over channels and levels of the
        classification stream: HiResCAM (Draelos and Carin 2020, arXiv:2011.08891). The mask is
        held fixed.

        Args:
            image: gray values in [0, 1]; height and width are multiples of 32.
            prior: lesion probability from the previous round or pass; None equals all zeros.

        Returns:
            contributions at the finest level of the stream; above 0 towards malignant.
        """
        zoom = image.new_zeros(len(image))
        with torch.no_grad():
            levels, (*_, mask) = self._run_streams(image, prior, None, zoom)
        with torch.enable_grad():
            leaves = [level.detach().requires_grad_() for level in levels]
            malignant, _ = self.head(leaves, mask.detach(), None, zoom)
            gradients = torch.autograd.grad(malignant.sum(), leaves)
        size = levels[-1].shape[-2:]
        total = levels[-1].new_zeros(len(image), *size)
        for level, gradient in zip(levels, gradients, strict=True):
            cells = (level * gradient).sum(dim=1)
            # A coarse cell shares its contribution among the finer cells.
            share = cells.shape[-1] * cells.shape[-2] / (size[0] * size[1])
            total += F.interpolate(cells[:, None], size, mode="nearest")[:, 0] * share
        return total

    def _run_streams(
        self, image: Tensor, prior: Tensor | None, encoder_draws: Tensor | None, zoom: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of the classification stream, and the lesion logits, coarsest first."""
        if prior is None:
            prior = torch.zeros_like(image)
        stem_bias = self._project_inputs(prior, zoom)
        maps = dict(zip(STRIDES, self.encoder(image, stem_bias, encoder_draws), strict=True))

        segmentation: Tensor = maps[32]
        classification: Tensor | None = None
        logits: list[Tensor] = []
        levels: list[Tensor] = []
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
                assert classification is not None
                levels.append(classification)
            if name in self.logits:
                logits.append(self.logits[name](segmentation))
        return levels, logits

    def _project_inputs(
        self, prior: Float[Tensor, "b 1 h w"], zoom: Float[Tensor, "b"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """Return what enlargement and prior map add to the encoder's stem."""
        height, width = prior.shape[-2:]
        bias = (zoom[:, None] * self.zoom_stem)[..., None, None]
        bias = bias.expand(-1, -1, height // 2, width // 2)
        return bias if self.prior_stem is None else bias + self.prior_stem(prior)


def as_baseline(config: ModelConfig) -> ModelConfig:
    """Return the configuration of the hard-sharing baseline."""
    return dataclasses.replace(
        config,
        attention=AttentionConfig(kind="none"),
        aggregation=AggregationConfig(kind="concat"),
        prior=PriorConfig(stem=False, aggregation=False, attention=False),
        head=dataclasses.replace(config.head, pooling="plain"),
    )


def mask_layer(channels: int) -> nn.Conv2d:
    """Return a layer from features to lesion logits, initialised to `LESION_SHARE`."""
    layer = nn.Conv2d(channels, 1, 1)
    nn.init.normal_(layer.weight, std=0.01)
    layer.bias = nn.Parameter(torch.full((1,), math.log(LESION_SHARE / (1 - LESION_SHARE))))
    return layer
