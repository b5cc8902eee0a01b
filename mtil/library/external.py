"""Evaluate a run on another data set: all models of its last round together. No Ray."""

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from mtil.circle.inputs import check_test_models, load_model_chains
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest, Shard
from mtil.data.dataset.selection import NORMAL
from mtil.data.dataset.shards import HOLDOUT, read_shard
from mtil.errors import ConfigError, DataError
from mtil.prediction.evaluation import evaluate_predictions, fill_sources
from mtil.process.limits import num_cpus
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.pictures import PICTURES_SCHEMA
from mtil.run.scores import PREDICTIONS_SCHEMA
from mtil.storage import Store, open_store

_UNIT_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class ExternalRequest:
    """A checked request to score all images of a data set that the run was not trained on."""

    run: Run
    round_index: int
    store: Store
    """The other data set."""
    manifest: Manifest
    seen: frozenset[str]
    """Images of the other data set that the models have seen, or near-copies of such images."""

    @property
    def normals(self) -> bool:
        """True if the other data set has normal images; otherwise each image gets a mask."""
        return any(cell.label == NORMAL for shard in self.manifest.shards for cell in shard.cells)


def request_external(run_uri: str, data: str, *, round_index: int | None = None) -> ExternalRequest:
    """Check that a run can score the images of another data set.

    Args:
        run_uri: path or URI of a trained run.
        data: path or URI of the other data set.
        round_index: a round of a circle; by default the last round with all folds trained.

    Raises:
        ConfigError: if `data` is the data set of the run.
        DataError: if the round is not trained, a data set cannot be read, or the models have seen
            all images.
        CheckpointError: if a model file is damaged.
    """
    # Imported late: the comparison needs SciPy, and refused requests need no SciPy.
    from mtil.data.overlap import find_shared_images, list_images

    run, store = Run.open(run_uri), open_store(data)
    manifest = manifests.load_manifest(store)
    if manifest.fingerprint == run.fingerprint:
        raise ConfigError(
            f"`--on` must name another data set, but {data} is the one of the run; leave `--on` "
            "out to score its test images."
        )
    number = run.last_round() if round_index is None else round_index
    check_test_models(run, number, HOLDOUT)
    trained = run.find_trained_folds()[number]
    own_store = open_store(run.data_uri)
    # With a single model, the images of its test fold are unseen.
    outside = trained[0] if len(trained) == 1 else None
    own = list_images(own_store, run.manifest(), outside=outside)
    shared = find_shared_images(
        (own_store, run.manifest(), own), (store, manifest, list_images(store, manifest))
    )
    seen = frozenset(other for _, other in shared)
    if len(seen) == manifest.num_rows:
        raise DataError(
            f"{data} must have images that the models of {run_uri} have not seen, but has none; "
            "name another data set."
        )
    return ExternalRequest(run=run, round_index=number, store=store, manifest=manifest, seen=seen)


def evaluate_external(
    request: ExternalRequest,
    listen: Callable[[dict[str, Any]], None] = lambda line: None,
    *,
    gpus: float | None = None,
) -> dict[str, Any]:
    """Score the images, write scores, pictures and figures to the run, and return the figures.

    The predictions of all trained folds are averaged. Images that the models have seen are left
    out.

    Args:
        request: from `request_external`.
        listen: called with `{"kind": "scored", "images": int, "of": int}` after every few images.
        gpus: 0 for the CPU, more for a GPU; by default the device type of the training.

    Returns:
        the figures of `mtil evaluate --json`, with `on`, the other data set, `seen`, the number
        of images left out, and `normals`, whether images may get an empty mask.

    Raises:
        DataError: if a shard is missing or damaged.
        ResourceError: if a GPU is requested, but PyTorch finds no GPU.
    """
    # Imported late: PyTorch takes two seconds, and refused requests need no PyTorch.
    from mtil.library.training import choose_device
    from mtil.models.devices import prepare_device
    from mtil.prediction.predictor import build_predictors
    from mtil.prediction.scoring import EVALUATION_COLUMNS, score_chains

    run, manifest = request.run, request.manifest
    device = choose_device(run.config.train.gpus_per_worker if gpus is None else gpus)
    units = list(_list_units(manifest))
    num_scorers = 1 if device.type == "cuda" else max(1, min(int(num_cpus()), len(units)))
    own = local()

    def start_scorer() -> None:
        if device.type == "cpu":
            prepare_device(0.0)  # one thread: sums depend on the number of threads
        own.shard = None
        own.chains = [
            build_predictors(models, device)
            for models in load_model_chains(run, request.round_index, HOLDOUT)
        ]

    def score(unit: tuple[Shard, int]) -> pa.Table:
        shard, start = unit
        if own.shard is None or own.shard[0] is not shard:
            own.shard = (shard, read_shard(request.store, shard, EVALUATION_COLUMNS))
        rows = own.shard[1].slice(start, _UNIT_ROWS)
        kept = [name not in request.seen for name in rows["sample_id"].to_pylist()]
        return score_chains(
            rows.filter(pa.array(kept)),
            own.chains,
            num_images=manifest.num_rows,
            normals=request.normals,
        )

    tables: list[pa.Table] = []
    with ThreadPoolExecutor(num_scorers, initializer=start_scorer) as pool:
        for (shard, start), table in zip(units, pool.map(score, units), strict=True):
            tables.append(table)
            rows = sum(one.rows for one in manifest.shards[: manifest.shards.index(shard)])
            done = rows + min(start + _UNIT_ROWS, shard.rows)
            listen({"kind": "scored", "images": done, "of": manifest.num_rows})
    return _store(request, pa.concat_tables(tables))


def _list_units(manifest: Manifest) -> Iterator[tuple[Shard, int]]:
    """Yield shard and first row of every unit of work."""
    for shard in manifest.shards:
        for start in range(0, shard.rows, _UNIT_ROWS):
            yield shard, start


def _store(request: ExternalRequest, scored: pa.Table) -> dict[str, Any]:
    """Write scores, pictures and figures to the run; return the figures."""
    run, fingerprint = request.run, request.manifest.fingerprint
    scored = fill_sources(scored, request.manifest).sort_by(
        [("sample_id", "ascending"), ("pass", "ascending")]
    )
    name = names.external_predictions_name(request.round_index, fingerprint)
    drawn = scored.filter(pa.compute.is_valid(scored["mask_png"]))
    for file, table, schema in (
        (names.pictures_name(name), drawn, PICTURES_SCHEMA),
        (name, scored, PREDICTIONS_SCHEMA),
    ):
        sink = io.BytesIO()
        pq.write_table(table.select(schema.names), sink)
        run.store.write(file, sink.getvalue())
    folds = run.find_trained_folds()[request.round_index]
    figures = {
        "round": request.round_index,
        "split": "external",
        "ensemble": [],
        "on": request.store.uri,
        "on_fingerprint": fingerprint,
        "seen": len(request.seen),
        "normals": request.normals,
        **evaluate_predictions(
            scored.select(PREDICTIONS_SCHEMA.names), run_uri=run.uri, folds=folds
        ),
    }
    data = (json.dumps(figures, indent=1) + "\n").encode()
    run.store.write(names.external_figures_name(fingerprint), data)
    return figures
