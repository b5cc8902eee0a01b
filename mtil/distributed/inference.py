"""A run's models over the shards' test rows: an actor pool in which each image is seen once."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext

from mtil.checkpoint import Model
from mtil.data import manifest as manifests
from mtil.data.folds import HOLDOUT
from mtil.data.manifest import Manifest
from mtil.data.selection import Selection, select, total
from mtil.data.shards import read
from mtil.distributed import cluster, preflight
from mtil.distributed.trainer import unwrapped
from mtil.errors import DataError
from mtil.evaluation import EVALUATION_COLUMNS, check_complete, score
from mtil.inference import Predictor
from mtil.run import Run
from mtil.storage import open_store

_UNIT_ROWS = 64
"""Test rows of a shard that one call scores: small enough to share a small data set out."""


class Scorer:
    """An actor that scores test rows with the models of a run."""

    def __init__(self, run_uri: str, data_uri: str) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # as many workers as CPUs, and sums in the same order in each
        self._run = Run.open(run_uri)
        self._store = open_store(data_uri)
        self._manifest = manifests.load(self._store)
        self._predictors: dict[int, list[Predictor]] = {}
        self._shard: tuple[int, pa.Table] | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit that the block names: (fold, shard, start)."""
        (unit,) = block.to_pylist()
        fold = unit["fold"]
        if fold not in self._predictors:
            models = judges(self._run, fold, self._manifest)
            self._predictors[fold] = [Predictor(model) for model in models]
        if self._shard is None or self._shard[0] != unit["shard"]:
            shard = self._manifest.shards[unit["shard"]]
            self._shard = (unit["shard"], read(self._store, shard, EVALUATION_COLUMNS))
        table = self._shard[1]
        rows = _test_rows(self._manifest, fold).rows(table)[unit["start"] :][:_UNIT_ROWS]
        return score(table.take(pa.array(rows)), *self._predictors[fold])


def predict_folds(
    run: Run,
    folds: Sequence[int],
    *,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    listen: Callable[[dict[str, Any]], None],
) -> pa.Table:
    """Score the test rows of folds, each with the model that has not seen them.

    The rows of the holdout, as fold `HOLDOUT`, are judged by all trained folds' models together.

    Each fold's predictions are written to the run. Returns all of them, ordered by fold and id.

    Raises:
        UserError: if the data set is not the run's, a fold is untrained, or the workers do not fit.
        DataError: if an image was not seen exactly once.
    """
    store = open_store(run.data_uri)
    manifest = manifests.load(store)
    run.check_data(manifest, store.uri)
    for fold in folds:
        judges(
            run, fold, manifest
        )  # a fold that is missing or damaged is an error before anything starts
    units = _units(manifest, folds)
    nodes = cluster.nodes()
    wanted = num_workers or max(
        1, int(sum(node.cpus for node in nodes)) if not gpus_per_worker else 1
    )
    wanted = wanted if num_workers else min(wanted, len(units))
    cpus = preflight.cpus_per_worker(nodes, num_workers=wanted, cpus=None, gpus=gpus_per_worker)
    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().print_on_execution_start = False
    with unwrapped():
        scored = ray.data.from_items(units, override_num_blocks=len(units)).map_batches(
            Scorer,
            fn_constructor_args=(run.uri, store.uri),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=wanted),
            num_cpus=cpus,
            num_gpus=gpus_per_worker,
        )
        tables: list[pa.Table] = []
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table)
            listen(
                {"kind": "scored", "images": sum(t.num_rows for t in tables), "of": _count(units)}
            )
    predictions = pa.concat_tables(tables).sort_by(
        [("fold", "ascending"), ("sample_id", "ascending")]
    )
    for fold in folds:
        of_fold = predictions.filter(pa.compute.equal(predictions["fold"], fold))
        check_complete(of_fold, total(manifest, _test_rows(manifest, fold)), fold)
        sink = io.BytesIO()
        pq.write_table(of_fold, sink)
        run.store.write(f"{run.folder(fold)}/predictions.parquet", sink.getvalue())
    return predictions


def judges(run: Run, fold: int, manifest: Manifest) -> list[Model]:
    """Return the models that a fold's test rows are judged by.

    Raises:
        DataError: if none is trained.
    """
    if fold != HOLDOUT:
        return [run.model(fold)]
    trained = run.trained_folds(manifest.num_folds)
    if not trained:
        raise DataError(f"A run must have a trained fold, but {run.uri} has none; train one first.")
    return [run.model(number) for number in trained]


def _test_rows(manifest: Manifest, fold: int) -> Selection:
    return select(manifest, fold, "test")


def _units(manifest: Manifest, folds: Sequence[int]) -> list[dict[str, int]]:
    return [
        {"fold": fold, "shard": index, "start": start, "rows": min(_UNIT_ROWS, count - start)}
        for fold in folds
        for index, shard in enumerate(manifest.shards)
        for count in [_test_rows(manifest, fold).count(shard)]
        for start in range(0, count, _UNIT_ROWS)
    ]


def _count(units: Sequence[dict[str, int]]) -> int:
    return sum(unit["rows"] for unit in units)
