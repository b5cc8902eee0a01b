"""A run's folder: what it was asked to do, and where its trainings keep what they made."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from mtil import __version__
from mtil.config import (
    STRICT,
    Config,
    Count,
    NonNegative,
    Whole,
    digest,
    digest_of,
    from_dict,
    to_dict,
)
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.documents import MIB, Document, Sha256
from mtil.errors import ConfigError, DataError, NotFoundError, OtherModelError, TooLargeError
from mtil.run import names
from mtil.run.plan import Plan, Train, WriteMaps
from mtil.storage import Store, open_store

if TYPE_CHECKING:  # torch takes two seconds, and `mtil status` does not need it
    from mtil.run.checkpoint import Model, TrainingCheckpoints


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FoldResult:
    """What one training came to, by its fold's inner validation rows."""

    round: Whole
    fold: Whole
    part: Whole | None
    best_epoch: Whole
    num_epochs: Count
    seconds: NonNegative
    metrics: dict[str, float]
    model_sha256: Sha256
    fingerprint: Sha256
    config_digest: Sha256
    version: str = __version__


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _Asked:
    """`run.json`: what a run was asked to do."""

    config: dict[str, Any]
    data: str
    fingerprint: Sha256
    config_digest: Sha256 | None = None
    """Of the configuration as it is stored; None in files of early versions."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _Step:
    """`step.json`: how far into an epoch a training is."""

    epoch: Whole
    step: Whole
    steps: Count
    hosts: tuple[str, ...] = ()


_RESULTS: TypeAdapter[FoldResult] = TypeAdapter(FoldResult)
_ASKED: TypeAdapter[_Asked] = TypeAdapter(_Asked)
_STEPS: TypeAdapter[_Step] = TypeAdapter(_Step)
_RECORDS: TypeAdapter[list[dict[str, int | float]]] = TypeAdapter(list[dict[str, int | float]])
_MAX_HISTORY_BYTES = 64 * MIB
_MAX_MODEL_BYTES = 2**34
"""As in `mtil.run.checkpoint`, which needs torch."""


class Run:
    """A run at a URI. Everything that a training commits is named by its `result.json`."""

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
        if store.create(names.RUN, (json.dumps(values, indent=1) + "\n").encode()):
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
        document = Document(f"{store.uri}/{names.RUN}", "restore it, or name another --run")
        try:
            values = document.object(document.read(store, names.RUN))
        except NotFoundError:
            raise DataError(
                f"A run must have a {names.RUN}, but {store.uri} has none; "
                "make one with `mtil train`."
            ) from None
        asked = document.validate(_ASKED, values)
        if asked.config_digest not in (None, digest_of(asked.config)):
            document.refuse(
                f"must hold the configuration with the digest {asked.config_digest}, but its "
                "configuration has another"
            )
        try:
            return cls(store, values)
        except ConfigError as error:
            document.refuse(f"holds a configuration that mtil {__version__} does not know: {error}")

    def manifest(self, data_uri: str | None = None) -> Manifest:
        """Read the version of the data set that this run is trained on.

        Args:
            data_uri: where the data set is, if it has moved.

        Raises:
            DataError: if there is no such version, naming both fingerprints.
        """
        store = open_store(data_uri or self.data_uri)
        found = manifests.find(store, self.fingerprint)
        if found is None:
            newest = manifests.load(store).fingerprint
            raise DataError(
                f"A run must stay with its data set, but {self.uri} was made with fingerprint "
                f"{self.fingerprint[:12]}… and {store.uri} has {newest[:12]}…; "
                "name the data set it was trained on."
            )
        return found

    def plan(self, folds: Sequence[int]) -> Plan:
        """Return what the rounds of these folds are."""
        return Plan(circle=self.config.circle, folds=tuple(folds))

    def folder(self, of: Train) -> str:
        """Return the folder of a training."""
        return names.training(of)

    def predictions_name(self, number: int, fold: int) -> str:
        """Return the name of what a round's models say of a fold's test rows, or of the holdout."""
        return names.predictions(number, fold)

    def evaluation_name(self, number: int) -> str:
        """Return the name of the figures of a round's folds together."""
        return names.evaluation(number)

    def map_folder(self, of: WriteMaps) -> str:
        """Return the folder of the maps that an action writes."""
        return names.maps(of)

    def checkpoints(self, of: Train) -> "TrainingCheckpoints":
        """Return the checkpoints of a training."""
        from mtil.run.checkpoint import TrainingCheckpoints

        return TrainingCheckpoints(self.store, names.checkpoints(of))

    def write_history(self, of: Train, records: Sequence[Mapping[str, Any]]) -> None:
        """Write a training's history, one record an epoch."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        self.store.write(names.history(of), text.encode())

    def history(self, of: Train) -> list[dict[str, Any]]:
        """Return the records of the epochs that a training has had."""
        name = names.history(of)
        document = Document(
            f"{self.uri}/{name}", "delete it", max_bytes=_MAX_HISTORY_BYTES, finite=False
        )
        try:
            records = document.lines(document.read(self.store, name))
        except NotFoundError:
            return []
        return [dict(record) for record in document.validate(_RECORDS, records)]

    def write_step(self, of: Train, step: Mapping[str, Any]) -> None:
        """Write how far into an epoch a training is, and on which machines."""
        self.store.write(names.step(of), json.dumps(step).encode())

    def step(self, of: Train) -> dict[str, Any] | None:
        """Return how far into an epoch a training is: `epoch`, `step`, `steps` and `hosts`.

        None if it has not said so. A damaged file, which is only for people, says nothing.
        """
        name = names.step(of)
        document = Document(f"{self.uri}/{name}", "delete it")
        try:
            values = document.object(document.read(self.store, name))
            step = document.validate(_STEPS, values)
        except (NotFoundError, DataError):
            return None
        return {**asdict(step), "hosts": list(step.hosts)}

    def commit(self, of: Train, model: "Model", **figures: Any) -> FoldResult:
        """Write a training's model and then, once and for all, the result that names it.

        Of two processes that do the same training, the first result counts, and is returned.
        """
        from mtil.run.checkpoint import model_to_bytes

        data = model_to_bytes(model)
        result = FoldResult(
            round=of.round,
            fold=of.fold,
            part=of.part,
            best_epoch=model.epoch,
            model_sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=self.fingerprint,
            config_digest=digest(self.config),
            **figures,
        )
        self.store.write(self.model_name(of, result), data)
        text = (json.dumps(asdict(result)) + "\n").encode()
        if not self.store.create(names.result(of), text):
            first = self.result(of)
            assert first is not None
            theirs, ours = (self.model_name(of, one) for one in (first, result))
            if theirs != ours and self.store.exists(theirs):
                self.store.delete(ours)
            result = first
        self.checkpoints(of).clear()
        self.store.delete(names.step(of))
        return result

    def model_name(self, of: Train, result: FoldResult) -> str:
        """Return the name of a training's model file: after its bytes, so that none replaces it."""
        return names.model(of, result.model_sha256)

    def result(self, of: Train) -> FoldResult | None:
        """Return a training's committed result, if it has ended.

        Raises:
            DataError: if the file holds something else.
        """
        name = names.result(of)
        document = Document(f"{self.uri}/{name}", "restore it, or delete it to train again")
        try:
            values = document.object(document.read(self.store, name))
        except NotFoundError:
            return None
        result = document.validate(_RESULTS, values)
        if (result.round, result.fold, result.part) != (of.round, of.fold, of.part):
            document.refuse(f"must be the result of the {of}, but is another training's")
        return result

    def trained(self) -> dict[int, list[int]]:
        """Return the folds whose main model is trained, by round; both ascending."""
        found: dict[int, list[int]] = {}
        for name in self.store.names(names.TRAININGS):
            of = names.training_of(name)
            if of is not None and of.part is None and names.is_result(name):
                found.setdefault(of.round, []).append(of.fold)
        return {number: sorted(folds) for number, folds in sorted(found.items())}

    def last_round(self) -> int:
        """Return the last round that all folds have been through which have been through the first.

        Raises:
            DataError: if no fold is trained.
        """
        trained = self.trained()
        if 0 not in trained:
            raise DataError(
                f"A run must have a trained fold, but {self.uri} has none; "
                f"run `mtil train --run {self.uri}`."
            )
        return max(number for number, folds in trained.items() if folds == trained[0])

    def model(self, of: Train) -> "Model":
        """Read a training's model.

        Raises:
            DataError: if it has not ended.
            OtherModelError: if the file is not the one that the result names.
            CheckpointError: if this version does not know it.
        """
        from mtil.run.checkpoint import model_from_bytes

        name, data = self.model_file(of)
        return model_from_bytes(data, f"{self.uri}/{name}")

    def model_file(self, of: Train) -> tuple[str, bytes]:
        """Read a training's model file; return its name and its bytes.

        Raises:
            DataError: if it has not ended.
            OtherModelError: if the file is not the one that the result names.
        """
        result = self.result(of)
        if result is None:
            raise DataError(
                f"Fold {of.fold} of {self.uri} must be trained first, but round {of.round} has no "
                f"result; run `mtil train --fold {of.fold}`."
            )
        name = self.model_name(of, result)
        try:
            data = self.store.read(name, max_bytes=_MAX_MODEL_BYTES)
        except (NotFoundError, TooLargeError):
            data = b""
        if hashlib.sha256(data).hexdigest() != result.model_sha256:
            raise OtherModelError(
                f"{self.uri}/{name} is not the file that {names.RESULT} beside it names; "
                "delete both to train again."
            )
        return name, data


def take_up(uri: str, config: Config, data_uri: str, fingerprint: str) -> Run | None:
    """Return the run at a URI if there is one. Writes nothing; see `Run.create` for the rest.

    Raises:
        ConfigError: if the run has another configuration.
        DataError: if it was trained on another data set, or its file is damaged.
    """
    if not open_store(uri).exists(names.RUN):
        return None
    return Run.create(uri, config, data_uri, fingerprint)


def manifest_for(run_uri: str, data: Store, version: int | None = None) -> Manifest:
    """Return the version of a data set to train on: the run's, or the newest for a new run.

    Where the data set has no version that is the run's, or another was asked for, `Run.create` says
    so.

    Args:
        run_uri: where the run is, or will be.
        data: the data set's store.
        version: that which was asked for, if any was.

    Raises:
        DataError: if there is no data set or no such version, or the run's file is not one.
    """
    if version is not None:
        return manifests.load_version(data, version)
    if not open_store(run_uri).exists(names.RUN):
        return manifests.load(data)
    return manifests.find(data, Run.open(run_uri).fingerprint) or manifests.load(data)


class News:
    """What a run's folder says about a training that it did not say before."""

    def __init__(self, run: Run, of: Train) -> None:
        self._run, self._of = run, of
        self._epochs = len(run.history(of))
        self._step: dict[str, Any] | None = None

    def lines(self) -> list[dict[str, Any]]:
        """Return new `epoch` lines and, if the training has moved on, a `step` line."""
        history, step = self._run.history(self._of), self._run.step(self._of)
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
