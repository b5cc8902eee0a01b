"""The folder of a run: configuration, data set, and the files of all trainings."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from mtil import __version__
from mtil.config import (
    STRICT,
    Config,
    NonNegative,
    NonNegativeInt,
    PositiveInt,
    compute_config_digest,
    compute_stored_config_digest,
    config_from_dict,
    config_to_dict,
)
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role
from mtil.documents import MIB, Document, Sha256, flatten_keys
from mtil.errors import ConfigError, DataError, NotFoundError, OtherModelError, TooLargeError
from mtil.run import names
from mtil.run.plan import CirclePlan, Train, WriteMaps
from mtil.storage import Store, open_store

if TYPE_CHECKING:  # torch takes two seconds, and `mtil status` does not need it
    from mtil.run.checkpoint import TrainedModel, TrainingCheckpoints


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FoldResult:
    """The result of a training, measured on the inner validation rows of the fold."""

    round: NonNegativeInt
    fold: NonNegativeInt
    part: NonNegativeInt | None
    best_epoch: NonNegativeInt
    num_epochs: PositiveInt
    seconds: NonNegative
    metrics: dict[str, float]
    model_sha256: Sha256
    fingerprint: Sha256
    config_digest: Sha256
    version: str = __version__
    hardware: dict[str, int] = field(default_factory=dict)
    """Number of workers by name of their GPU or processor; empty in files of early versions."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _RunFile:
    """`run.json`: configuration and data set of a run."""

    config: dict[str, Any]
    data: str
    fingerprint: Sha256
    config_digest: Sha256 | None = None
    """Digest of the stored configuration; None in files of early versions."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _StepFile:
    """`step.json`: progress of a training within an epoch."""

    epoch: NonNegativeInt
    step: NonNegativeInt
    steps: PositiveInt
    hosts: tuple[str, ...] = ()


_RESULTS: TypeAdapter[FoldResult] = TypeAdapter(FoldResult)
_RUN_FILES: TypeAdapter[_RunFile] = TypeAdapter(_RunFile)
_STEP_FILES: TypeAdapter[_StepFile] = TypeAdapter(_StepFile)
_RECORDS: TypeAdapter[list[dict[str, int | float]]] = TypeAdapter(list[dict[str, int | float]])
_MAX_HISTORY_BYTES = 64 * MIB
_MAX_MODEL_BYTES = 2**34
"""Equal to `MAX_BYTES` of `mtil.run.checkpoint`, which needs torch."""


class Run:
    """A run at a URI.

    A training commits by creating `result.json`, which names the model file.
    """

    def __init__(self, store: Store, values: dict[str, Any]) -> None:
        self.store = store
        self.config: Config = config_from_dict(values["config"])
        self.data_uri: str = values["data"]
        self.fingerprint: str = values["fingerprint"]

    @property
    def uri(self) -> str:
        """URI of the run."""
        return self.store.uri

    @classmethod
    def create(cls, uri: str, config: Config, data_uri: str, fingerprint: str) -> "Run":
        """Create a run, or open an existing run with equal configuration and data set.

        Raises:
            ConfigError: if the existing run has a different configuration.
            DataError: if the existing run has a different data set.
        """
        values: dict[str, Any] = {
            "version": __version__,
            "config": config_to_dict(config),
            "config_digest": compute_config_digest(config),
            "data": data_uri,
            "fingerprint": fingerprint,
        }
        store = open_store(uri)
        # Two processes may start a run at the same time: the first file counts.
        if store.create(names.RUN, (json.dumps(values, indent=1) + "\n").encode()):
            return cls(store, values)
        run = cls.open(uri)
        if run.fingerprint != fingerprint:
            raise DataError(
                f"A run must stay with its data set, but {run.uri} was made with fingerprint "
                f"{run.fingerprint[:12]}… and {data_uri} has {fingerprint[:12]}…; "
                "name another --run."
            )
        if compute_config_digest(run.config) != compute_config_digest(config):
            old, new = flatten_keys(config_to_dict(run.config)), flatten_keys(values["config"])
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
            DataError: if the URI has no run, or `run.json` is damaged or of an unknown version.
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
        run_file = document.validate(_RUN_FILES, values)
        if run_file.config_digest not in (None, compute_stored_config_digest(run_file.config)):
            document.refuse(
                f"must hold the configuration with the digest {run_file.config_digest}, but its "
                "configuration has another"
            )
        try:
            return cls(store, values)
        except ConfigError as error:
            document.refuse(f"holds a configuration that mtil {__version__} does not know: {error}")

    def manifest(self, data_uri: str | None = None) -> Manifest:
        """Read the manifest of the data-set version used by the run.

        Args:
            data_uri: URI of the data set, if the data set has moved.

        Raises:
            DataError: if no version has the fingerprint of the run.
        """
        store = open_store(data_uri or self.data_uri)
        manifest = manifests.find_manifest(store, self.fingerprint)
        if manifest is None:
            newest = manifests.load_manifest(store).fingerprint
            raise DataError(
                f"A run must stay with its data set, but {self.uri} was made with fingerprint "
                f"{self.fingerprint[:12]}… and {store.uri} has {newest[:12]}…; "
                "name the data set it was trained on."
            )
        return manifest

    def plan(self, folds: Sequence[int]) -> CirclePlan:
        """Return the plan of the rounds for some folds."""
        return CirclePlan(circle=self.config.circle, folds=tuple(folds))

    def folder(self, training: Train) -> str:
        """Return the folder of a training."""
        return names.training_folder(training)

    def predictions_name(
        self, round_index: int, fold: int, role: Role = "test", others: Sequence[str] = ()
    ) -> str:
        """Return the name of a round's predictions for a fold's rows or the holdout."""
        return names.predictions_name(round_index, fold, role, others)

    def evaluation_name(self, round_index: int) -> str:
        """Return the name of a round's figures over all folds."""
        return names.evaluation_name(round_index)

    def map_folder(self, action: WriteMaps) -> str:
        """Return the folder of the maps written by an action."""
        return names.map_folder(action)

    def checkpoints(self, training: Train) -> "TrainingCheckpoints":
        """Return the checkpoints of a training."""
        from mtil.run.checkpoint import TrainingCheckpoints

        return TrainingCheckpoints(self.store, names.checkpoint_folder(training))

    def write_history(self, training: Train, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the history of a training, one record an epoch."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        self.store.write(names.history_name(training), text.encode())

    def history(self, training: Train) -> list[dict[str, Any]]:
        """Return the records of the finished epochs of a training; empty before the first."""
        name = names.history_name(training)
        document = Document(
            f"{self.uri}/{name}", "delete it", max_bytes=_MAX_HISTORY_BYTES, finite=False
        )
        try:
            records = document.lines(document.read(self.store, name))
        except NotFoundError:
            return []
        return [dict(record) for record in document.validate(_RECORDS, records)]

    def write_step(self, training: Train, step: Mapping[str, Any]) -> None:
        """Write the progress of a training within an epoch, and the machines in use."""
        self.store.write(names.step_name(training), json.dumps(step).encode())

    def step(self, training: Train) -> dict[str, Any] | None:
        """Return the progress within an epoch: `epoch`, `step`, `steps` and `hosts`.

        None if the file is missing or damaged.
        """
        name = names.step_name(training)
        document = Document(f"{self.uri}/{name}", "delete it")
        try:
            values = document.object(document.read(self.store, name))
            step = document.validate(_STEP_FILES, values)
        except (NotFoundError, DataError):
            # The file only informs people: a damaged file must not end a command.
            return None
        return {**asdict(step), "hosts": list(step.hosts)}

    def commit(self, training: Train, model: "TrainedModel", **figures: Any) -> FoldResult:
        """Write the model of a training, then create the result with the model's name.

        If another process has committed the same training, return the committed result.

        Args:
            training: the training.
            model: the model of the best epoch.
            **figures: the remaining fields of `FoldResult`.
        """
        from mtil.run.checkpoint import model_to_bytes

        data = model_to_bytes(model)
        result = FoldResult(
            round=training.round,
            fold=training.fold,
            part=training.part,
            best_epoch=model.epoch,
            model_sha256=hashlib.sha256(data).hexdigest(),
            fingerprint=self.fingerprint,
            config_digest=compute_config_digest(self.config),
            **figures,
        )
        # The model comes first: a result never names a missing file. If two processes do the same
        # training, one given up for dead and the successor, the first to create the result wins.
        self.store.write(self.model_name(training, result), data)
        text = (json.dumps(asdict(result)) + "\n").encode()
        if not self.store.create(names.result_name(training), text):
            committed = self.result(training)
            assert committed is not None
            committed_name, own_name = (
                self.model_name(training, candidate) for candidate in (committed, result)
            )
            # Equal names mean equal bytes. The own model is deleted only if the committed model
            # exists.
            if committed_name != own_name and self.store.exists(committed_name):
                self.store.delete(own_name)
            result = committed
        self.checkpoints(training).clear()
        self.store.delete(names.step_name(training))
        return result

    def model_name(self, training: Train, result: FoldResult) -> str:
        """Return the name of a training's model file, which contains the digest of the bytes."""
        return names.model_name(training, result.model_sha256)

    def result(self, training: Train) -> FoldResult | None:
        """Return the committed result of a training; None if the training has not ended.

        Raises:
            DataError: if the file is damaged or holds the result of a different training.
        """
        name = names.result_name(training)
        document = Document(f"{self.uri}/{name}", "restore it, or delete it to train again")
        try:
            values = document.object(document.read(self.store, name))
        except NotFoundError:
            return None
        result = document.validate(_RESULTS, values)
        if (result.round, result.fold, result.part) != (
            training.round,
            training.fold,
            training.part,
        ):
            document.refuse(
                f"must be the result of the {training}, but belongs to a different training"
            )
        return result

    def find_trained_folds(self) -> dict[int, list[int]]:
        """Return the folds with a trained main model, by round; rounds and folds ascending."""
        folds_by_round: dict[int, list[int]] = {}
        for name in self.store.names(names.TRAININGS):
            training = names.parse_training(name)
            if training is not None and training.part is None and names.is_result(name):
                folds_by_round.setdefault(training.round, []).append(training.fold)
        return {round_index: sorted(folds) for round_index, folds in sorted(folds_by_round.items())}

    def last_round(self) -> int:
        """Return the last round in which all folds of round 0 are trained.

        Raises:
            DataError: if no fold is trained.
        """
        trained = self.find_trained_folds()
        if 0 not in trained:
            raise DataError(
                f"A run must have a trained fold, but {self.uri} has none; "
                f"run `mtil train --run {self.uri}`."
            )
        return max(round_index for round_index, folds in trained.items() if folds == trained[0])

    def model(self, training: Train) -> "TrainedModel":
        """Read the model of a training.

        Raises:
            DataError: if the training has not ended.
            OtherModelError: if the file is missing or differs from the digest in the result.
            CheckpointError: if this version of mtil cannot read the file.
        """
        from mtil.run.checkpoint import model_from_bytes

        name, data = self.model_file(training)
        return model_from_bytes(data, f"{self.uri}/{name}")

    def model_file(self, training: Train) -> tuple[str, bytes]:
        """Read the model file of a training; return name and bytes.

        Raises:
            DataError: if the training has not ended.
            OtherModelError: if the file is missing or differs from the digest in the result.
        """
        result = self.result(training)
        if result is None:
            raise DataError(
                f"Fold {training.fold} of {self.uri} must be trained first, but round "
                f"{training.round} has no result; run `mtil train --fold {training.fold}`."
            )
        name = self.model_name(training, result)
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

    def read_initial_model(self, fold: int) -> bytes:
        """Return the bytes of the model from which a fold's trainings start.

        Raises:
            DataError: if the run has lost the file.
        """
        name = names.initial_model_name(fold)
        try:
            return self.store.read(name, max_bytes=_MAX_MODEL_BYTES)
        except (NotFoundError, TooLargeError):
            raise DataError(
                f"{self.uri} must hold the model that fold {fold} started from, but {name} is "
                "missing; restore it, or train another run."
            ) from None


def open_existing_run(uri: str, config: Config, data_uri: str, fingerprint: str) -> Run | None:
    """Open the run at a URI without writing; None if the URI has no run. See `Run.create`.

    Raises:
        ConfigError: if the run has a different configuration.
        DataError: if the run has a different data set, or `run.json` is damaged.
    """
    if not open_store(uri).exists(names.RUN):
        return None
    return Run.create(uri, config, data_uri, fingerprint)


def choose_manifest(run_uri: str, data: Store, version: int | None = None) -> Manifest:
    """Return the manifest to train on: of the run's version, or of the newest for a new run.

    The fingerprint is not compared with the run: `Run.create` refuses a different data set.

    Args:
        run_uri: URI of an existing or a future run.
        data: store of the data set.
        version: version requested by the user; None for the default.

    Raises:
        DataError: if the data set or the version does not exist, or `run.json` is damaged.
    """
    if version is not None:
        return manifests.load_version(data, version)
    if not open_store(run_uri).exists(names.RUN):
        return manifests.load_manifest(data)
    return manifests.find_manifest(data, Run.open(run_uri).fingerprint) or manifests.load_manifest(
        data
    )


class TrainingProgressReader:
    """Reads the new progress of a training from the folder of a run."""

    def __init__(self, run: Run, training: Train) -> None:
        self._run, self._training = run, training
        self._epochs = len(run.history(training))
        self._step: dict[str, Any] | None = None

    def lines(self) -> list[dict[str, Any]]:
        """Return an `epoch` line per new epoch, and a `step` line if the step has changed."""
        history, step = self._run.history(self._training), self._run.step(self._training)
        lines: list[dict[str, Any]] = [
            {"kind": "epoch", **record} for record in history[self._epochs :]
        ]
        self._epochs = max(self._epochs, len(history))
        if step is not None and step != self._step and step["epoch"] >= self._epochs:
            self._step = step
            lines.append({"kind": "step", "fold": self._training.fold, **step})
        return lines
