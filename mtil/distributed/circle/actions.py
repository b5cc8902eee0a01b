"""Execute the actions of a circle. Actions are idempotent: committed results are kept.

Imports are local to the actions: the coordinator only names actions and loads none of the modules.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Summarise, Train, WriteMaps, find_map_writers

ActionResult = dict[str, JsonValue]

_PROGRESS_METRICS = ("dice", "auc", "f1")
"""Figures repeated in the ledger, for progress displays."""


def run_action(
    run_uri: str, action: Action, folds: Sequence[int], num_parallel: int
) -> ActionResult:
    """Execute an action. Return its result for the ledger.

    Args:
        run_uri: the run.
        action: the action to execute.
        folds: for a summary, the evaluated folds.
        num_parallel: for a training, the trainings that run side by side.
    """
    run = Run.open(run_uri)
    if isinstance(action, Train):
        return _train(run, action, num_parallel)
    if isinstance(action, WriteMaps):
        return _write_maps(run, action)
    if isinstance(action, Evaluate):
        return _evaluate(run, action)
    return _summarise(run, action, folds)


def _train(run: Run, action: Train, num_parallel: int) -> ActionResult:
    from mtil.distributed.prediction.map_writing import write_maps
    from mtil.distributed.training.trainer import train_action

    # Maps may have been damaged or deleted since their own action: write them again.
    for writer in find_map_writers(run.plan([action.fold]), action):
        write_maps(run, writer)
    result = train_action(run, action, num_parallel)
    return {"folder": run.folder(action), **asdict(result)}


def _write_maps(run: Run, action: WriteMaps) -> ActionResult:
    from mtil.distributed.prediction.map_writing import write_maps

    return write_maps(run, action)


def _evaluate(run: Run, action: Evaluate) -> ActionResult:
    from mtil.distributed.prediction.scoring import predict_folds
    from mtil.prediction.evaluation import evaluate_predictions

    predictions = predict_folds(
        run,
        [action.fold],
        number=action.round,
        gpus_per_worker=run.config.train.gpus_per_worker,
        listen=lambda line: None,
    )
    figures = evaluate_predictions(predictions, run_uri=run.uri, folds=[action.fold])
    name = run.predictions_name(action.round, action.fold)
    return {
        "file": name,
        "sha256": hashlib.sha256(run.store.read(name)).hexdigest(),
        "images": figures["num_images"],
        "by_pass": [
            {"pass": entry["pass"]}
            | {key: entry["metrics"][key]["value"] for key in _PROGRESS_METRICS}
            for entry in figures["by_pass"]
        ],
    }


def _summarise(run: Run, action: Summarise, folds: Sequence[int]) -> ActionResult:
    import pyarrow as pa

    from mtil.prediction.evaluation import evaluate_predictions, fill_sources
    from mtil.run import scores

    names = [run.predictions_name(action.round, fold) for fold in folds]
    tables = [scores.read_scores(run.store, name) for name in names]
    predictions = fill_sources(pa.concat_tables(tables), run.manifest())
    figures = evaluate_predictions(predictions, run_uri=run.uri, folds=folds)
    name = run.evaluation_name(action.round)
    run.store.write(name, (json.dumps(figures, indent=1) + "\n").encode())
    by_pass: list[Any] = figures["by_pass"]
    return {"file": name, "folds": list(folds), "images": figures["num_images"], "by_pass": by_pass}
