"""The tree shown by a tracker: a run or a search, with rounds, folds and parts below."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtil.documents import flatten_keys

_GROUPS = {"loss_": "loss", "validation_": "validation", "learning_rate_": "learning_rate"}
_SPEED = ("seconds", "images_per_second", "data_wait_share")
_CONSTANT = ("epoch", "fold", "steps", "images", "num_workers")


@dataclass(frozen=True, kw_only=True)
class Artefact:
    """A file beside the figures of a node."""

    version: str
    """Differs between different contents."""
    read: Callable[[], bytes]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A search, trial, run, round, fold or part. A tracker shows each node as a nested run."""

    path: tuple[str, ...]
    """Names from the root, such as `("round 0", "fold 1")`; empty for the root."""
    key: str
    """Identity, equal in all processes that follow the run."""
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Configuration and origin."""
    epochs: Sequence[Mapping[str, float]] = ()
    """A record per finished epoch: the curves."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Figures without a curve."""
    artefacts: Mapping[str, Artefact] = field(default_factory=dict)
    """Files by name."""
    is_finished: bool = False

    @property
    def parent(self) -> tuple[str, ...] | None:
        """Path of the parent; None for the root."""
        return self.path[:-1] if self.path else None


def make_key(*parts: str) -> str:
    """Return the identity of a node from a unique combination of properties."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def make_epochs(history: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float], ...]:
    """Return the curves of a training's history, under names such as `loss/segmentation`."""
    return tuple(
        {_curve_name(name): float(value) for name, value in record.items() if name not in _CONSTANT}
        for record in history
    )


def make_figures(metrics: Mapping[str, Mapping[str, Any]], group: str) -> dict[str, float]:
    """Return values and intervals of `mtil evaluate`, under names such as `test/dice_low`."""
    figures = {}
    for name, interval in metrics.items():
        for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            if interval.get(bound) is not None:
                figures[f"{group}/{name}{suffix}"] = float(interval[bound])
    return figures


def make_facts(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a configuration as text by dotted key."""
    return {key: str(value) for key, value in flatten_keys(tree, prefix).items()}


def _curve_name(name: str) -> str:
    for prefix, group in _GROUPS.items():
        if name.startswith(prefix):
            return f"{group}/{name.removeprefix(prefix)}"
    return f"speed/{name}" if name in _SPEED else name
