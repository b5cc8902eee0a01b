"""A round's maps: from the shards of a data set to map shards, by a pool of actors.

One map shard a shard of the data set, each written whole; what is there already and right stays.
"""

import pickle
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from mtil.circle.inputs import map_source, prior_maps
from mtil.data.dataset.batches import ROLE_COLUMNS
from mtil.data.dataset.manifest import Shard
from mtil.data.dataset.shards import read
from mtil.distributed.prediction.scoring import actor_pool, quiet
from mtil.distributed.runtime.failures import unwrapped
from mtil.distributed.runtime.preflight import DATA_TASK_CPUS
from mtil.run.folder import Run
from mtil.run.plan import Train, WriteMaps, reads_maps_of
from mtil.run.priors import MapSource, PriorMaps, are_whole
from mtil.storage import open_store

_CHECKED_SHARDS = 64
"""Map shards that one task looks at: a process takes longer to start than to read them."""

_COLUMNS = ("sample_id", "image", "label", *ROLE_COLUMNS)


class MapWriter:
    """An actor that maps the rows of shards with the model of a training.

    The driver has read the manifest. An actor is sent the shards that it maps: a manifest of 10,000
    shards takes 290 MiB of each process.
    """

    def __init__(
        self, run_uri: str, of: WriteMaps, source: MapSource, priors: PriorMaps | None
    ) -> None:
        # PyTorch, which the driver of this does not need
        from mtil.models.devices import own_device
        from mtil.prediction.predictor import Predictor

        self._run = Run.open(run_uri)
        device = own_device(self._run.config.train.gpus_per_worker)
        self._data = open_store(self._run.data_uri)
        self._source, self._priors = source, priors
        self._predictor = Predictor(self._run.model(Train(of.round, of.fold, of.part)), device)

    def __call__(self, block: pa.Table) -> pa.Table:
        """Write the map shard of the one shard that the block holds; return its rows and bytes."""
        from mtil.prediction.predictor import map_shard

        (data,) = block.column("shard").to_pylist()
        shard: Shard = pickle.loads(data)
        table = read(self._data, shard, _COLUMNS)
        if self._priors is not None:
            table = self._priors.join(table, shard)
        rows = table.take(pa.array(self._source.rows.rows(table)))
        maps = map_shard(rows, self._predictor, self._source.origin_of(shard))
        self._run.store.write(self._source.name(shard), maps)
        return pa.table({"rows": [rows.num_rows], "bytes": [len(maps)]})


def write_maps(run: Run, of: WriteMaps) -> dict[str, Any]:
    """Write the maps of an action, as far as they are not there; first those they are made from.

    Returns:
        the folder, the model's sha256, and how many shards there are and were written.

    Raises:
        DataError: if the model's training has not ended.
    """
    manifest = run.manifest()
    source = map_source(run, manifest, of)
    missing = damaged(run, source, manifest.shards)
    if missing:
        for former in reads_maps_of(run.plan([of.fold]), of):
            write_maps(run, former)
        num_rows = sum(source.rows.count(shard) for shard in missing)
        gpus = run.config.train.gpus_per_worker
        num_pixels = num_rows * run.config.data.image_size**2
        pool, cpus = actor_pool(len(missing), num_pixels, None, gpus)
        with unwrapped():
            written = quiet([{"shard": pickle.dumps(shard)} for shard in missing]).map_batches(
                MapWriter,
                fn_constructor_args=(run.uri, of, source, prior_maps(run, manifest, of)),
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


def damaged(run: Run, source: MapSource, shards: Sequence[Shard]) -> list[Shard]:
    """Return the shards whose map shard is missing, damaged or of another origin."""
    check: Any = ray.remote(num_cpus=DATA_TASK_CPUS)(are_whole)
    starts = range(0, len(shards), _CHECKED_SHARDS)
    with unwrapped():
        found = ray.get(
            [
                check.remote(run.uri, source, shards[start : start + _CHECKED_SHARDS])
                for start in starts
            ]
        )
    whole = [one for part in found for one in part]
    return [shard for shard, is_whole in zip(shards, whole, strict=True) if not is_whole]
