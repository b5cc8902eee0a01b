"""Evaluate a run on its test folds: check the request, then score in this process. No Ray."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import Any

import pyarrow as pa

from mtil.circle.inputs import check_test_models
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role, parse_folds, select_rows
from mtil.errors import DataError
from mtil.prediction.evaluation import evaluate_predictions, store_predictions
from mtil.prediction.units import ScoringUnit, UnitScorer, check_ensemble, list_units
from mtil.process.limits import num_cpus
from mtil.run.folder import Run
from mtil.run.names import figures_name
from mtil.storage import open_store

EvaluationListener = Callable[[dict[str, Any]], None]
"""Called with `{"kind": "scored", "images": int, "of": int}` after each unit."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """A checked request to score test folds with the models of one round."""

    run: Run
    manifest: Manifest
    round_index: int
    folds: tuple[int, ...]
    """Fold indices; `(HOLDOUT,)` for the holdout."""
    role: Role = "test"
    """`test`, or `validation` for the inner validation rows of the folds."""
    others: tuple[str, ...] = ()
    """URIs of the further runs of an ensemble."""


def request_evaluation(
    run_uri: str,
    *,
    data: str | None = None,
    folds: str | Sequence[int] | None = None,
    round_index: int | None = None,
    role: Role = "test",
    others: Sequence[str] = (),
) -> EvaluationRequest:
    """Check that a run, its data set and all models can score rows of folds.

    Args:
        run_uri: path or URI of a trained run.
        data: path or URI of the data set, if the data set has moved since the training.
        folds: fold indices, or text such as `0,2`, `all` or `holdout`. `all`, the default, means
            all trained folds.
        round_index: a round of a circle; by default the last round with all folds trained.
        role: `test`, or `validation` for the inner validation rows of the folds.
        others: further runs of the same data set. A fold's rows are scored by the models of the
            fold of all runs, each of its last round, whose predictions are averaged.

    Raises:
        DataError: if the round or a fold is not trained, the run used a different data set, a row
            is in the inner validation part of several folds, or another run has a different data
            set or number of passes.
        CheckpointError: if a model file is damaged.
    """
    run = Run.open(run_uri)
    if data is not None:
        run.data_uri = data
    manifest = run.manifest()
    if round_index is None:
        round_index = run.last_round()
    trained = run.find_trained_folds().get(round_index)
    if trained is None:
        raise DataError(
            f"Round {round_index} of {run.uri} is not trained. Train the round first, or choose "
            "another with `--round`."
        )
    if folds is None or folds == "all":
        chosen: Sequence[int] = trained
    else:
        chosen = parse_folds(folds, manifest.num_folds) if isinstance(folds, str) else folds
    parts = [fold % manifest.num_parts for fold in chosen]
    if role == "validation" and len(set(parts)) < len(parts):
        raise DataError(
            f"Folds scored together must have separate inner validation parts, but folds "
            f"{', '.join(map(str, chosen))} share some of the {manifest.num_parts} parts; score "
            "them one at a time."
        )
    # Ray takes seconds to start, so the caller gets errors of data set and models before.
    for fold in chosen:
        select_rows(manifest, fold, role)
        check_test_models(run, round_index, fold)
        check_ensemble(run, round_index, fold, others)
    return EvaluationRequest(
        run=run,
        manifest=manifest,
        round_index=round_index,
        folds=tuple(chosen),
        role=role,
        others=tuple(open_store(other).uri for other in others),
    )


def evaluate(
    run: str,
    *,
    data: str | None = None,
    folds: str | Sequence[int] | None = None,
    round_index: int | None = None,
    others: Sequence[str] = (),
    listen: EvaluationListener = lambda line: None,
) -> dict[str, Any]:
    """Score the test folds of a run in this process, without Ray, and return the figures.

    The model of a fold scores the test images of the fold, so no image is scored by a model trained
    on the image's group. The models of all folds score the holdout together. Writes a table of
    scores per fold and `evaluation.json` to the run, as `mtil evaluate` does.

    Args:
        run: path or URI of a trained run.
        data: path or URI of the data set, if the data set has moved since the training.
        folds: fold indices, or text such as `0,2`, `all` or `holdout`. `all`, the default, means
            all trained folds.
        round_index: a round of a circle; by default the last round with all folds trained.
        others: further runs of the same data set, whose predictions are averaged with the run's.
        listen: called with `{"kind": "scored", "images": int, "of": int}` after every few images.
            `images` counts the scored images, `of` all images.

    Returns:
        the figures of `mtil evaluate --json`. `metrics` maps a name, such as `dice`, `auc` or `f1`,
        to `value`, `low` and `high`; `low` and `high` bound the 95 % interval.

    Raises:
        DataError: if the round or a fold is not trained, the run used a different data set, or a
            shard is missing or damaged.
        CheckpointError: if a model file is damaged.
        ResourceError: if the run was trained on a GPU, but PyTorch finds no GPU.

    Example:
        >>> import mtil
        >>> figures = mtil.evaluate(run)
        >>> sorted(figures["metrics"]["dice"])
        ['high', 'low', 'value']
    """
    request = request_evaluation(
        run, data=data, folds=folds, round_index=round_index, others=others
    )
    return store_figures(request, score_folds(request, listen), run)


def score_folds(
    request: EvaluationRequest, listen: EvaluationListener, *, gpus: float | None = None
) -> pa.Table:
    """Score rows of folds in this process. Write a table of scores per fold to the run.

    Args:
        request: the folds, from `request_evaluation`.
        listen: called with `{"kind": "scored", "images": int, "of": int}` after each unit.
        gpus: 0 for the CPU, more for a GPU; by default the device type of the training.

    Returns:
        the scores, with a row per image and pass, ordered by fold, sample id and pass.

    Raises:
        DataError: if a shard is missing or damaged.
        ResourceError: if a GPU is requested, but PyTorch finds no GPU.
    """
    # Imported late: PyTorch takes two seconds, and refused requests need no PyTorch.
    from mtil.library.training import choose_device
    from mtil.models.devices import prepare_device

    run = request.run
    device = choose_device(run.config.train.gpus_per_worker if gpus is None else gpus)
    units = list_units(request.manifest, request.folds, request.role)
    num_images, done = sum(unit.rows for unit in units), 0
    # One thread a scorer, as in Ray's actors: floating-point sums depend on the thread count, so
    # figures agree with an evaluation on Ray.
    num_scorers = 1 if device.type == "cuda" else max(1, min(int(num_cpus()), len(units)))
    scorers = local()

    def start_scorer() -> None:
        if device.type == "cpu":
            prepare_device(0.0)  # one thread
        # One scorer a thread: a scorer caches a shard and the models, and is not thread-safe.
        scorers.own = UnitScorer(run.uri, run.data_uri, request.round_index, device, request.others)

    def score(unit: ScoringUnit) -> pa.Table:
        table: pa.Table = scorers.own.score(unit)
        return table

    tables: list[pa.Table] = []
    with ThreadPoolExecutor(num_scorers, initializer=start_scorer) as pool:
        for unit, table in zip(units, pool.map(score, units), strict=True):
            tables.append(table)
            done += unit.rows
            listen({"kind": "scored", "images": done, "of": num_images})
    return store_predictions(
        run,
        request.manifest,
        tables,
        request.round_index,
        request.folds,
        request.role,
        request.others,
    )


def store_figures(
    request: EvaluationRequest, predictions: pa.Table, run_uri: str
) -> dict[str, Any]:
    """Compute the figures of scored rows, write them to the run and return them.

    The file is `evaluation.json`, `evaluation-holdout.json` for the holdout, or
    `evaluation-validation.json` for inner validation rows. For an ensemble its name begins with
    `ensemble-` and a digest of the names of the other runs.

    Args:
        request: the folds, from `request_evaluation`.
        predictions: the scores, from `score_folds`.
        run_uri: the name of the run in the figures.
    """
    folds = list(request.folds)
    figures = {
        "round": request.round_index,
        "split": request.role,
        "ensemble": list(request.others),
        **evaluate_predictions(predictions, run_uri=run_uri, folds=folds),
    }
    name = figures_name(folds, request.role, request.others)
    request.run.store.write(name, (json.dumps(figures, indent=1) + "\n").encode())
    return figures
