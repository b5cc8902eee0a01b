"""A run's models over the shards' test rows: an actor pool in which each image is seen once."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset

from mtil.circle.inputs import check_models
from mtil.distributed.runtime import cluster, preflight
from mtil.distributed.runtime.failures import unwrapped
from mtil.prediction.evaluation import write_predictions
from mtil.prediction.units import Unit, list_units
from mtil.run.folder import Run

_WORTH_PIXELS = 32 * 256**2
"""Of input to the network that are worth an actor on a CPU, which takes four seconds to start."""


class Scorer:
    """An actor that scores test rows with the models of a run's round."""

    def __init__(self, run_uri: str, data_uri: str, number: int, gpus: float) -> None:
        # Imported here: the driver of the actors does not need PyTorch.
        from mtil.models.devices import own_device
        from mtil.prediction.units import UnitScorer

        self._scorer = UnitScorer(run_uri, data_uri, number, own_device(gpus))

    def __call__(self, block: pa.Table) -> pa.Table:
        """Score the unit that the block names: (fold, shard, start)."""
        (unit,) = block.to_pylist()
        return self._scorer.score(Unit(**unit))


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
    manifest = run.manifest()
    for fold in folds:
        check_models(run, number, fold)  # told here, and not by actors after seconds
    units = list_units(manifest, folds)
    num_images = sum(unit.rows for unit in units)
    num_pixels = num_images * run.config.data.image_size**2
    pool, cpus = actor_pool(len(units), num_pixels, num_workers, gpus_per_worker)
    with unwrapped():
        scored = quiet([asdict(unit) for unit in units]).map_batches(
            Scorer,
            fn_constructor_args=(run.uri, run.data_uri, number, gpus_per_worker),
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
    return write_predictions(run, manifest, tables, number, folds)


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
