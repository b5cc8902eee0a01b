"""What a circle's actions do, each as often as it takes: what is committed already is kept.

What an action needs is imported when it is done: the coordinator, which only names them, needs
none of it.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Summarise, Train, WriteMaps, reads_maps_of

Result = dict[str, JsonValue]

_BRIEF = ("dice", "auc", "f1")
"""Figures that the ledger repeats, for whoever looks at the progress."""


def perform(run_uri: str, action: Action, folds: Sequence[int]) -> Result:
    """Do an action and return what the ledger says of it.

    Args:
        run_uri: the run.
        action: what to do.
        folds: for a summary, the folds that have been evaluated.
    """
    run = Run.open(run_uri)
    if isinstance(action, Train):
        return _train(run, action)
    if isinstance(action, WriteMaps):
        return _write_maps(run, action)
    if isinstance(action, Evaluate):
        return _evaluate(run, action)
    return _summarise(run, action, folds)


def _train(run: Run, action: Train) -> Result:
    from mtil.distributed.prediction.map_writing import write_maps
    from mtil.distributed.training.trainer import train_round

    for writer in reads_maps_of(run.plan([action.fold]), action):
        write_maps(run, writer)  # what was damaged since is written again
    result = train_round(run, action, lambda line: None)
    return {"folder": run.folder(action), **asdict(result)}


def _write_maps(run: Run, action: WriteMaps) -> Result:
    from mtil.distributed.prediction.map_writing import write_maps

    return write_maps(run, action)


def _evaluate(run: Run, action: Evaluate) -> Result:
    from mtil.distributed.prediction.scoring import predict_folds
    from mtil.prediction.evaluation import evaluate

    predictions = predict_folds(
        run,
        [action.fold],
        number=action.round,
        gpus_per_worker=run.config.train.gpus_per_worker,
        listen=lambda line: None,
    )
    figures = evaluate(predictions, run_uri=run.uri, folds=[action.fold])
    name = run.predictions_name(action.round, action.fold)
    return {
        "file": name,
        "sha256": hashlib.sha256(run.store.read(name)).hexdigest(),
        "images": figures["num_images"],
        "by_pass": [
            {"pass": one["pass"]} | {key: one["metrics"][key]["value"] for key in _BRIEF}
            for one in figures["by_pass"]
        ],
    }


def _summarise(run: Run, action: Summarise, folds: Sequence[int]) -> Result:
    import pyarrow as pa

    from mtil.prediction.evaluation import evaluate, with_named_sources
    from mtil.run import scores

    names = [run.predictions_name(action.round, fold) for fold in folds]
    tables = [scores.read(run.store, name) for name in names]
    predictions = with_named_sources(pa.concat_tables(tables), run.manifest())
    figures = evaluate(predictions, run_uri=run.uri, folds=folds)
    name = run.evaluation_name(action.round)
    run.store.write(name, (json.dumps(figures, indent=1) + "\n").encode())
    by_pass: list[Any] = figures["by_pass"]
    return {"file": name, "folds": list(folds), "images": figures["num_images"], "by_pass": by_pass}
