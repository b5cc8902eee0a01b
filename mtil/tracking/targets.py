"""The trackers that a user names, such as `mlflow=http://host:5000` or `tensorboard`."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from mtil.errors import ConfigError, RunError
from mtil.tracking.nodes import Node

Kind = Literal["mlflow", "tensorboard", "wandb"]
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}
"""Environment variables, read at import: no usage reports, error reports or chatter."""
_KINDS: TypeAdapter[Kind] = TypeAdapter(Kind)


class TrackingError(RunError):
    """A tracker cannot be reached, is full or rejects data."""


@dataclass(frozen=True)
class Target:
    """A tracker and the location of its data."""

    kind: Kind
    location: str | None
    """URI or folder; None for the default, a file in the current folder."""

    def __str__(self) -> str:
        return self.kind if self.location is None else f"{self.kind}={self.location}"


class Tracker(Protocol):
    """Shows nodes in a tracker."""

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Send everything that the tracker lacks.

        Args:
            nodes: the whole tree, parents before children.
            is_last: whether no update follows in this process.

        Raises:
            TrackingError: if the tracker fails. A new tracker object may try again.
        """

    def close(self) -> None:
        """Close connections and files."""


def parse_target(text: str) -> Target:
    """Return the target of `KIND` or `KIND=LOCATION`.

    Raises:
        ConfigError: if the kind is unknown, or the location is empty or holds a password.
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
    if "://" in (target.location or "") and urlsplit(target.location or "").password:
        raise ConfigError(
            f"A location of {kind} must hold no password, which others can read in the list of "
            "processes; set MLFLOW_TRACKING_PASSWORD or MLFLOW_TRACKING_URI instead."
        )
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
