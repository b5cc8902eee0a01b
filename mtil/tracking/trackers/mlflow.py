"""Nodes as nested runs of MLflow, on a server, in a database or in a folder."""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mtil.tracking.nodes import Node, make_key
from mtil.tracking.targets import TrackingError

_EXPERIMENT = "mtil"
_KEY, _ROOT, _FILE, _FIGURES = "mtil.key", "mtil.root", "mtil.file.", "mtil.figures"
"""Tags: identity of a node and of its root, and versions of artefacts and figures."""
_MAX_METRICS, _MAX_PARAMS = 1000, 100
"""Of one request, by MLflow's interface."""
_MAX_PARAM_LENGTH = 500
_PAGE = 1000


@dataclass
class _Shown:
    """The content of MLflow for a node."""

    run_id: str
    start_ms: int
    status: str
    tags: dict[str, str]
    params: set[str]
    """Names of the logged parameters. MLflow parameters are immutable."""
    num_epochs: int = 0
    """Epochs of which all metrics are logged."""
    logged: set[tuple[str, int]] = field(default_factory=set)
    """Metrics and steps that were logged before this process."""


class MlflowTracker:
    """Shows nodes in MLflow. See `mtil.tracking.targets.Tracker`."""

    def __init__(self, uri: str | None) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        # MLflow's defaults are two minutes and seven attempts. The follower retries anyway.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with _translate_errors():
            self._client = MlflowClient(tracking_uri=uri)
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
            experiment = self._client.get_experiment_by_name(name)
            self._experiment: str = (
                self._client.create_experiment(name)
                if experiment is None
                else experiment.experiment_id
            )
        self._shown: dict[str, _Shown] | None = None

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Send everything that MLflow lacks."""
        with _translate_errors():
            if self._shown is None:
                self._shown = self._find_runs(nodes[0])
            shown: dict[tuple[str, ...], _Shown] = {}
            for node in nodes:
                parent = None if node.parent is None else shown.get(node.parent)
                shown[node.path] = self._show(node, nodes[0], parent)

    def close(self) -> None:
        """Do nothing: the client holds no connection."""

    def _find_runs(self, root: Node) -> dict[str, _Shown]:
        """Return the runs of a tree in MLflow, by key."""
        found: dict[str, _Shown] = {}
        token: str | None = None
        while token != "":
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{_ROOT}` = '{root.key}'",
                max_results=_PAGE,
                page_token=token,
            )
            for run in page:
                found[run.data.tags[_KEY]] = _Shown(
                    run.info.run_id,
                    run.info.start_time,
                    run.info.status,
                    dict(run.data.tags),
                    set(run.data.params),
                )
            token = page.token or ""
        return found

    def _show(self, node: Node, root: Node, parent: _Shown | None) -> _Shown:
        assert self._shown is not None
        shown = self._shown.get(node.key)
        if shown is None:
            shown = self._shown[node.key] = self._create(node, root, parent)
        elif node.epochs and not shown.num_epochs and not shown.logged:
            shown.logged = self._find_logged(shown.run_id, node)
        self._log_facts(node, shown)
        self._log_epochs(node, shown)
        self._log_figures(node, shown)
        self._log_artefacts(node, shown)
        status = "FINISHED" if node.is_finished else "RUNNING"
        if shown.status != status:
            if node.is_finished:
                self._client.set_terminated(shown.run_id, status)
            else:
                self._client.update_run(shown.run_id, status)
            shown.status = status
        return shown

    def _create(self, node: Node, root: Node, parent: _Shown | None) -> _Shown:
        tags = {_KEY: node.key, _ROOT: root.key}
        if parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = parent.run_id
        run = self._client.create_run(self._experiment, tags=tags, run_name=node.name)
        return _Shown(run.info.run_id, run.info.start_time, run.info.status, tags, set())

    def _find_logged(self, run_id: str, node: Node) -> set[tuple[str, int]]:
        """Return metrics and steps of a node's curves in MLflow."""
        return {
            (name, metric.step)
            for name in {_name(name) for record in node.epochs for name in record}
            for metric in self._client.get_metric_history(run_id, name)
        }

    def _log_facts(self, node: Node, shown: _Shown) -> None:
        params = [
            Param(_name(key), _shorten(value))
            for key, value in node.facts.items()
            if _name(key) not in shown.params
        ]
        for start in range(0, len(params), _MAX_PARAMS):
            self._client.log_batch(shown.run_id, params=params[start : start + _MAX_PARAMS])
        shown.params |= set(map(_name, node.facts))

    def _log_epochs(self, node: Node, shown: _Shown) -> None:
        metrics, elapsed_s = [], 0.0
        for step, record in enumerate(node.epochs):
            # All processes give an epoch the same time, so a database cannot hold the epoch twice.
            elapsed_s += record.get("speed/seconds", 0.0)
            if step < shown.num_epochs:
                continue
            time_ms = shown.start_ms + round(1000 * elapsed_s)
            metrics += [
                Metric(_name(name), value, time_ms, step)
                for name, value in record.items()
                if (_name(name), step) not in shown.logged
            ]
        for start in range(0, len(metrics), _MAX_METRICS):
            self._client.log_batch(shown.run_id, metrics=metrics[start : start + _MAX_METRICS])
        shown.num_epochs = len(node.epochs)

    def _log_figures(self, node: Node, shown: _Shown) -> None:
        version = make_key(repr(sorted(node.figures.items())))
        if not node.figures or shown.tags.get(_FIGURES) == version:
            return
        metrics = [
            Metric(_name(name), value, shown.start_ms, 0) for name, value in node.figures.items()
        ]
        self._client.log_batch(shown.run_id, metrics=metrics, tags=[RunTag(_FIGURES, version)])
        shown.tags[_FIGURES] = version

    def _log_artefacts(self, node: Node, shown: _Shown) -> None:
        for name, artefact in node.artefacts.items():
            tag = f"{_FILE}{name}"
            if shown.tags.get(tag) == artefact.version:
                continue
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / name
                file.write_bytes(artefact.read())
                self._client.log_artifact(shown.run_id, str(file))
            self._client.set_tag(shown.run_id, tag, artefact.version)
            shown.tags[tag] = artefact.version


def _name(text: str) -> str:
    """Return a name that MLflow accepts, such as `best/0.5_dice_0.5_auc`."""
    return re.sub(r"\.{2,}|[^A-Za-z0-9_. :/-]|^/|/$", "_", text)


def _shorten(value: str) -> str:
    return value if len(value) <= _MAX_PARAM_LENGTH else f"{value[: _MAX_PARAM_LENGTH - 1]}…"


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except (MlflowException, requests.RequestException, OSError) as error:
        raise TrackingError(f"MLflow fails: {' '.join(str(error).split())[:300]}") from error
