"""Self-task and cross-task attention between segmentation and classification stream."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
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


class AttentionSource(NamedTuple):
    """Keys and values of a task, read by the task and by the other task."""

    key: Float[Tensor, "b m n d"]
    value: Float[Tensor, "b m n d"]
    cell_key: Float[Tensor, "b m k d"]
    """Keys averaged over square cells, for location attention."""
    cell_value: Float[Tensor, "b m k d"]
    """Values averaged over square cells."""


class MessageFusion(nn.Module):
    """Joins the self-task and the cross-task message of every head.

    `gate` interpolates with a gate predicted from the pooled features of both tasks; the gate
    starts at 0.5. `concat` and `sum` have no parameters.
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
        """Return the joined message; `concat` doubles the number of heads."""
        if self.kind == "concat":
            return torch.cat([own, other], dim=1)
        if self.kind == "sum":
            return own + other
        gate = self.gate(pooled).sigmoid()[:, :, None, None]
        return torch.lerp(other, own, gate.to(own.dtype))


class AttentionReceiver(nn.Module):
    """Computes the update of a task from self-task messages, cross-task messages, or both."""

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
        self.fusion = MessageFusion(config.fusion, num_messages, pooled) if own and other else None
        joined = width * 2 if own and other and config.fusion == "concat" else width
        self.output = nn.Linear(joined, channels)
        self.scale = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        tokens: Float[Tensor, "b n c"],
        own: AttentionSource | None,
        other: AttentionSource | None,
        pooled: Float[Tensor, "b p"],
        bias: Float[Tensor, "b 1 1 k"],
    ) -> Float[Tensor, "b n c"]:
        """Return the update to add to the features of the task; zero at initialisation.

        Args:
            tokens: normalised features of the task.
            own: keys and values of the task; None without self-task attention.
            other: keys and values of the other task; None without cross-task attention.
            pooled: features of both tasks, averaged over positions.
            bias: the prior map as a bias on cells.
        """
        query = split_heads(self.query(tokens), self.num_heads)
        messages = [
            self.attend(query, source, bias) for source in (own, other) if source is not None
        ]
        message = messages[0] if self.fusion is None else self.fusion(*messages, pooled)
        update: Tensor = self.scale * self.output(merge_heads(message))
        return update

    def attend(
        self,
        query: Float[Tensor, "b m n d"],
        source: AttentionSource,
        bias: Float[Tensor, "b 1 1 k"],
    ) -> Float[Tensor, "b m2 n d"]:
        """Return the location and semantic messages of a source, stacked as heads."""
        messages = []
        if self.location:
            weighted_bias = None if self.prior_weight is None else self.prior_weight * bias
            messages.append(
                location_attention(query, source.cell_key, source.cell_value, weighted_bias)
            )
        if self.semantic:
            messages.append(semantic_attention(query, source.key, source.value, self.temperature))
        return torch.cat(messages, dim=1)


class TaskInteraction(nn.Module):
    """Exchanges location and semantic information between two streams of equal size.

    A task has one set of keys and values, read by the task (self-task attention) and by the other
    task (cross-task attention). Location attention reads averages over cells of a coarse stride
    (spatial reduction: Wang et al. 2021); semantic attention reads all positions. Both updates are
    computed from the unchanged features. A scale per channel starts at zero: the block starts as
    the identity.
    """

    def __init__(
        self, config: AttentionConfig, channels: dict[Task, int], *, stride: int, prior: bool
    ) -> None:
        super().__init__()
        # Positions need no embedding: the padded edges of the convolutions before the block already
        # encode positions in the features.
        self.cell = max(1, config.cell_stride // stride)
        self.num_heads = config.num_heads
        self.hears = attention_inputs(config)
        self.norm = nn.ModuleDict({task: nn.LayerNorm(width) for task, width in channels.items()})
        self.source = nn.ModuleDict()
        self.receiver = nn.ModuleDict()
        for task, (own, other) in self.hears.items():
            if own or self.hears[other_task(task)][1]:
                self.source[task] = nn.Linear(channels[task], 2 * config.width)
            if own or other:
                self.receiver[task] = AttentionReceiver(
                    config, channels[task], sum(channels.values()), own=own, other=other,
                    prior=prior,
                )  # fmt: skip

    def forward(
        self,
        segmentation: Float[Tensor, "b c h w"],
        classification: Float[Tensor, "b d h w"],
        prior: Float[Tensor, "b 1 h2 w2"],
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d h w"]]:
        """Return the updated segmentation and classification features."""
        maps: dict[Task, Tensor] = {
            "segmentation": segmentation,
            "classification": classification,
        }
        tokens = {task: self.norm[task](to_tokens(x)) for task, x in maps.items()}
        pooled = torch.cat([x.mean(dim=1) for x in tokens.values()], dim=-1)
        height, width = segmentation.shape[-2:]
        bias = prior_log_bias(prior, height // self.cell)
        sources = {
            task: self.offer(task, tokens[task], height, width)
            for task in maps
            if task in self.source
        }
        for task, (own, other) in self.hears.items():
            if own or other:
                update = self.receiver[task](
                    tokens[task],
                    sources[task] if own else None,
                    sources[other_task(task)] if other else None,
                    pooled,
                    bias,
                )
                maps[task] = maps[task] + to_map(update, height, width)
        return maps["segmentation"], maps["classification"]

    def offer(
        self, task: Task, tokens: Float[Tensor, "b n c"], height: int, width: int
    ) -> AttentionSource:
        """Return keys and values of a task, by position and averaged over cells."""
        keys_values = self.source[task](tokens)
        cell_keys_values = keys_values
        if self.cell > 1:
            cell_keys_values = to_tokens(
                F.avg_pool2d(to_map(keys_values, height, width), self.cell)
            )
        return AttentionSource(
            *(
                split_heads(half, self.num_heads)
                for x in (keys_values, cell_keys_values)
                for half in x.chunk(2, dim=-1)
            )
        )


def other_task(task: Task) -> Task:
    """Return the other task."""
    return "classification" if task == "segmentation" else "segmentation"


def attention_inputs(config: AttentionConfig) -> dict[Task, tuple[bool, bool]]:
    """Return (self-task, cross-task) by task: which attention the task receives."""
    own = config.kind in ("self", "both")
    cross = config.kind in ("cross", "both")
    return {
        "segmentation": (own, cross and config.direction != "seg_to_cls"),
        "classification": (own, cross and config.direction != "cls_to_seg"),
    }


def to_tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
    """Reshape a map to tokens, a token per position."""
    return x.flatten(2).transpose(1, 2)


def to_map(tokens: Float[Tensor, "b n c"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    """Reshape tokens to a map."""
    batch, _, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(batch, channels, height, width)
