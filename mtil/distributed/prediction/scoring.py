"""Score test rows with the models of a run, in an actor pool. Every image is scored once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from mtil.circle.inputs import check_test_models
from mtil.data.dataset.selection import Role
from mtil.distributed.runtime import cluster, preflight
from mtil.distributed.runtime.failures import unwrap_errors
from mtil.prediction.evaluation import store_predictions
from mtil.prediction.units import ScoringUnit, list_units
from mtil.run.folder import Run

_PIXELS_PER_ACTOR = 32 * 256**2
"""Input pixels that justify an additional CPU actor. Starting an actor takes four seconds."""


class ScoringActor:
    """Actor that scores rows with the models of a round."""

    def __init__(
        self,
        run_uri: str,
        data_uri: str,
        round_index: int,
        gpus: float,
        others: Sequence[str] = (),
    ) -> None:
        # Imported here: the driver does not need PyTorch.
        from mtil.models.devices import prepare_device
        from mtil.prediction.units import UnitScorer

        self._scorer = UnitScorer(run_uri, data_uri, round_index, prepare_device(gpus), others)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit of work in the block."""
        (unit,) = block.to_pylist()
        return self._scorer.score(ScoringUnit(**unit))


def predict_folds(
    run: Run,
    folds: Sequence[int],
    *,
    number: int = 0,
    role: Role = "test",
    others: Sequence[str] = (),
    num_workers: int | None = None,
    gpus_per_worker: float = 0.0,
    listen: Callable[[dict[str, Any]], None],
) -> pa.Table:
    """Score the rows of folds with models that have not seen the rows. Write the predictions.

    The rows of the holdout, fold `HOLDOUT`, are scored by the ensemble of all trained folds. The
    predictions of each fold are written to the run.

    Args:
        run: the run.
        folds: folds whose rows are scored.
        number: round of the models.
        role: `test`, or `validation` for the inner validation rows.
        others: URIs of the further runs of an ensemble.
        num_workers: number of actors. By default as many as there are CPUs.
        gpus_per_worker: GPUs reserved per actor.
        listen: receives `{"kind": "scored", "images", "of"}`.

    Returns:
        all predictions, ordered by fold, id and pass.

    Raises:
        UserError: if the data set is not the run's, a fold is untrained, or the workers do not fit.
        DataError: if an image was not scored exactly once per pass.
    """
    manifest = run.manifest()
    for fold in folds:
        # Fail here at once, rather than in an actor after seconds.
        check_test_models(run, number, fold)
    units = list_units(manifest, folds, role)
    num_images = sum(unit.rows for unit in units)
    num_pixels = num_images * run.config.data.image_size**2
    pool, cpus = make_actor_pool(len(units), num_pixels, num_workers, gpus_per_worker)
    with unwrap_errors():
        scored = make_unit_dataset([asdict(unit) for unit in units]).map_batches(
            ScoringActor,
            fn_constructor_args=(run.uri, run.data_uri, number, gpus_per_worker, tuple(others)),
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
            listen({"kind": "scored", "images": images, "of": num_images})
    return store_predictions(run, manifest, tables, number, folds, role, others)


def make_actor_pool(
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
    nodes = cluster.list_nodes()
    max_actors = 1 if gpus_per_worker else max(1, int(sum(node.cpus for node in nodes)))
    num_actors = num_workers or min(
        max_actors, num_units, max(1, math.ceil(num_pixels / _PIXELS_PER_ACTOR))
    )
    cpus = preflight.plan_cpus_per_worker(
        nodes, num_workers=num_actors, cpus=None, gpus=gpus_per_worker
    )
    if num_workers:
        return ActorPoolStrategy(size=num_actors), cpus
    return ActorPoolStrategy(min_size=1, max_size=num_actors), cpus


def make_unit_dataset(units: Sequence[dict[str, Any]]) -> Dataset:
    """Return units of work as a Ray data set with a block per unit, without progress output."""
    DataContext.get_current().enable_progress_bars = False
    DataContext.get_current().print_on_execution_start = False
    return ray.data.from_items(list(units), override_num_blocks=len(units))
