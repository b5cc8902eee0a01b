"""Write the maps of a round with an actor pool: a map shard for every shard of the data set.

Map shards are written whole. Existing valid map shards are kept.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from mtil.circle.inputs import find_map_source, find_prior_maps
from mtil.data.dataset.batches import ROLE_COLUMNS
from mtil.data.dataset.manifest import Shard
from mtil.data.dataset.shards import read_shard
from mtil.distributed.prediction.scoring import make_actor_pool, make_unit_dataset
from mtil.distributed.runtime.failures import unwrap_errors
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.run.folder import Run
from mtil.run.plan import Train, WriteMaps, find_map_writers
from mtil.run.priors import MapSource, PriorMaps, check_map_shards
from mtil.storage import open_store

_CHECKED_SHARDS = 64
"""Map shards checked by a task: starting a process takes longer than reading them."""

_COLUMNS = ("sample_id", "image", "label", *ROLE_COLUMNS)


class MapWriter:
    """Actor that maps the rows of shards with a trained model.

    Only the driver reads the manifest; an actor receives the shards to map. A manifest of 10,000
    shards would take 290 MiB in every process.
    """

    def __init__(
        self, run_uri: str, action: WriteMaps, source: MapSource, priors: PriorMaps | None
    ) -> None:
        # Imported here: the driver does not need PyTorch.
        from mtil.models.devices import prepare_device
        from mtil.prediction.predictor import Predictor

        self._run = Run.open(run_uri)
        device = prepare_device(self._run.config.train.gpus_per_worker)
        self._data = open_store(self._run.data_uri)
        self._source, self._priors = source, priors
        self._predictor = Predictor(
            self._run.model(Train(action.round, action.fold, action.part)), device
        )

    def __call__(self, block: pa.Table) -> pa.Table:
        """Write the map shard of the shard in the block. Return its row and byte counts."""
        from mtil.prediction.predictor import map_shard

        (data,) = block.column("shard").to_pylist()
        shard: Shard = pickle.loads(data)
        table = read_shard(self._data, shard, _COLUMNS)
        if self._priors is not None:
            table = self._priors.join(table, shard)
        rows = table.take(pa.array(self._source.rows.rows(table)))
        maps = map_shard(rows, self._predictor, self._source.origin_of(shard))
        self._run.store.write(self._source.name(shard), maps)
        return pa.table({"rows": [rows.num_rows], "bytes": [len(maps)]})


def write_maps(run: Run, action: WriteMaps) -> dict[str, Any]:
    """Write all missing or damaged maps of an action. Prior maps come first, if also missing.

    Returns:
        the folder, the sha256 of the model, the number of shards, and the number of shards written.

    Raises:
        DataError: if the training of the model has no result.
    """
    manifest = run.manifest()
    source = find_map_source(run, manifest, action)
    missing = find_damaged_map_shards(run, source, manifest.shards)
    if missing:
        # The actors read prior maps of the previous round, and `mtil gc` may have deleted those
        # maps.
        for writer in find_map_writers(run.plan([action.fold]), action):
            write_maps(run, writer)
        num_rows = sum(source.rows.count(shard) for shard in missing)
        gpus = run.config.train.gpus_per_worker
        num_pixels = num_rows * run.config.data.image_size**2
        pool, cpus = make_actor_pool(len(missing), num_pixels, None, gpus)
        with unwrap_errors():
            written = make_unit_dataset(
                [{"shard": pickle.dumps(shard)} for shard in missing]
            ).map_batches(
                MapWriter,
                fn_constructor_args=(
                    run.uri,
                    action,
                    source,
                    find_prior_maps(run, manifest, action),
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=pool,
                num_cpus=cpus,
                num_gpus=gpus,
            )
            written.materialize()
    return {
        "folder": source.folder,
        "model_sha256": source.origin.model_sha256,
        "shards": len(manifest.shards),
        "written": len(missing),
    }


def find_damaged_map_shards(run: Run, source: MapSource, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards whose map shard is missing, damaged or of a different origin."""
    check: Any = ray.remote(num_cpus=DATA_TASK_CPUS)(check_map_shards)
    starts = range(0, len(shards), _CHECKED_SHARDS)
    with unwrap_errors():
        portions = ray.get(
            [
                check.remote(run.uri, source, shards[start : start + _CHECKED_SHARDS])
                for start in starts
            ]
        )
    whole = [is_whole for portion in portions for is_whole in portion]
    return [shard for shard, is_whole in zip(shards, whole, strict=True) if not is_whole]
