"""The trackers that a user names, such as `mlflow=http://host:5000` or `tensorboard`."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from pydantic import TypeAdapter, ValidationError

from mtil.errors import ConfigError, RunError
from mtil.tracking.nodes import Node

Kind = Literal["mlflow", "tensorboard", "wandb"]
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
"""The libraries read these when they are imported: nothing about a run goes to their makers."""
_KINDS: TypeAdapter[Kind] = TypeAdapter(Kind)


class TrackingError(RunError):
    """A tracker cannot be reached, is full, or refuses what it gets."""


@dataclass(frozen=True)
class Target:
    """A tracker and where it keeps what it gets."""

    kind: Kind
    location: str | None
    """URI or folder; None for the library's default, a file in the current folder."""

    def __str__(self) -> str:
        return self.kind if self.location is None else f"{self.kind}={self.location}"


class Tracker(Protocol):
    """Shows nodes in a tracker."""

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Bring the tracker up to date. What it has already is not sent again.

        Args:
            nodes: the whole tree, parents before children.
            is_last: whether no update follows in this process.

        Raises:
            TrackingError: if the tracker fails. A new tracker object may try again.
        """

    def close(self) -> None:
        """Give up connections and open files."""


def parse_target(text: str) -> Target:
    """Return the target of `KIND` or `KIND=LOCATION`.

    Raises:
        ConfigError: if the kind is unknown or the location is empty.
        ModuleNotFoundError: if the tracker's library is not installed.
    """
    kind, equals, location = text.partition("=")
    try:
        target = Target(_KINDS.validate_python(kind), location if equals else None)
    except ValidationError:
        raise ConfigError(
            f"A tracker must be one of {', '.join(get_args(Kind))}, but is {kind!r}."
        ) from None
    if target.location == "":
        raise ConfigError(f"A location must follow `{kind}=`; leave out `=` for the default.")
    if importlib.util.find_spec(target.kind) is None:
        raise ModuleNotFoundError(name=target.kind)
    return target


def open_tracker(target: Target) -> Tracker:
    """Return the tracker of a target.

    Raises:
        TrackingError: if the tracker fails.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if target.kind == "mlflow":
        from mtil.tracking.trackers.mlflow import MlflowTracker

        return MlflowTracker(target.location)
    if target.kind == "tensorboard":
        from mtil.tracking.trackers.tensorboard import TensorBoardTracker

        return TensorBoardTracker(target.location)
    from mtil.tracking.trackers.wandb import WandbTracker

    return WandbTracker(target.location)
