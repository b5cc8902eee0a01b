"""Where one image's map and predictions come from, down to the data set's shard. No Ray.

All of it is read from the files: the manifest, the shards, the results of trainings, the models,
the ledger. They name each other by digests, and what does not agree is said in a sentence.
"""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.circle.inputs import map_source, mapped_rows, training_rows
from mtil.circle.ledger import Ledger
from mtil.circle.lineage.links import (
    DataLink,
    Lineage,
    MapLink,
    ModelLink,
    PassLink,
    PredictionLink,
)
from mtil.circle.state import State
from mtil.config import digest
from mtil.data.dataset import shards
from mtil.data.dataset.batches import ROLE_COLUMNS
from mtil.data.dataset.manifest import Manifest, Shard
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds.splits import FILE_NAME as SPLITS
from mtil.errors import (
    CheckpointError,
    DataError,
    MapError,
    NotFoundError,
    OtherModelError,
    RunError,
    TooLargeError,
)
from mtil.run import maps, scores
from mtil.run.folder import FoldResult, Run
from mtil.run.maps import Origin
from mtil.run.plan import Action, Evaluate, Train, WriteMaps, models_of, reads_maps_of
from mtil.run.plan import starts_from as ancestor
from mtil.storage import open_store

_DIGEST_SHOWN = 12
_COLUMNS = ("sample_id", *ROLE_COLUMNS, "label")
_CLAIMS = ("pass", "probability", "fold", "model_sha256", "fingerprint", "config_digest", "version")


def trace(run: Run, sample_id: str, fold: int | None = None) -> Lineage:
    """Return where an image's latest map, and its latest predictions, come from.

    The shards of the data set are read one after the other until one holds the image.

    Args:
        run: the run.
        sample_id: of the image.
        fold: whose map; of those that have trained on the image, the one whose map is the latest.

    Raises:
        DataError: if there is no such image, or the fold, or every fold, has neither trained on it
            nor been tested with it.
        LedgerError: if the ledger is damaged.
        RunError: if predictions are damaged that could be the image's only ones.
    """
    manifest = run.manifest()
    shard, table = _shard_with(run, manifest, sample_id)
    tracer = _Tracer(run, manifest, shard, table, sample_id)
    writers = {number: tracer.writer(number) for number in run.trained().get(0, [])}
    folds = tuple(number for number, writer in writers.items() if writer is not None)
    prediction = tracer.prediction()
    judges = tracer.judges
    if fold is not None and fold not in folds and (prediction is None or prediction.fold != fold):
        others = f"the folds that have are {list(folds)}" if folds else "no fold has"
        raise DataError(
            f"The fold of a lineage must have trained on the image, but fold {fold} of {run.uri} "
            f"has not trained on {sample_id!r}; {others}."
        )
    if not folds and prediction is None:
        if tracer.disagreements:
            raise RunError(tracer.disagreements[0])
        raise DataError(
            f"An image with a lineage must have been trained on or tested, but {sample_id!r}, "
            f"which is in {_called(tracer.data.fold)}, has been neither in {run.uri}."
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


def _called(fold: int) -> str:
    return "the holdout" if fold == HOLDOUT else f"fold {fold}"


def _shard_with(run: Run, manifest: Manifest, sample_id: str) -> tuple[Shard, pa.Table]:
    """Return the shard that holds an image, and its ids and roles."""
    store = open_store(run.data_uri)
    for shard in manifest.shards:
        table = shards.read(store, shard, _COLUMNS)
        if _position(table, sample_id) >= 0:
            return shard, table
    raise DataError(
        f"An image must be in the run's data set, but {store.uri} has no {sample_id!r}; "
        f"its {SPLITS} lists what it has."
    )


def _position(table: pa.Table, sample_id: str) -> int:
    """Return where an image is in a table; -1 if it is not."""
    position: int = pa.compute.index(table.column("sample_id"), sample_id).as_py()
    return position


class _Tracer:
    """Follows an image through a run's files, and notes what they do not agree on."""

    def __init__(
        self, run: Run, manifest: Manifest, shard: Shard, table: pa.Table, sample_id: str
    ) -> None:
        self.disagreements: list[str] = []
        self.judges: tuple[ModelLink, ...] = ()
        self._run, self._manifest, self._shard, self._table = run, manifest, shard, table
        self._row, self._id = table.slice(_position(table, sample_id), 1), sample_id
        self._config_digest = digest(run.config)
        self._state: State | None = Ledger.open(run.store).state
        if self._state is not None:
            begin = self._state.begin
            self._check("fingerprint", begin.fingerprint, run.fingerprint, "ledger", "run.json")
            self._check(
                "config digest", begin.config_digest, self._config_digest, "ledger", "run.json"
            )
        (place,) = self._row.select(ROLE_COLUMNS).to_pylist()
        self.data = DataLink(
            uri=run.data_uri,
            version=manifest.version,
            fingerprint=manifest.fingerprint,
            file=shard.path,
            sha256=shard.sha256,
            **place,
        )

    def writer(self, fold: int) -> WriteMaps | None:
        """Return who maps the image in the first round of a fold; None if it is not trained on."""
        parts = self._run.plan([fold]).parts
        found = [one for part in parts if self._is_of(one := WriteMaps(0, fold, part))]
        return found[0] if found else None

    def latest(self, writers: Iterable[WriteMaps | None]) -> Train | WriteMaps | None:
        """Return who wrote the image's latest map; without any, its latest training."""
        of_image = [writer for writer in writers if writer is not None]
        rounds = range(self._run.config.circle.num_rounds - 1, -1, -1)
        later = [WriteMaps(r, one.fold, one.part) for r in rounds for one in of_image]
        for writer in later:
            if self._is_done(writer) or self._run.store.exists(self._map_file(writer)):
                return writer
        for training in [Train(writer.round, writer.fold) for writer in later]:
            if self._result(training) is not None:
                return training
        return None

    def chain(self, *starts: Train | WriteMaps) -> tuple[MapLink | ModelLink, ...]:
        """Return what some actions made, and what that was made from, the latest first."""
        links: dict[Train | WriteMaps, MapLink | ModelLink | None] = {}
        waiting = list(starts)
        while waiting:
            action = waiting.pop()
            if action in links:
                continue
            if isinstance(action, Train):
                links[action], before = self._model_link(action)
            else:
                links[action], before = self._map_link(action)
            waiting += before
        found = [link for link in links.values() if link is not None]
        return tuple(sorted(found, key=_place))

    def prediction(self) -> PredictionLink | None:
        """Return the image's latest predictions, if it was tested, and note who judged it."""
        fold = self.data.fold
        for number in range(self._run.config.circle.num_rounds - 1, -1, -1):
            name = self._run.predictions_name(number, fold)
            try:
                data = self._run.store.read(name, max_bytes=scores.MAX_BYTES)
            except NotFoundError:
                continue
            except TooLargeError as error:
                self._say(str(error))
                return None
            return self._predicted(number, name, data)
        return None

    def _predicted(self, number: int, name: str, data: bytes) -> PredictionLink | None:
        try:
            table = scores.decode(data)
            rows = table.filter(pa.compute.equal(table.column("sample_id"), self._id))
            claims = rows.select(_CLAIMS).sort_by("pass").to_pylist()
        except (pa.ArrowException, OSError, LookupError):
            self._say(f"{name} must hold predictions, but is damaged.")
            return None
        if not claims:
            self._say(f"{name} must hold the image, but does not.")
            return None
        fold = self.data.fold
        sha256 = hashlib.sha256(data).hexdigest()
        named = None if fold == HOLDOUT else self._told(Evaluate(number, fold), "sha256")
        by_digest = self._by_digest()
        trainings: list[Train] = []
        passes = []
        for claim in claims:
            judges = [by_digest.get(one) for one in claim["model_sha256"].split(";")]
            trainings += [judge for judge in judges if judge is not None]
            passes.append(self._pass(name, claim, judges))
        links = self.chain(*trainings)
        self.judges = tuple(link for link in links if isinstance(link, ModelLink))
        return PredictionLink(
            round=number,
            fold=fold,
            file=name,
            sha256=sha256,
            as_in_ledger=None if named is None else named == sha256,
            passes=tuple(passes),
        )

    def _pass(self, name: str, claim: dict[str, Any], judges: list[Train | None]) -> PassLink:
        where = f"pass {claim['pass']} of {name}"
        files = []
        for sha256, judge in zip(str(claim["model_sha256"]).split(";"), judges, strict=True):
            result = None if judge is None else self._result(judge)
            if judge is None or result is None:
                self._say(
                    f"A training must have made model {_short(sha256)}, which {where} names, but "
                    "none has."
                )
                files.append(sha256)
                continue
            files.append(self._run.model_name(judge, result))
            self._check("version", claim["version"], result.version, where, f"the {judge}")
            if self._has_seen(judge):
                self._say(
                    f"A test image must not have been trained on by its judge, but the {judge}, "
                    f"which {where} names, has seen it."
                )
        self._check("fold", claim["fold"], self.data.fold, where, self._shard.path)
        wanted = {"fingerprint": self._run.fingerprint, "config_digest": self._config_digest}
        for key, value in wanted.items():
            self._check(key.replace("_", " "), claim[key], value, where, "run.json")
        return PassLink(
            number=claim["pass"],
            probability=claim["probability"],
            models=tuple(files),
            fingerprint=claim["fingerprint"],
            config_digest=claim["config_digest"],
            version=claim["version"],
        )

    def _map_link(self, of: WriteMaps) -> tuple[MapLink | None, list[Train | WriteMaps]]:
        plan, name = self._run.plan([of.fold]), self._map_file(of)
        (training,) = models_of(plan, of)
        result = self._result(training)
        if result is None:
            self._say(f"The {training} must have a result, since there are the {of}, but has none.")
            return None, []
        given = [writer for writer in reads_maps_of(plan, of) if self._is_of(writer)]
        origin, is_removed = self._origin(of, name)
        told = self._told(of, "model_sha256")
        if told is not None:
            self._check("model", told, result.model_sha256, f"ledger on the {of}", "its result")
        link = MapLink(
            round=of.round,
            fold=of.fold,
            part=of.part,
            file=name,
            is_removed=is_removed,
            origin=origin,
            model=self._run.model_name(training, result),
            given=self._map_file(given[0]) if given else None,
        )
        return link, [training, *given]

    def _origin(self, of: WriteMaps, name: str) -> tuple[Origin | None, bool]:
        """Return what a map shard says of itself, having checked it, and whether it is gone."""
        store = self._run.store
        try:
            data = store.read(name, max_bytes=maps.MAX_BYTES)
        except NotFoundError:
            return None, True
        except TooLargeError:
            data = b""  # which `maps.read` complains of
        source = map_source(self._run, self._manifest, of)
        ids = self._table.column("sample_id").take(pa.array(source.rows.rows(self._table)))
        try:
            maps.read(store, name, source.origin_of(self._shard), ids)
        except MapError as error:
            self._say(str(error))
        try:
            return maps.decode(data)[0], False
        except ValueError:
            return None, False  # said already

    def _model_link(self, of: Train) -> tuple[ModelLink | None, list[Train | WriteMaps]]:
        plan, result = self._run.plan([of.fold]), self._result(of)
        if result is None:
            self._say(
                f"The {of} must have a result, since a later one began with it, but has none."
            )
            return None, []
        is_readable = self._check_model(of, result)
        start, has_seen = ancestor(plan, of), self._has_seen(of)
        read = [one for one in reads_maps_of(plan, of) if self._is_of(one)]
        began = None if start is None else self._result(start)
        link = ModelLink(
            round=of.round,
            fold=of.fold,
            part=of.part,
            file=self._run.model_name(of, result),
            sha256=result.model_sha256,
            fingerprint=result.fingerprint,
            config_digest=result.config_digest,
            version=result.version,
            is_readable=is_readable,
            starts_from=None
            if start is None or began is None
            else self._run.model_name(start, began),
            has_seen=has_seen,
            reads=self._map_file(read[0]) if read else None,
        )
        return link, [*([] if start is None else [start]), *read]

    def _check_model(self, of: Train, result: FoldResult) -> bool:
        """Check what is said of a model; say whether the file could be looked into."""
        run = self._run
        name = f"result of the {of}"
        self._check("fingerprint", result.fingerprint, run.fingerprint, name, "run.json")
        self._check("config digest", result.config_digest, self._config_digest, name, "run.json")
        told = self._told(of, "model_sha256")
        if told is not None:
            self._check("model", told, result.model_sha256, "ledger", name)
        try:
            model = run.model(of)
        except OtherModelError as error:
            self._say(str(error))
            return False
        except CheckpointError:  # what was committed, but by another version
            return False
        file = run.model_name(of, result)
        self._check("fingerprint", model.fingerprint, result.fingerprint, file, name)
        self._check("config digest", digest(model.config), result.config_digest, file, name)
        self._check("version", model.version, result.version, file, name)
        self._check("fold", model.fold, result.fold, file, name)
        return True

    def _by_digest(self) -> dict[str, Train]:
        """Return the trainings of main models by the digest of what they made."""
        found = {}
        for number, folds in self._run.trained().items():
            for of in [Train(number, fold) for fold in folds]:
                result = self._result(of)
                if result is not None:
                    found[result.model_sha256] = of
        return found

    def _result(self, of: Train) -> FoldResult | None:
        try:
            return self._run.result(of)
        except DataError as error:
            self._say(str(error))
            return None

    def _has_seen(self, of: Train) -> bool:
        rows = training_rows(self._run.config, self._manifest, of)
        return len(rows.rows(self._row)) > 0

    def _is_of(self, writer: WriteMaps) -> bool:
        """Say whether the image is among the rows that an action maps."""
        rows = mapped_rows(self._run.config, self._manifest, writer)
        return len(rows.rows(self._row)) > 0

    def _map_file(self, writer: WriteMaps) -> str:
        return f"{self._run.map_folder(writer)}/{PurePosixPath(self._shard.path).name}"

    def _is_done(self, action: Action) -> bool:
        return self._state is not None and action in self._state.done

    def _told(self, action: Action, key: str) -> object:
        """Return what the ledger says of an action that is done."""
        return None if self._state is None else self._state.done.get(action, {}).get(key)

    def _check(self, what: str, one: object, other: object, of: str, of_other: str) -> None:
        if one != other:
            self._say(
                f"The {what} must be one and the same, but {of} has {_short(one)} and {of_other} "
                f"has {_short(other)}."
            )

    def _say(self, sentence: str) -> None:
        if sentence not in self.disagreements:
            self.disagreements.append(sentence)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _DIGEST_SHOWN else f"{text[:_DIGEST_SHOWN]}…"


def _place(link: MapLink | ModelLink) -> tuple[int, bool, int, int]:
    part = -1 if link.part is None else link.part
    return -link.round, isinstance(link, ModelLink), link.fold, part
