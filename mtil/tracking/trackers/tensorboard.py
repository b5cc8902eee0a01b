"""Nodes as folders of TensorBoard events. TensorBoard keeps no files: artefacts are left out."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from mtil.tracking.nodes import Node
from mtil.tracking.targets import TrackingError

_FOLDER = "tensorboard"


@dataclass
class _Shown:
    """The content of a node's folder."""

    writer: SummaryWriter
    logged: set[tuple[str, int]]
    """Tags and steps written by earlier processes."""
    has_facts: bool
    figures: dict[str, float]
    """The latest value of each tag."""
    num_epochs: int = 0


@dataclass
class TensorBoardTracker:
    """Shows nodes in TensorBoard. See `mtil.tracking.targets.Tracker`."""

    location: str | None
    _shown: dict[str, _Shown] = field(default_factory=dict, init=False)

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Write everything that the folders of the nodes lack."""
        top = Path(self.location or _FOLDER) / _folder_name(f"{nodes[0].name}-{nodes[0].key[:8]}")
        with _translate_errors():
            for node in nodes:
                shown = self._shown.get(node.key)
                if shown is None:
                    shown = self._shown[node.key] = _open(
                        top.joinpath(*map(_folder_name, node.path))
                    )
                _write(node, shown)
                shown.writer.flush()

    def close(self) -> None:
        """Close the event files."""
        with _translate_errors():
            for shown in self._shown.values():
                shown.writer.close()


def _open(folder: Path) -> _Shown:
    """Open the folder of a node and read the content."""
    logged: set[tuple[str, int]] = set()
    figures: dict[str, float] = {}
    has_facts = False
    if folder.is_dir():
        held = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        tags = held.Tags()
        logged = {(tag, event.step) for tag in tags["scalars"] for event in held.Scalars(tag)}
        figures = {tag: held.Scalars(tag)[-1].value for tag in tags["scalars"]}
        has_facts = any(tag.startswith("configuration") for tag in tags["tensors"])
    return _Shown(SummaryWriter(str(folder)), logged, has_facts, figures)


def _write(node: Node, shown: _Shown) -> None:
    if node.facts and not shown.has_facts:
        rows = [f"| {_cell(key)} | {_cell(value)} |" for key, value in node.facts.items()]
        shown.writer.add_text("configuration", "\n".join(["| key | value |", "|---|---|", *rows]))
        shown.has_facts = True
    for step in range(shown.num_epochs, len(node.epochs)):
        for name, value in node.epochs[step].items():
            if (name, step) not in shown.logged:
                shown.writer.add_scalar(name, value, step)
    shown.num_epochs = len(node.epochs)
    for name, value in node.figures.items():
        if not _is_equal(shown.figures.get(name), value):
            shown.writer.add_scalar(name, value, 0)
            shown.figures[name] = value


def _is_equal(held: float | None, value: float) -> bool:
    """Compare a value with a value read from TensorBoard, in single precision."""
    return held is not None and (
        math.isclose(held, value, rel_tol=1e-6) or (math.isnan(held) and math.isnan(value))
    )


def _folder_name(name: str) -> str:
    """Return a node's name as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "run"


def _cell(text: str) -> str:
    """Return text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrackingError(f"TensorBoard's files cannot be written: {error}") from error
