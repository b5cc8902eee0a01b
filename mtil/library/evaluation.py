"""Figures of a run's test folds: what to score, and scoring in the calling process. No Ray."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import local
from typing import Any

import pyarrow as pa

from mtil.circle.inputs import check_test_models
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import parse_folds, select_rows
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import DataError
from mtil.prediction.evaluation import evaluate_predictions as figures_of
from mtil.prediction.evaluation import store_predictions
from mtil.prediction.units import ScoringUnit, UnitScorer, list_units
from mtil.process.limits import num_cpus
from mtil.run.folder import Run

EvaluationListener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class EvaluationRequest:
    """Test folds to score with the models of one round."""

    run: Run
    manifest: Manifest
    round_index: int
    folds: tuple[int, ...]


def request_evaluation(
    run_uri: str,
    *,
    data: str | None = None,
    folds: str | Sequence[int] | None = None,
    round_index: int | None = None,
) -> EvaluationRequest:
    """Check that test folds can be scored: the run, its data set and every model.

    Args:
        run_uri: a trained run.
        data: the data set, if it has moved since.
        folds: fold indices, or text such as `0,2`, `all` or `holdout`; by default all that are
            trained.
        round_index: a round of a circle; by default the last round that all folds have reached.

    Raises:
        DataError: if the round or a fold is not trained, or the data set is not the run's.
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
            f"Round {round_index} of {run.uri} is not trained. Train it first, or choose another "
            "with `--round`."
        )
    if folds is None or folds == "all":
        chosen: Sequence[int] = trained
    else:
        chosen = parse_folds(folds, manifest.num_folds) if isinstance(folds, str) else folds
    # Ray takes seconds to start, so data set and models are checked first.
    for fold in chosen:
        select_rows(manifest, fold, "test")
        check_test_models(run, round_index, fold)
    return EvaluationRequest(
        run=run, manifest=manifest, round_index=round_index, folds=tuple(chosen)
    )


def evaluate(
    run: str,
    *,
    data: str | None = None,
    folds: str | Sequence[int] | None = None,
    round_index: int | None = None,
    listen: EvaluationListener = lambda line: None,
) -> dict[str, Any]:
    """Score the test folds of a run in this process, without Ray, and return the figures.

    Each image is scored by the model that has not seen its group. The tables of scores and
    `evaluation.json` are written to the run, as by `mtil evaluate`.

    Args:
        run: path or URI of a trained run.
        data: path or URI of the data set, if it has moved since.
        folds: fold indices, or text such as `0,2`, `all` or `holdout`; by default all that are
            trained.
        round_index: a round of a circle; by default the last round that all folds have reached.
        listen: called with `{"kind": "scored", "images", "of"}` after each part of the images.

    Returns:
        the figures of `mtil evaluate --json`: `metrics` holds `value`, `low` and `high` (95 %
        interval) by name, such as `dice`, `auc` and `f1`.

    Raises:
        DataError: if nothing is trained, or the data set is not the run's.
        ResourceError: if the run was trained on a GPU and PyTorch sees none.

    Example:
        >>> import mtil
        >>> figures = mtil.evaluate(run)
        >>> sorted(figures["metrics"]["dice"])
        ['high', 'low', 'value']
    """
    request = request_evaluation(run, data=data, folds=folds, round_index=round_index)
    return store_figures(request, score_folds(request, listen), run)


def score_folds(
    request: EvaluationRequest, listen: EvaluationListener, *, gpus: float | None = None
) -> pa.Table:
    """Score the request's test rows in this process and write each fold's table to the run.

    Args:
        request: the folds, by `request_evaluation`.
        listen: takes `{"kind": "scored", "images", "of"}` after each part of the images.
        gpus: 0 for the CPU, more for a GPU; by default as the run was trained.

    Returns:
        the scores, one row for each image and pass, ordered by fold, id and pass.

    Raises:
        DataError: if a shard is missing or damaged.
        ResourceError: if a GPU is asked for and PyTorch sees none.
    """
    from mtil.library.training import choose_device

    run = request.run
    device = choose_device(run.config.train.gpus_per_worker if gpus is None else gpus)
    units = list_units(request.manifest, request.folds)
    num_images, done = sum(unit.rows for unit in units), 0
    # One thread a scorer, as in Ray's actors: sums are added in the same order, so figures agree.
    num_scorers = 1 if device.type == "cuda" else max(1, min(int(num_cpus()), len(units)))
    scorers = local()

    def start() -> None:
        if device.type == "cpu":
            _compute_with_one_thread()
        scorers.own = UnitScorer(run.uri, run.data_uri, request.round_index, device)

    def score(unit: ScoringUnit) -> pa.Table:
        table: pa.Table = scorers.own.score(unit)
        return table

    tables: list[pa.Table] = []
    with ThreadPoolExecutor(num_scorers, initializer=start) as pool:
        for unit, table in zip(units, pool.map(score, units), strict=True):
            tables.append(table)
            done += unit.rows
            listen({"kind": "scored", "images": done, "of": num_images})
    return store_predictions(run, request.manifest, tables, request.round_index, request.folds)


def store_figures(
    request: EvaluationRequest, predictions: pa.Table, run_uri: str
) -> dict[str, Any]:
    """Write `evaluation.json`, or the holdout's file, from scored test rows; return the figures."""
    folds = list(request.folds)
    figures = {
        "round": request.round_index,
        **figures_of(predictions, run_uri=run_uri, folds=folds),
    }
    name = "evaluation-holdout.json" if folds == [HOLDOUT] else "evaluation.json"
    request.run.store.write(name, (json.dumps(figures, indent=1) + "\n").encode())
    return figures


def _compute_with_one_thread() -> None:
    import torch

    torch.set_num_threads(1)
