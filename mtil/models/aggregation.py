"""The feature aggregation block: joins encoder and decoder features at a skip connection."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtil.config import AggregationConfig
from mtil.models.layers import ConvNorm, average_to_height, upsample_double

ECA_KERNEL = 5
SourcePair = tuple[Tensor, Tensor]


class ChannelGate(nn.Module):
    """Predicts a logit for every channel of both sources, encoder and decoder.

    `fab` reads the average and the maximum of both sources, `se` and `eca` only the average. `eca`
    mixes neighbouring channels only. With a prior map, the decoder features averaged under the map
    are added. All last layers start at zero: the logits are zero at initialisation.
    """

    def __init__(self, config: AggregationConfig, channels: int, *, prior: bool) -> None:
        super().__init__()
        self.kind = config.kind
        if config.kind == "eca":
            self.mix = nn.Conv1d(1, 1, ECA_KERNEL, padding=ECA_KERNEL // 2, bias=False)
            nn.init.zeros_(self.mix.weight)
        else:
            statistics = channels * (4 if config.kind == "fab" else 2)
            hidden = max(8, 2 * channels // config.reduction)
            self.squeeze = nn.Linear(statistics, hidden)
            self.excite = nn.Linear(hidden, 2 * channels)
            nn.init.zeros_(self.excite.weight)
            nn.init.zeros_(self.excite.bias)
        self.from_prior = nn.Linear(channels, 2 * channels, bias=False) if prior else None
        if self.from_prior is not None:
            nn.init.zeros_(self.from_prior.weight)

    def forward(
        self,
        encoder: Float[Tensor, "b c h w"],
        decoder: Float[Tensor, "b c h2 w2"],
        prior: Float[Tensor, "b 1 h3 w3"],
    ) -> Float[Tensor, "b 2 c"]:
        """Return the logits of the encoder channels and of the decoder channels."""
        statistics = [x.mean(dim=(2, 3)) for x in (encoder, decoder)]
        if self.kind == "fab":
            statistics += [x.amax(dim=(2, 3)) for x in (encoder, decoder)]
        # Averages lie round 0 and maxima round 5. Each kind is normalised over its channels: the
        # gate must not run to its ends, where it no longer learns, in the first epochs.
        pooled = torch.cat([F.layer_norm(x, x.shape[1:]) for x in statistics], dim=1)
        if self.kind == "eca":
            logits = self.mix(pooled[:, None])[:, 0]
        else:
            logits = self.excite(F.relu(self.squeeze(pooled)))
        if self.from_prior is not None:
            logits = logits + self.from_prior(pool_under(prior, decoder))
        return torch.stack(logits.chunk(2, dim=1), dim=1)


class Aggregation(nn.Module):
    """Joins a skip connection with decoder features and refines the result.

    Both sources are projected to `channels` and normalised. Then, by `kind`, every channel is
    weighed between both sources (`fab`), or scaled in each source (`se`, `eca`), or left unchanged
    (`concat`). Two convolutions over both sources follow, with the sum of the sources as shortcut.
    """

    # Without normalisation, features have magnitudes of 3 to 90. The gate's logits then reach 10 to
    # 40, equal for all images: the softmax switches one source of each channel off for good.

    def __init__(
        self,
        config: AggregationConfig,
        encoder_channels: int,
        decoder_channels: int,
        channels: int,
        *,
        prior: bool,
    ) -> None:
        super().__init__()
        self.kind = config.kind
        self.from_encoder = ConvNorm(encoder_channels, channels, kernel=1, activation=False)
        self.from_decoder = ConvNorm(decoder_channels, channels, kernel=1, activation=False)
        self.gate: ChannelGate | None = None
        if config.kind != "concat":
            self.gate = ChannelGate(config, channels, prior=prior)
        self.refine = nn.Sequential(
            ConvNorm(2 * channels, channels), ConvNorm(channels, channels, activation=False)
        )

    def forward(
        self,
        encoder: Float[Tensor, "b c h w"],
        decoder: Float[Tensor, "b d h2 w2"],
        prior: Float[Tensor, "b 1 h3 w3"],
    ) -> Float[Tensor, "b e h w"]:
        """Return the joined features at the size of the encoder map, twice the decoder map."""
        # Projecting the decoder before upsampling gives the same result at a quarter of the cost.
        skip, upward = self.from_encoder(encoder), self.from_decoder(decoder)
        if self.gate is not None:
            skip, upward = scale_sources(self.kind, self.gate(skip, upward, prior), skip, upward)
        upward = upsample_double(upward)
        refined = self.refine(torch.cat([skip, upward], dim=1))
        return F.relu(skip + upward + refined, inplace=True)


def scale_sources(
    kind: str,
    logits: Float[Tensor, "b 2 c"],
    encoder: Float[Tensor, "b c h w"],
    decoder: Float[Tensor, "b c h2 w2"],
) -> SourcePair:
    """Scale the channels of both sources; zero logits leave both sources unchanged.

    With `fab`, a softmax over the sources, both weights of a channel add up to 2. Otherwise the
    weights lie independently between 0 and 2.
    """
    weights = logits.softmax(dim=1) if kind == "fab" else logits.sigmoid()
    encoder_weight, decoder_weight = (2 * weights)[..., None, None].to(encoder.dtype).unbind(dim=1)
    return encoder * encoder_weight, decoder * decoder_weight


def pool_under(
    prior: Float[Tensor, "b 1 h w"], x: Float[Tensor, "b c h2 w2"]
) -> Float[Tensor, "b c"]:
    """Average a feature map under the prior map; zero for an empty prior map."""
    weight = average_to_height(prior, x.shape[-2])
    # The divisor is at least one cell: a faint prior map has a faint effect.
    return (weight * x).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1)
