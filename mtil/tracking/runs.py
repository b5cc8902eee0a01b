"""Read the files of a run as a tree of nodes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtil import __version__
from mtil.config import compute_config_digest, config_to_dict
from mtil.documents import Document
from mtil.errors import NotFoundError
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.run.status import find_started_trainings
from mtil.storage import open_store
from mtil.tracking.nodes import (
    Artefact,
    Node,
    make_epochs,
    make_facts,
    make_figures,
    make_key,
)
from mtil.tracking.report import add_report


@dataclass
class RunReader:
    """Reads a run again and again. Files of finished trainings are read once."""

    run: Run
    path: tuple[str, ...] = ()
    """Path of the run's node; empty unless the run is a trial."""
    key: str = ""
    """Identity of the node; by default of the run's URI, configuration and data set."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Further facts of the run's node."""
    _finished: dict[Train, Node] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.key = self.key or make_key(
            self.run.uri, compute_config_digest(self.run.config), self.run.fingerprint
        )

    def read(self) -> list[Node]:
        """Return the nodes of the run, its rounds and its trainings, parents first.

        Raises:
            StorageError: if the storage fails.
            DataError: if a file is damaged.
        """
        trainings = [self._read_training(one) for one in find_started_trainings(self.run)]
        rounds = sorted({node.path[: len(self.path) + 1] for node in trainings})
        is_finished = bool(trainings) and all(node.is_finished for node in trainings)
        nodes = [self._make_root(is_finished)]
        for path in rounds:
            inside = [node for node in trainings if node.path[: len(path)] == path]
            nodes.append(self._make_round(path, all(node.is_finished for node in inside)))
        return nodes + trainings

    def _make_root(self, is_finished: bool) -> Node:
        run = self.run
        evaluation = names.figures_name([])
        figures = self._read_metrics(evaluation)
        artefacts = {}
        for name in (names.RUN, evaluation):
            artefact = _read_artefact(run, name)
            if artefact is not None:
                artefacts[name] = artefact
        return Node(
            path=self.path,
            key=self.key,
            name=self.path[-1] if self.path else run.uri.rstrip("/").rsplit("/", 1)[-1],
            facts={
                **make_facts(config_to_dict(run.config)),
                "run": run.uri,
                "dataset": run.data_uri,
                "fingerprint": run.fingerprint,
                "mtil": __version__,
                **self.facts,
            },
            figures=figures,
            artefacts=artefacts,
            is_finished=is_finished,
        )

    def _make_round(self, path: tuple[str, ...], is_finished: bool) -> Node:
        number = int(path[-1].removeprefix("round "))
        return Node(
            path=path,
            key=make_key(self.key, path[-1]),
            name=path[-1],
            facts={"round": str(number)},
            figures=self._read_metrics(self.run.evaluation_name(number)),
            is_finished=is_finished,
        )

    def _read_training(self, training: Train) -> Node:
        if training in self._finished:
            return self._finished[training]
        run = self.run
        # The result is read first: once it exists, the history is complete.
        result = run.result(training)
        below = [f"round {training.round}", f"fold {training.fold}"]
        facts = {"round": str(training.round), "fold": str(training.fold)}
        if training.part is not None:
            below.append(f"part {training.part}")
            facts["part"] = str(training.part)
        figures: dict[str, float] = {}
        artefacts = {}
        if result is not None:
            figures = {f"kept/{name}": value for name, value in result.metrics.items()}
            figures |= {"kept/epoch": float(result.best_epoch), "kept/seconds": result.seconds}
            facts |= {"model_sha256": result.model_sha256, "hardware": str(result.hardware)}
            model = run.model_name(training, result)
            # Models of trials and of `mtil gc` are gone.
            if run.store.exists(model):
                artefacts["model.pt"] = Artefact(
                    version=result.model_sha256, read=lambda: run.model_file(training)[1]
                )
        node = Node(
            path=(*self.path, *below),
            key=make_key(self.key, *below),
            name=", ".join(below),
            facts=facts,
            epochs=make_epochs(run.history(training)),
            figures=figures,
            artefacts=artefacts,
            is_finished=result is not None,
        )
        if result is not None:
            self._finished[training] = node
        return node

    def _read_metrics(self, name: str) -> dict[str, float]:
        """Return the test figures in a file of `mtil evaluate` or of a circle's round."""
        document = Document(f"{self.run.uri}/{name}", "delete it and run `mtil evaluate`")
        try:
            values = document.object(document.read(self.run.store, name))
        except NotFoundError:
            return {}
        return make_figures(_of_last_pass(values), "test")


@dataclass
class RunFollower:
    """Reads a run that may not exist yet, as `mtil.tracking.follower` asks."""

    uri: str
    _reader: RunReader | None = field(default=None, init=False)

    def read(self, is_last: bool) -> list[Node]:
        """Return the nodes of the run, at the end with a report; none before the run exists."""
        if self._reader is None:
            if not open_store(self.uri).exists(names.RUN):
                return []
            self._reader = RunReader(Run.open(self.uri))
        nodes = self._reader.read()
        return add_report(nodes, self.uri) if is_last else nodes


def _of_last_pass(values: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    passes: Sequence[Mapping[str, Any]] = values.get("by_pass") or [values]
    metrics: Mapping[str, Mapping[str, Any]] = passes[-1].get("metrics", {})
    return metrics


def _read_artefact(run: Run, name: str) -> Artefact | None:
    try:
        data = run.store.read(name)
    except NotFoundError:
        return None
    return Artefact(version=hashlib.sha256(data).hexdigest(), read=lambda: data)
