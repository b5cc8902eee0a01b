"""Self-task and cross-task attention between the segmentation and the classification stream."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtil.config import AttentionConfig
from mtil.models.attention import (
    location_attention,
    merge_heads,
    prior_log_bias,
    semantic_attention,
    split_heads,
)

Task = Literal["segmentation", "classification"]
Heads = tuple[Tensor, Tensor, Tensor]


class Fusion(nn.Module):
    """Joins the self- and the cross-task message of each head.

    The gate is predicted from the pooled features of both tasks; it starts at one half.
    """

    def __init__(self, kind: Literal["gate", "concat", "sum"], num_heads: int, pooled: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "gate":
            self.gate = nn.Linear(pooled, num_heads)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(
        self,
        own: Float[Tensor, "b m n d"],
        other: Float[Tensor, "b m n d"],
        pooled: Float[Tensor, "b p"],
    ) -> Float[Tensor, "b m2 n d"]:
        """Return the joined message; a concatenation has twice as many heads."""
        if self.kind == "concat":
            return torch.cat([own, other], dim=1)
        if self.kind == "sum":
            return own + other
        gate = self.gate(pooled).sigmoid()[:, :, None, None]
        return torch.lerp(other, own, gate.to(own.dtype))


class Receiver(nn.Module):
    """What one task receives: messages from itself, from the other task, or from both."""

    def __init__(
        self, config: AttentionConfig, channels: int, pooled: int, *, own: bool, other: bool,
        prior: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.own, self.other = own, other
        self.location = config.form != "semantic"
        self.semantic = config.form != "location"
        self.num_heads = config.num_heads
        self.query = nn.Linear(channels, config.width)
        if self.semantic:
            self.temperature = nn.Parameter(torch.ones(config.num_heads, 1, 1))
        self.prior_weight: nn.Parameter | None = None
        if prior and self.location:
            self.prior_weight = nn.Parameter(torch.zeros(config.num_heads, 1, 1))
        num_messages = config.num_heads * (self.location + self.semantic)
        width = config.width * (self.location + self.semantic)
        self.fusion = Fusion(config.fusion, num_messages, pooled) if own and other else None
        joined = width * 2 if own and other and config.fusion == "concat" else width
        self.output = nn.Linear(joined, channels)
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        own: tuple[Tensor, Tensor] | None,
        other: tuple[Tensor, Tensor] | None,
        pooled: Float[Tensor, "b p"],
        bias: Float[Tensor, "b 1 1 n"],
    ) -> Float[Tensor, "b n c"]:
        """Return what is to be added to the task's features; zero at initialisation.

        Args:
            tokens: the task's normalised features.
            own: the task's own keys and values, if it listens to itself.
            other: the other task's keys and values, if it listens to them.
            pooled: both tasks' features, averaged over positions.
            bias: the prior map as a bias on keys.
        """
        query = split_heads(self.query(tokens), self.num_heads)
        messages = [
            self.attend(query, key, value, bias)
            for key, value in (pair for pair in (own, other) if pair is not None)
        ]
        message = messages[0] if self.fusion is None else self.fusion(*messages, pooled)
        update: Tensor = self.scale * self.output(merge_heads(message))
        return update

    def attend(
        self,
        query: Float[Tensor, "b m n d"],
        key: Float[Tensor, "b m n d"],
        value: Float[Tensor, "b m n d"],
        bias: Float[Tensor, "b 1 1 n"],
    ) -> Float[Tensor, "b m2 n d"]:
        """Return the location and semantic messages of one source, stacked as heads."""
        parts = []
        if self.location:
            weighted = None if self.prior_weight is None else self.prior_weight * bias
            parts.append(location_attention(query, key, value, weighted))
        if self.semantic:
            parts.append(semantic_attention(query, key, value, self.temperature))
        return torch.cat(parts, dim=1)


class TaskInteraction(nn.Module):
    """Exchanges location and semantic information between two streams of the same size.

    Each task has one set of keys and values, read by itself (self-task attention) and by the other
    task (cross-task attention). Both updates are computed from the same features and added with a
    scale per channel that starts at zero, so that the block starts as the identity. Positions need
    no embedding: the convolutions before have padded edges and give features that know them.
    """

    def __init__(self, config: AttentionConfig, channels: dict[Task, int], *, prior: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.hears = listeners(config)
        self.norm = nn.ModuleDict({task: nn.LayerNorm(width) for task, width in channels.items()})
        self.source = nn.ModuleDict()
        self.receiver = nn.ModuleDict()
        for task, (own, other) in self.hears.items():
            if own or self.hears[opposite(task)][1]:
                self.source[task] = nn.Linear(channels[task], 2 * config.width)
            if own or other:
                self.receiver[task] = Receiver(
                    config, channels[task], sum(channels.values()), own=own, other=other,
                    prior=prior,
                )  # fmt: skip

    def forward(
        self,
        segmentation: Float[Tensor, "b c h w"],
        classification: Float[Tensor, "b d h w"],
        prior: Float[Tensor, "b 1 h2 w2"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d h w"]]:
        """Return both streams after the exchange."""
        maps: dict[Task, Tensor] = {
            "segmentation": segmentation,
            "classification": classification,
        }
        tokens = {task: self.norm[task](to_tokens(x)) for task, x in maps.items()}
        pooled = torch.cat([x.mean(dim=1) for x in tokens.values()], dim=-1)
        bias = prior_log_bias(prior, segmentation.shape[-2])
        pairs = {
            task: self.keys_and_values(task, tokens[task]) for task in maps if task in self.source
        }
        for task, (own, other) in self.hears.items():
            if own or other:
                update = self.receiver[task](
                    tokens[task],
                    pairs[task] if own else None,
                    pairs[opposite(task)] if other else None,
                    pooled,
                    bias,
                )
                maps[task] = maps[task] + to_map(update, maps[task])
        return maps["segmentation"], maps["classification"]

    def keys_and_values(
        self, task: Task, tokens: Float[Tensor, "b n c"]
    ) -> tuple[Float[Tensor, "b m n d"], Float[Tensor, "b m n d"]]:
        """Return what a task offers to whoever listens."""
        key, value = self.source[task](tokens).chunk(2, dim=-1)
        return split_heads(key, self.num_heads), split_heads(value, self.num_heads)


def opposite(task: Task) -> Task:
    """Return the other task."""
    return "classification" if task == "segmentation" else "segmentation"


def listeners(config: AttentionConfig) -> dict[Task, tuple[bool, bool]]:
    """Say for each task whether it listens to itself and whether to the other task."""
    own = config.kind in ("self", "both")
    cross = config.kind in ("cross", "both")
    return {
        "segmentation": (own, cross and config.direction != "seg_to_cls"),
        "classification": (own, cross and config.direction != "cls_to_seg"),
    }


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Return a map's positions as tokens."""
    return x.flatten(2).transpose(1, 2)


def to_map(
    tokens: Float[Tensor, "b n c"], like: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """Return tokens as a map of the given shape."""
    return tokens.transpose(1, 2).reshape(like.shape)
