"""A run's folder: what it was asked to do, and where its folds keep what they made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mtil import __version__
from mtil.checkpoint import Model, TrainingCheckpoints, model_from_bytes, model_to_bytes
from mtil.config import Config, digest, from_dict, to_dict
from mtil.data.folds import HOLDOUT
from mtil.data.manifest import Manifest
from mtil.errors import ConfigError, DataError, NotFoundError, RunError
from mtil.storage import Store, open_store

FILE_NAME = "run.json"
_HISTORY = "history.jsonl"
_STEP = "step.json"


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What one fold's training came to, by its inner validation rows."""

    fold: int
    best_epoch: int
    num_epochs: int
    seconds: float
    metrics: dict[str, float]
    model_sha256: str
    fingerprint: str
    config_digest: str
    version: str = __version__


class Run:
    """A run at a URI. Everything that a fold's training commits is named by its `result.json`."""

    def __init__(self, store: Store, values: dict[str, Any]) -> None:
        self.store = store
        self.config: Config = from_dict(values["config"])
        self.data_uri: str = values["data"]
        self.fingerprint: str = values["fingerprint"]

    @property
    def uri(self) -> str:
        """Where the run is."""
        return self.store.uri

    @classmethod
    def create(cls, uri: str, config: Config, data_uri: str, fingerprint: str) -> "Run":
        """Make a run, or take up the one that is there if it was asked to do the same.

        Raises:
            ConfigError: if the run at the URI has another configuration.
            DataError: if it was trained on another data set.
        """
        values: dict[str, Any] = {
            "version": __version__,
            "config": to_dict(config),
            "config_digest": digest(config),
            "data": data_uri,
            "fingerprint": fingerprint,
        }
        store = open_store(uri)
        if store.create(FILE_NAME, (json.dumps(values, indent=1) + "\n").encode()):
            return cls(store, values)
        run = cls.open(uri)
        if run.fingerprint != fingerprint:
            raise DataError(
                f"A run must stay with its data set, but {run.uri} was made with fingerprint "
                f"{run.fingerprint[:12]}… and {data_uri} has {fingerprint[:12]}…; "
                "name another --run."
            )
        if digest(run.config) != digest(config):
            old, new = _flat(to_dict(run.config)), _flat(values["config"])
            key = next(key for key in new if old.get(key) != new[key])
            raise ConfigError(
                f"A run must keep its configuration, but {run.uri} has `{key}` = {old.get(key)!r} "
                f"and {new[key]!r} was asked for; name another --run."
            )
        return run

    @classmethod
    def open(cls, uri: str) -> "Run":
        """Open the run at a URI.

        Raises:
            DataError: if there is none.
        """
        store = open_store(uri)
        try:
            values = json.loads(store.read(FILE_NAME))
        except NotFoundError:
            raise DataError(
                f"A run must have a {FILE_NAME}, but {store.uri} has none; "
                "make one with `mtil train`."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError):
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
            values = {}
        if not {"config", "data", "fingerprint"} <= values.keys():
            raise DataError(f"{store.uri}/{FILE_NAME} is not a run's; name another --run.")
        return cls(store, values)

    def check_data(self, manifest: Manifest, data_uri: str) -> None:
        """Refuse a data set that this run was not trained on.

        Raises:
            DataError: naming both fingerprints.
        """
        if manifest.fingerprint != self.fingerprint:
            raise DataError(
                f"A run must stay with its data set, but {self.uri} was made with fingerprint "
                f"{self.fingerprint[:12]}… and {data_uri} has {manifest.fingerprint[:12]}…; "
                "name the data set it was trained on."
            )

    def folder(self, fold: int) -> str:
        """Return the folder of a fold's first round, or of what is said of the holdout."""
        return "rounds/0/holdout" if fold == HOLDOUT else f"rounds/0/fold-{fold}"

    def checkpoints(self, fold: int) -> TrainingCheckpoints:
        """Return the training checkpoints of a fold."""
        return TrainingCheckpoints(self.store, f"{self.folder(fold)}/checkpoints")

    def write_history(self, fold: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a fold's history, one record an epoch."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        self.store.write(f"{self.folder(fold)}/{_HISTORY}", text.encode())

    def history(self, fold: int) -> list[dict[str, Any]]:
        """Return the records of the epochs that a fold has had."""
        try:
            lines = self.store.read(f"{self.folder(fold)}/{_HISTORY}").splitlines()
        except NotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def write_step(self, fold: int, step: Mapping[str, int]) -> None:
        """Write how far into an epoch a fold's training is."""
        self.store.write(f"{self.folder(fold)}/{_STEP}", json.dumps(step).encode())

    def step(self, fold: int) -> dict[str, int] | None:
        """Return how far into an epoch a fold's training is, if it has said so."""
        try:
            values: dict[str, int] = json.loads(self.store.read(f"{self.folder(fold)}/{_STEP}"))
        except NotFoundError:
            return None
        return values

    def commit(self, model: Model, **figures: Any) -> FoldResult:
        """Write a fold's model and then the result that names it."""
        data = model_to_bytes(model)
        result = FoldResult(
            fold=model.fold,
            best_epoch=model.epoch,
            model_sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=self.fingerprint,
            config_digest=digest(self.config),
            **figures,
        )
        folder = self.folder(model.fold)
        self.store.write(f"{folder}/model.pt", data)
        self.store.write(f"{folder}/result.json", (json.dumps(asdict(result)) + "\n").encode())
        self.checkpoints(model.fold).clear()
        self.store.delete(f"{folder}/{_STEP}")
        return result

    def result(self, fold: int) -> FoldResult | None:
        """Return a fold's committed result, if its training has ended.

        Raises:
            RunError: if the file holds something else.
        """
        name = f"{self.folder(fold)}/result.json"
        try:
            return FoldResult(**json.loads(self.store.read(name)))
        except NotFoundError:
            return None
        except (TypeError, json.JSONDecodeError, UnicodeDecodeError):
            raise RunError(
                f"{self.uri}/{name} is not a result of this version; delete it to train again."
            ) from None

    def trained_folds(self, num_folds: int) -> list[int]:
        """Return the folds whose training has ended."""
        return [fold for fold in range(num_folds) if self.result(fold) is not None]

    def model(self, fold: int) -> Model:
        """Read a fold's model.

        Raises:
            DataError: if the fold's training has not ended.
            RunError: if the file is not the one that the result names.
        """
        result = self.result(fold)
        if result is None:
            raise DataError(
                f"Fold {fold} of {self.uri} must be trained first, but has no result; "
                f"run `mtil train --fold {fold}`."
            )
        name = f"{self.folder(fold)}/model.pt"
        data = self.store.read(name)
        if hashlib.sha256(data).hexdigest() != result.model_sha256:
            raise RunError(
                f"{self.uri}/{name} is not the file that its result.json names; "
                "delete both to train again."
            )
        return model_from_bytes(data, f"{self.uri}/{name}")


class News:
    """What a run's folder says about a fold's training that it did not say before."""

    def __init__(self, run: Run, fold: int) -> None:
        self._run, self._fold = run, fold
        self._epochs = len(run.history(fold))
        self._step: dict[str, int] | None = None

    def lines(self) -> list[dict[str, Any]]:
        """Return new `epoch` lines and, if the training has moved on, a `step` line."""
        history, step = self._run.history(self._fold), self._run.step(self._fold)
        lines: list[dict[str, Any]] = [
            {"kind": "epoch", **record} for record in history[self._epochs :]
        ]
        self._epochs = max(self._epochs, len(history))
        if step is not None and step != self._step and step["epoch"] >= self._epochs:
            self._step = step
            lines.append({"kind": "step", **step})
        return lines


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
