"""Trace the map and the predictions of an image back to the data set. No Ray.

Reads only stored files: manifest, shards, results, models, ledger. The files name each other by
digest. Every contradiction becomes a sentence in `Lineage.disagreements`.
"""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.circle.inputs import find_map_source, select_mapped_rows, select_training_rows
from mtil.circle.ledger import Ledger
from mtil.circle.lineage.links import (
    DataLink,
    Lineage,
    MapLink,
    ModelLink,
    PassLink,
    PredictionLink,
)
from mtil.circle.state import CircleState
from mtil.config import compute_config_digest
from mtil.data.dataset import shards
from mtil.data.dataset.batches import ROLE_COLUMNS
from mtil.data.dataset.manifest import Manifest, Shard
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds.splits import SPLITS_FILE as SPLITS
from mtil.errors import (
    CheckpointError,
    DataError,
    MapError,
    NotFoundError,
    OtherModelError,
    RunError,
    TooLargeError,
)
from mtil.run import maps, names, scores
from mtil.run.folder import FoldResult, Run
from mtil.run.maps import MapOrigin
from mtil.run.plan import Action, Evaluate, Train, WriteMaps, find_map_writers, find_models_used
from mtil.run.plan import find_warm_start as ancestor
from mtil.storage import open_store

_DIGEST_SHOWN = 12
_COLUMNS = ("sample_id", *ROLE_COLUMNS, "label")
_CLAIMS = ("pass", "probability", "fold", "model_sha256", "fingerprint", "config_digest", "version")


def trace_lineage(run: Run, sample_id: str, fold: int | None = None) -> Lineage:
    """Return the lineage of an image: the latest map, the latest predictions and all their sources.

    Reads the shards of the data set in order until the image is found.

    Args:
        run: the run.
        sample_id: id of the image.
        fold: fold of the map. By default the fold with the latest map among the folds trained on
            the image.

    Raises:
        DataError: if the image does not exist, or the fold (by default every fold) has neither
            trained on the image nor tested it.
        LedgerError: if the ledger is damaged.
        RunError: if damaged predictions could be the only ones of the image.
    """
    manifest = run.manifest()
    shard, table = _find_shard(run, manifest, sample_id)
    tracer = _Tracer(run, manifest, shard, table, sample_id)
    writers = {number: tracer.writer(number) for number in run.find_trained_folds().get(0, [])}
    folds = tuple(number for number, writer in writers.items() if writer is not None)
    prediction = tracer.prediction()
    judges = tracer.judges
    if fold is not None and fold not in folds and (prediction is None or prediction.fold != fold):
        alternatives = f"Folds {list(folds)} have" if folds else "No fold has"
        raise DataError(
            f"No lineage in fold {fold}: the fold has not trained on {sample_id!r} in {run.uri}. "
            f"{alternatives}."
        )
    if not folds and prediction is None:
        # Damaged predictions may hold the image: name the damage rather than deny the test.
        if tracer.disagreements:
            raise RunError(tracer.disagreements[0])
        raise DataError(
            f"No lineage for {sample_id!r} in {_fold_name(tracer.data.fold)}: {run.uri} has not "
            "trained on or tested the image."
        )
    wanted = [number for number in folds if fold in (None, number)]
    start = tracer.latest([writers[number] for number in wanted])
    chain = () if start is None else tracer.chain(start)
    return Lineage(
        sample_id=sample_id,
        folds=folds,
        chain=chain,
        prediction=prediction,
        judges=judges,
        data=tracer.data,
        disagreements=tuple(tracer.disagreements),
    )


def _fold_name(fold: int) -> str:
    return "the holdout" if fold == HOLDOUT else f"fold {fold}"


def _find_shard(run: Run, manifest: Manifest, sample_id: str) -> tuple[Shard, pa.Table]:
    """Return the shard holding an image, with a table of ids, roles and labels."""
    store = open_store(run.data_uri)
    for shard in manifest.shards:
        table = shards.read_shard(store, shard, _COLUMNS)
        if _position(table, sample_id) >= 0:
            return shard, table
    raise DataError(
        f"The data set {store.uri} has no image {sample_id!r}. See {SPLITS} there for all ids."
    )


def _position(table: pa.Table, sample_id: str) -> int:
    """Return the row of an image in a table; -1 if missing."""
    position: int = pa.compute.index(table.column("sample_id"), sample_id).as_py()
    return position


class _Tracer:
    """Follow an image through the files of a run. Collect contradictions between files."""

    def __init__(
        self, run: Run, manifest: Manifest, shard: Shard, table: pa.Table, sample_id: str
    ) -> None:
        self.disagreements: list[str] = []
        self.judges: tuple[ModelLink, ...] = ()
        self._run, self._manifest, self._shard, self._table = run, manifest, shard, table
        self._row, self._id = table.slice(_position(table, sample_id), 1), sample_id
        self._config_digest = compute_config_digest(run.config)
        self._state: CircleState | None = Ledger.open(run.store).state
        if self._state is not None:
            begin = self._state.begin
            self._check("fingerprint", begin.fingerprint, run.fingerprint, "ledger", "run.json")
            self._check(
                "config digest", begin.config_digest, self._config_digest, "ledger", "run.json"
            )
        (roles,) = self._row.select(ROLE_COLUMNS).to_pylist()
        self.data = DataLink(
            uri=run.data_uri,
            version=manifest.version,
            fingerprint=manifest.fingerprint,
            file=shard.path,
            sha256=shard.sha256,
            **roles,
        )

    def writer(self, fold: int) -> WriteMaps | None:
        """Return the action that maps the image in round 0 of a fold. None if not trained on."""
        parts = self._run.plan([fold]).parts
        writers = [w for part in parts if self._maps_image(w := WriteMaps(0, fold, part))]
        return writers[0] if writers else None

    def latest(self, writers: Iterable[WriteMaps | None]) -> Train | WriteMaps | None:
        """Return the writer of the latest map. Without a map, the latest training.

        None if no training has a result.
        """
        of_image = [writer for writer in writers if writer is not None]
        rounds = range(self._run.config.circle.num_rounds - 1, -1, -1)
        candidates = [WriteMaps(r, writer.fold, writer.part) for r in rounds for writer in of_image]
        for writer in candidates:
            # A finished writer whose maps were deleted by `mtil gc` still counts.
            if self._is_done(writer) or self._run.store.exists(self._map_file(writer)):
                return writer
        for training in [Train(writer.round, writer.fold) for writer in candidates]:
            if self._result(training) is not None:
                return training
        return None

    def chain(self, *starts: Train | WriteMaps) -> tuple[MapLink | ModelLink, ...]:
        """Return the links of some actions and of all their sources, latest first."""
        links: dict[Train | WriteMaps, MapLink | ModelLink | None] = {}
        waiting = list(starts)
        while waiting:
            action = waiting.pop()
            if action in links:
                continue
            if isinstance(action, Train):
                links[action], sources = self._model_link(action)
            else:
                links[action], sources = self._map_link(action)
            waiting += sources
        present = [link for link in links.values() if link is not None]
        return tuple(sorted(present, key=_sort_key))

    def prediction(self) -> PredictionLink | None:
        """Return the latest predictions. None if the image was not tested. Sets `judges`."""
        fold = self.data.fold
        for round_index in range(self._run.config.circle.num_rounds - 1, -1, -1):
            name = self._run.predictions_name(round_index, fold)
            try:
                data = self._run.store.read(name, max_bytes=scores.MAX_BYTES)
            except NotFoundError:
                continue
            except TooLargeError as error:
                self._report(str(error))
                return None
            return self._prediction_link(round_index, name, data)
        return None

    def _prediction_link(self, round_index: int, name: str, data: bytes) -> PredictionLink | None:
        try:
            table = scores.decode_scores(data)
            rows = table.filter(pa.compute.equal(table.column("sample_id"), self._id))
            claims = rows.select(_CLAIMS).sort_by("pass").to_pylist()
        except (pa.ArrowException, OSError, LookupError):
            self._report(f"{name} is damaged: the file holds no readable predictions.")
            return None
        if not claims:
            self._report(f"{name} has no prediction of the image.")
            return None
        fold = self.data.fold
        sha256 = hashlib.sha256(data).hexdigest()
        # The ledger has no evaluations of the holdout.
        ledger_sha256 = (
            None if fold == HOLDOUT else self._ledger_value(Evaluate(round_index, fold), "sha256")
        )
        by_digest = self._by_digest()
        trainings: list[Train] = []
        passes = []
        for claim in claims:
            judges = [by_digest.get(digest_) for digest_ in claim["model_sha256"].split(";")]
            trainings += [judge for judge in judges if judge is not None]
            passes.append(self._pass_link(name, claim, judges))
        links = self.chain(*trainings)
        self.judges = tuple(link for link in links if isinstance(link, ModelLink))
        return PredictionLink(
            round=round_index,
            fold=fold,
            file=name,
            sha256=sha256,
            as_in_ledger=None if ledger_sha256 is None else ledger_sha256 == sha256,
            passes=tuple(passes),
        )

    def _pass_link(self, name: str, claim: dict[str, Any], judges: list[Train | None]) -> PassLink:
        where = f"pass {claim['pass']} of {name}"
        files = []
        for sha256, judge in zip(str(claim["model_sha256"]).split(";"), judges, strict=True):
            result = None if judge is None else self._result(judge)
            if judge is None or result is None:
                self._report(
                    f"No training of the run made model {_short(sha256)}, named in {where}."
                )
                files.append(sha256)
                continue
            files.append(self._run.model_name(judge, result))
            self._check("version", claim["version"], result.version, where, f"the {judge}")
            if self._has_seen(judge):
                self._report(
                    f"The {judge}, named in {where}, has trained on the image, but must not have "
                    "seen a test image."
                )
        self._check("fold", claim["fold"], self.data.fold, where, self._shard.path)
        expected = {"fingerprint": self._run.fingerprint, "config_digest": self._config_digest}
        for key, value in expected.items():
            self._check(key.replace("_", " "), claim[key], value, where, "run.json")
        return PassLink(
            number=claim["pass"],
            probability=claim["probability"],
            models=tuple(files),
            fingerprint=claim["fingerprint"],
            config_digest=claim["config_digest"],
            version=claim["version"],
        )

    def _map_link(self, action: WriteMaps) -> tuple[MapLink | None, list[Train | WriteMaps]]:
        plan, name = self._run.plan([action.fold]), self._map_file(action)
        (training,) = find_models_used(plan, action)
        result = self._result(training)
        if result is None:
            self._report(f"The {training} has no result, but the {action} exist.")
            return None, []
        priors = [writer for writer in find_map_writers(plan, action) if self._maps_image(writer)]
        origin, is_removed = self._origin(action, name)
        ledger_sha256 = self._ledger_value(action, "model_sha256")
        if ledger_sha256 is not None:
            self._check(
                "model", ledger_sha256, result.model_sha256, f"ledger on the {action}", "its result"
            )
        link = MapLink(
            round=action.round,
            fold=action.fold,
            part=action.part,
            file=name,
            is_removed=is_removed,
            origin=origin,
            model=self._run.model_name(training, result),
            given=self._map_file(priors[0]) if priors else None,
        )
        return link, [training, *priors]

    def _origin(self, action: WriteMaps, name: str) -> tuple[MapOrigin | None, bool]:
        """Check a map shard. Return the stored origin, and True if the file is removed."""
        store = self._run.store
        try:
            data = store.read(name, max_bytes=maps.MAX_BYTES)
        except NotFoundError:
            return None, True
        except TooLargeError:
            # `maps.read_maps` below reads the file again and reports the size.
            data = b""
        source = find_map_source(self._run, self._manifest, action)
        ids = self._table.column("sample_id").take(pa.array(source.rows.rows(self._table)))
        try:
            maps.read_maps(store, name, source.origin_of(self._shard), ids)
        except MapError as error:
            self._report(str(error))
        try:
            return maps.decode_maps(data)[0], False
        except ValueError:
            return None, False

    def _model_link(self, action: Train) -> tuple[ModelLink | None, list[Train | WriteMaps]]:
        plan, result = self._run.plan([action.fold]), self._result(action)
        if result is None:
            self._report(
                f"The {action} has no result, but a later training started from the model."
            )
            return None, []
        is_readable = self._check_model(action, result)
        start, has_seen = ancestor(plan, action), self._has_seen(action)
        prior_maps = [one for one in find_map_writers(plan, action) if self._maps_image(one)]
        start_result = None if start is None else self._result(start)
        link = ModelLink(
            round=action.round,
            fold=action.fold,
            part=action.part,
            file=self._run.model_name(action, result),
            sha256=result.model_sha256,
            fingerprint=result.fingerprint,
            config_digest=result.config_digest,
            version=result.version,
            is_readable=is_readable,
            starts_from=self._name_start(action, start, start_result),
            has_seen=has_seen,
            reads=self._map_file(prior_maps[0]) if prior_maps else None,
        )
        return link, [*([] if start is None else [start]), *prior_maps]

    def _check_model(self, action: Train, result: FoldResult) -> bool:
        """Check the claims about a model. Return True if the model file is readable."""
        run = self._run
        name = f"result of the {action}"
        self._check("fingerprint", result.fingerprint, run.fingerprint, name, "run.json")
        self._check("config digest", result.config_digest, self._config_digest, name, "run.json")
        ledger_sha256 = self._ledger_value(action, "model_sha256")
        if ledger_sha256 is not None:
            self._check("model", ledger_sha256, result.model_sha256, "ledger", name)
        try:
            model = run.model(action)
        except OtherModelError as error:
            self._report(str(error))
            return False
        except CheckpointError:
            # The committed file is intact, but written by an incompatible mtil version.
            return False
        file = run.model_name(action, result)
        self._check("fingerprint", model.fingerprint, result.fingerprint, file, name)
        self._check(
            "config digest", compute_config_digest(model.config), result.config_digest, file, name
        )
        self._check("version", model.version, result.version, file, name)
        self._check("fold", model.fold, result.fold, file, name)
        return True

    def _by_digest(self) -> dict[str, Train]:
        """Map the sha256 of main models to their trainings."""
        trainings = {}
        for round_index, folds in self._run.find_trained_folds().items():
            for training in [Train(round_index, fold) for fold in folds]:
                result = self._result(training)
                if result is not None:
                    trainings[result.model_sha256] = training
        return trainings

    def _result(self, training: Train) -> FoldResult | None:
        try:
            return self._run.result(training)
        except DataError as error:
            self._report(str(error))
            return None

    def _has_seen(self, training: Train) -> bool:
        rows = select_training_rows(self._run.config, self._manifest, training)
        return len(rows.rows(self._row)) > 0

    def _maps_image(self, writer: WriteMaps) -> bool:
        """Return True if the image is among the rows mapped by an action."""
        rows = select_mapped_rows(self._run.config, self._manifest, writer)
        return len(rows.rows(self._row)) > 0

    def _name_start(
        self, action: Train, start: Train | None, result: FoldResult | None
    ) -> str | None:
        """Return the file of the weights that a training started from."""
        if start is not None:
            return None if result is None else self._run.model_name(start, result)
        return names.initial_model_name(action.fold) if self._run.config.train.init else None

    def _map_file(self, writer: WriteMaps) -> str:
        return f"{self._run.map_folder(writer)}/{PurePosixPath(self._shard.path).name}"

    def _is_done(self, action: Action) -> bool:
        return self._state is not None and action in self._state.done

    def _ledger_value(self, action: Action, key: str) -> object:
        """Return a value of a finished action from the ledger. None if absent."""
        return None if self._state is None else self._state.done.get(action, {}).get(key)

    def _check(
        self, what: str, value: object, expected: object, source: str, reference: str
    ) -> None:
        if value != expected:
            self._report(
                f"The {what} differs: {source} has {_short(value)} and {reference} has "
                f"{_short(expected)}."
            )

    def _report(self, sentence: str) -> None:
        if sentence not in self.disagreements:
            self.disagreements.append(sentence)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _DIGEST_SHOWN else f"{text[:_DIGEST_SHOWN]}…"


def _sort_key(link: MapLink | ModelLink) -> tuple[int, bool, int, int]:
    part = -1 if link.part is None else link.part
    return -link.round, isinstance(link, ModelLink), link.fold, part
