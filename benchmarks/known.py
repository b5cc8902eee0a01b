"""Searches of functions with a known optimum, by the searcher for Ray Tune, without Ray."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from optuna._hypervolume import compute_hypervolume
from ray.tune.search import Searcher

from mtil.config import Config, config_to_dict
from tune import study as studies
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget, make_study_name
from tune.search import StudySearch
from tune.search.trial import OUTCOME_KEY

Figures = Callable[[Mapping[str, Any]], dict[str, float]]

_NUMBERS = ("loss.dice", "loss.boundary", "loss.deep_supervision")
_BEST = {"loss.dice": 0.35, "loss.boundary": 0.7, "loss.deep_supervision": 0.6}
_WIDTH = {"loss.dice": 0.6, "loss.boundary": 1.0, "loss.deep_supervision": 0.8}


def make_search(folder: Path, **changes: Any) -> Search:
    """Return a search of the loss space without data."""
    values: dict[str, Any] = {
        "data": "/none",
        "fingerprint": "0" * 64,
        "config": config_to_dict(Config()),
        "budget": vars(TrialBudget()),
        "space": ["loss"],
        "narrowing": {},
        "objective": "dice",
        "sampler": "tpe",
        "seed": 0,
        "rule": vars(StoppingRule()),
        "storage": None,
        "study": make_study_name(str(folder)),
    }
    search = Search.plan(str(folder), SearchRequest(**values | changes))
    search.keep()
    return search


def drive(searcher: StudySearch, figures: Figures) -> None:
    """Run the trials of a searcher in sequence, with the calls of Ray Tune but without Ray."""
    for number in range(sys.maxsize):
        point = searcher.suggest(str(number))
        if not isinstance(point, dict):
            assert point == Searcher.FINISHED
            return
        outcome = {"figures": [figures(point)], "seconds": 0.0}
        searcher.on_trial_complete(str(number), {OUTCOME_KEY: json.dumps(outcome)})


def known(point: Mapping[str, Any]) -> dict[str, float]:
    """Return a Dice with the maximum of 1 at `_BEST` with a focal loss of gamma 1.5.

    The weighting is then fixed, with 0.4 for classification and 1 for segmentation.
    """
    off = sum(((point[key] - _BEST[key]) / _WIDTH[key]) ** 2 for key in _NUMBERS)
    if point["loss.weighting"] == "uncertainty":
        off += 0.1
    else:
        off += 0.1 * math.log(point["loss.classification"] / 0.4) ** 2
        off += 0.1 * math.log(point["loss.segmentation"]) ** 2
    kind = point["loss.classification_kind"]
    off += ((point["loss.focal_gamma"] - 1.5) / 3.5) ** 2 if kind == "focal" else 0.15
    return {"dice": 1 - off, "auc": 0.5, "f1": 0.5}


def front(point: Mapping[str, Any]) -> dict[str, float]:
    """Return two goals with the front Dice² + AUC² = 1, reached if two keys are 0."""
    along = (point["loss.dice"] - 0.2) / 0.6
    off = 1 + 0.5 * point["loss.boundary"] + 0.5 * point["loss.deep_supervision"]
    angle = along * math.pi / 2
    return {"dice": 1 - off * (1 - math.cos(angle)), "auc": 1 - off * (1 - math.sin(angle))}


def best_of(folder: Path, kind: str, seed: int, num_trials: int) -> float:
    """Return the best Dice found by `num_trials` trials of the known function."""
    search = make_search(folder, sampler=kind, seed=seed)
    searcher = StudySearch(search, num_trials, lambda line: None)
    drive(searcher, known)
    return float(searcher.study.best_value)


def front_share(folder: Path, kind: str, seed: int, num_trials: int) -> float:
    """Return the share of the hypervolume under the known front found by `num_trials` trials."""
    search = make_search(folder, sampler=kind, seed=seed, objective="dice,auc")
    searcher = StudySearch(search, num_trials, lambda line: None)
    drive(searcher, front)
    found = studies.select_best(searcher.study)
    pairs = [dict(zip(("dice", "auc"), one.values or [], strict=True)) for one in found]
    along = np.linspace(0.2, 0.8, 2001)
    return _volume(pairs) / _volume([front(_at_zero() | {"loss.dice": one}) for one in along])


def _at_zero() -> dict[str, Any]:
    return {"loss.boundary": 0.0, "loss.deep_supervision": 0.0}


def _volume(points: list[dict[str, float]]) -> float:
    """Return the area above (0, 0) dominated by the points."""
    losses = np.array([[-one["dice"], -one["auc"]] for one in points])
    return float(compute_hypervolume(losses[(losses < 0).all(axis=1)], np.zeros(2)))
