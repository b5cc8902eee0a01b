"""Nodes as runs of Weights & Biases, one group for a tree: offline files, or a server.

An offline file cannot grow after the death of a process. So the file of a training is written at
the end of the training or of the process, and replaced if the training goes on. `wandb sync` sends
the files to a server.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.errors import Error

from mtil.tracking.nodes import Node, make_key
from mtil.tracking.targets import TrackingError

_DONE = "mtil-complete"
"""A file in the folder of a complete offline run. The content is the version of the node."""
_PROJECT = "mtil"


@dataclass
class WandbTracker:
    """Shows nodes in Weights & Biases. See `mtil.tracking.targets.Tracker`."""

    location: str | None
    """Parent of the folder `wandb`; None for the current folder."""
    _running: dict[str, Any] = field(default_factory=dict, init=False)
    """Runs of a server, by key of their node."""
    _written: dict[str, str] = field(default_factory=dict, init=False)
    """Version of each written node, by key."""

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Write ended trainings, and at the end all nodes; or bring the server up to date."""
        is_offline = os.environ.get("WANDB_MODE", "offline") != "online"
        with _translate_errors():
            for node in nodes:
                # Figures of a run and its rounds change until the end: these nodes come last.
                is_trained = node.is_finished and bool(node.epochs)
                if is_trained or is_last or not is_offline:
                    self._show(node, nodes[0], is_offline=is_offline)

    def close(self) -> None:
        """Finish all runs, and end the writing process of wandb."""
        with _translate_errors():
            wandb.teardown()

    def _show(self, node: Node, root: Node, *, is_offline: bool) -> None:
        version = make_key(
            repr((node.epochs, sorted(node.figures.items()))),
            repr(sorted((name, artefact.version) for name, artefact in node.artefacts.items())),
        )
        if self._written.get(node.key) == version:
            return
        if is_offline:
            if self._is_on_disk(node, version):
                self._written[node.key] = version
                return
            run = self._begin(node, root, "offline")
            self._log(run, node, 0)
            run.finish()
            (Path(run.dir).parent / _DONE).write_text(version)
        else:
            run = self._running.get(node.key) or self._begin(node, root, "online")
            self._running[node.key] = run
            self._log(run, node, run.step)
            if node.is_finished:
                self._running.pop(node.key).finish()
        self._written[node.key] = version

    def _begin(self, node: Node, root: Node, mode: Any) -> Any:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            dir=self.location,
            id=node.key,
            name=node.name,
            group=f"{root.name}-{root.key[:8]}",
            job_type=re.sub(r"[^a-z]", "", node.path[-1].lower()) if node.path else "run",
            config=dict(node.facts),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, x_disable_meta=True,
                disable_git=True, save_code=False, x_save_requirements=False, init_timeout=30,
            ),
        )  # fmt: skip

    def _log(self, run: Any, node: Node, start: int) -> None:
        """Log the epochs from `start` on, figures and files."""
        for step in range(start, len(node.epochs)):
            run.log(dict(node.epochs[step]), step=step)
        run.summary.update(dict(node.figures))
        if not node.artefacts:
            return
        collection = wandb.Artifact(f"{_PROJECT}-{node.key[:16]}", type="run")
        with tempfile.TemporaryDirectory() as folder:
            for name, artefact in node.artefacts.items():
                (Path(folder) / name).write_bytes(artefact.read())
            collection.add_dir(folder)
            run.log_artifact(collection)

    def _is_on_disk(self, node: Node, version: str) -> bool:
        """Return whether the node's offline run is complete. Remove incomplete and older ones."""
        is_found = False
        for folder in (Path(self.location or ".") / "wandb").glob(f"offline-run-*-{node.key}"):
            done = folder / _DONE
            if done.exists() and done.read_text() == version:
                is_found = True
            else:
                shutil.rmtree(folder)
        return is_found


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (Error, OSError) as error:
        raise TrackingError(f"wandb fails: {' '.join(str(error).split())[:300]}") from error
