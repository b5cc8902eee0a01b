"""Score test rows with the models of a run, in an actor pool. Every image is scored once."""

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
"""Test rows of a shard scored per call. Small enough to spread a small data set over many
actors."""
_PIXELS_PER_ACTOR = 32 * 256**2
"""Input pixels that justify an additional CPU actor. Starting an actor takes four seconds."""


class Scorer:
    """Actor that scores test rows with the models of a round."""

    def __init__(self, run_uri: str, data_uri: str, round_index: int, gpus: float) -> None:
        # Imported here: the driver does not need PyTorch.
        from mtil.models.devices import own_device

        self._device = own_device(gpus)
        self._run, self._round = Run.open(run_uri), round_index
        self._store = open_store(data_uri)
        self._manifest = self._run.manifest(data_uri)
        self._chains: dict[int, list[list[Predictor]]] = {}
        self._shard: tuple[int, pa.Table] | None = None

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit of work (fold, shard, start) in the block."""
        from mtil.prediction.predictor import predictors
        from mtil.prediction.scoring import EVALUATION_COLUMNS, score_chains

        (unit,) = block.to_pylist()
        fold = unit["fold"]
        if fold not in self._chains:
            self._chains[fold] = [
                predictors(models, self._device) for models in chains(self._run, self._round, fold)
            ]
        if self._shard is None or self._shard[0] != unit["shard"]:
            shard = self._manifest.shards[unit["shard"]]
            self._shard = (unit["shard"], read(self._store, shard, EVALUATION_COLUMNS))
        table = self._shard[1]
        rows = _select_test_rows(self._manifest, fold).rows(table)[unit["start"] :][:_UNIT_ROWS]
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
    """Score the test rows of folds with models that have not seen the rows. Write the predictions.

    The rows of the holdout, fold `HOLDOUT`, are scored by the ensemble of all trained folds. The
    predictions of each fold are written to the run.

    Args:
        run: the run.
        folds: folds whose test rows are scored.
        number: round of the models.
        num_workers: number of actors. By default as many as there are CPUs.
        gpus_per_worker: GPUs reserved per actor.
        listen: receives `{"kind": "scored", "images", "of"}`.

    Returns:
        all predictions, ordered by fold, id and pass.

    Raises:
        UserError: if the data set is not the run's, a fold is untrained, or the workers do not fit.
        DataError: if an image was not scored exactly once per pass.
    """
    store = open_store(run.data_uri)
    manifest = run.manifest()
    for fold in folds:
        # Fail here at once, rather than in an actor after seconds.
        check_models(run, number, fold)
    units = _list_units(manifest, folds)
    num_pixels = _count_rows(units) * run.config.data.image_size**2
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
            listen({"kind": "scored", "images": images, "of": _count_rows(units)})
    predictions = with_named_sources(pa.concat_tables(tables), manifest).sort_by(
        [("fold", "ascending"), ("sample_id", "ascending"), ("pass", "ascending")]
    )
    for fold in folds:
        fold_predictions = predictions.filter(pa.compute.equal(predictions["fold"], fold))
        check_complete(fold_predictions, total(manifest, _select_test_rows(manifest, fold)), fold)
        sink = io.BytesIO()
        pq.write_table(fold_predictions, sink)
        run.store.write(run.predictions_name(number, fold), sink.getvalue())
    return predictions


def actor_pool(
    num_units: int, num_pixels: int, num_workers: int | None, gpus_per_worker: float
) -> tuple[ActorPoolStrategy, float]:
    """Return an actor pool and the CPUs reserved by each actor.

    With `num_workers` the pool has a fixed size. Otherwise the pool starts with an actor and grows
    with the load, limited by the number of units, their pixels and the free room of the cluster.

    Args:
        num_units: units of work.
        num_pixels: input pixels of all units.
        num_workers: number of actors; None for an elastic pool.
        gpus_per_worker: GPUs reserved per actor.

    Raises:
        ResourceError: if the cluster has no room.
    """
    nodes = cluster.nodes()
    max_actors = 1 if gpus_per_worker else max(1, int(sum(node.cpus for node in nodes)))
    num_actors = num_workers or min(
        max_actors, num_units, max(1, math.ceil(num_pixels / _PIXELS_PER_ACTOR))
    )
    cpus = preflight.cpus_per_worker(nodes, num_workers=num_actors, cpus=None, gpus=gpus_per_worker)
    if num_workers:
        return ActorPoolStrategy(size=num_actors), cpus
    return ActorPoolStrategy(min_size=1, max_size=num_actors), cpus


def quiet(units: Sequence[dict[str, Any]]) -> Dataset:
    """Return units of work as a Ray data set with a block per unit, without progress output."""
    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().print_on_execution_start = False
    return ray.data.from_items(list(units), override_num_blocks=len(units))


def _select_test_rows(manifest: Manifest, fold: int) -> Selection:
    return select(manifest, fold, "test")


def _list_units(manifest: Manifest, folds: Sequence[int]) -> list[dict[str, int]]:
    return [
        {"fold": fold, "shard": index, "start": start, "rows": min(_UNIT_ROWS, count - start)}
        for fold in folds
        for index, shard in enumerate(manifest.shards)
        for count in [_select_test_rows(manifest, fold).count(shard)]
        for start in range(0, count, _UNIT_ROWS)
    ]


def _count_rows(units: Sequence[dict[str, int]]) -> int:
    return sum(unit["rows"] for unit in units)
