"""A run's models over the shards' test rows: an actor pool in which each image is seen once."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from mtil.circle.inputs import chains, check_models
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Selection, select, total
from mtil.data.dataset.shards import read
from mtil.distributed.runtime import cluster, preflight
from mtil.distributed.runtime.failures import unwrapped
from mtil.prediction.evaluation import check_complete, with_named_sources
from mtil.run.folder import Run
from mtil.storage import open_store

if TYPE_CHECKING:
    from mtil.prediction.predictor import Predictor

_UNIT_ROWS = 64
"""Test rows of a shard that one call scores: small enough to share a small data set out."""
_WORTH_PIXELS = 32 * 256**2
"""Of input to the network that are worth an actor on a CPU, which takes four seconds to start."""


class Scorer:
    """An actor that scores test rows with the models of a run's round."""

    def __init__(self, run_uri: str, data_uri: str, number: int, gpus: float) -> None:
        from mtil.models.devices import (
            own_device,  # PyTorch, which the driver of this does not need
        )

        self._device = own_device(gpus)
        self._run, self._number = Run.open(run_uri), number
        self._store = open_store(data_uri)
        self._manifest = self._run.manifest(data_uri)
        self._chains: dict[int, list[list[Predictor]]] = {}
        self._shard: tuple[int, pa.Table] | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit that the block names: (fold, shard, start)."""
        from mtil.prediction.predictor import predictors
        from mtil.prediction.scoring import EVALUATION_COLUMNS, score_chains

        (unit,) = block.to_pylist()
        fold = unit["fold"]
        if fold not in self._chains:
            self._chains[fold] = [
                predictors(models, self._device) for models in chains(self._run, self._number, fold)
            ]
        if self._shard is None or self._shard[0] != unit["shard"]:
            shard = self._manifest.shards[unit["shard"]]
            self._shard = (unit["shard"], read(self._store, shard, EVALUATION_COLUMNS))
        table = self._shard[1]
        rows = _test_rows(self._manifest, fold).rows(table)[unit["start"] :][:_UNIT_ROWS]
        return score_chains(table.take(pa.array(rows)), self._chains[fold])


def predict_folds(
    run: Run,
    folds: Sequence[int],
    *,
    number: int = 0,
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    listen: Callable[[dict[str, Any]], None],
) -> pa.Table:
    """Score the test rows of folds, each with the models that have not seen them.

    The rows of the holdout, as fold `HOLDOUT`, are judged by all trained folds' models together.

    Each fold's predictions are written to the run. Returns all of them, ordered by fold, id, pass.

    Args:
        run: the run.
        folds: whose test rows.
        number: the round whose models judge them.
        num_workers: how many actors share the work; by default as many as there are CPUs.
        gpus_per_worker: GPUs that each of them reserves.
        listen: told `{"kind": "scored", "images", "of"}`.

    Raises:
        UserError: if the data set is not the run's, a fold is untrained, or the workers do not fit.
        DataError: if an image was not seen exactly once in each pass.
    """
    store = open_store(run.data_uri)
    manifest = run.manifest()
    for fold in folds:
        check_models(run, number, fold)  # told here, and not by actors after seconds
    units = _units(manifest, folds)
    num_pixels = _count(units) * run.config.data.image_size**2
    pool, cpus = actor_pool(len(units), num_pixels, num_workers, gpus_per_worker)
    with unwrapped():
        scored = quiet(units).map_batches(
            Scorer,
            fn_constructor_args=(run.uri, store.uri, number, gpus_per_worker),
            batch_size=1,
            batch_format="pyarrow",
            compute=pool,
            num_cpus=cpus,
            num_gpus=gpus_per_worker,
        )
        tables: list[pa.Table] = []
        for table in scored.iter_batches(batch_size=None, batch_format="pyarrow"):
            tables.append(table)
            images = sum(pa.compute.sum(pa.compute.equal(t["pass"], 0)).as_py() for t in tables)
            listen({"kind": "scored", "images": images, "of": _count(units)})
    predictions = with_named_sources(pa.concat_tables(tables), manifest).sort_by(
        [("fold", "ascending"), ("sample_id", "ascending"), ("pass", "ascending")]
    )
    for fold in folds:
        of_fold = predictions.filter(pa.compute.equal(predictions["fold"], fold))
        check_complete(of_fold, total(manifest, _test_rows(manifest, fold)), fold)
        sink = io.BytesIO()
        pq.write_table(of_fold, sink)
        run.store.write(run.predictions_name(number, fold), sink.getvalue())
    return predictions


def actor_pool(
    num_units: int, num_pixels: int, num_workers: int | None, gpus_per_worker: float
) -> tuple[ActorPoolStrategy, float]:
    """Return a pool of actors and the CPUs that each reserves.

    A number that is asked for is what the pool has; otherwise it starts with one and grows as far
    as the units, their pixels and the room that the cluster has beside what runs already go.

    Raises:
        ResourceError: if the cluster has no room.
    """
    nodes = cluster.nodes()
    most = 1 if gpus_per_worker else max(1, int(sum(node.cpus for node in nodes)))
    wanted = num_workers or min(most, num_units, max(1, math.ceil(num_pixels / _WORTH_PIXELS)))
    cpus = preflight.cpus_per_worker(nodes, num_workers=wanted, cpus=None, gpus=gpus_per_worker)
    if num_workers:
        return ActorPoolStrategy(size=wanted), cpus
    return ActorPoolStrategy(min_size=1, max_size=wanted), cpus


def quiet(units: Sequence[dict[str, Any]]) -> Dataset:
    """Return units of work as a data set, one block each, that reports to nobody."""
    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().print_on_execution_start = False
    return ray.data.from_items(list(units), override_num_blocks=len(units))


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
