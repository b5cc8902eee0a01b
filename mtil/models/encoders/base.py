"""The interface of all encoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

STRIDES = (2, 4, 8, 16, 32)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(nn.Module, ABC):
    """Converts a gray image in [0, 1] into five maps, at the strides in `STRIDES`.

    Subclasses set `channels` and `stem_channels` and implement `features`.
    """

    # An encoder never reads the prior map. The network projects the prior map to `stem_bias`; the
    # encoder then has exactly the parameters of the pretrained model.

    channels: tuple[int, int, int, int, int]
    """Channels of the five maps, finest first."""
    stem_channels: int
    """Number of channels of `stem_bias`."""
    num_draws: int = 0
    """Uniform numbers an image that `features` reads in training."""
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(
        self,
        image: Float[Tensor, "b 1 h w"],
        stem_bias: Float[Tensor, "b c h2 w2"] | None = None,
        draws: Float[Tensor, "b num_draws"] | None = None,
    ) -> tuple[Tensor, ...]:
        """Return the five maps, finest first.

        Args:
            image: gray values in [0, 1].
            stem_bias: added at stride 2.
            draws: uniform numbers in [0, 1) for stochastic depth; None drops nothing.
        """
        pixels = (image - self.mean) / self.std  # broadcast to (b, 3, h, w)
        return self.features(pixels, stem_bias, draws)

    @abstractmethod
    def features(
        self, pixels: Float[Tensor, "b 3 h w"], stem_bias: Tensor | None, draws: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the five maps of normalised pixels, finest first."""
