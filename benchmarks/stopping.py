"""Epochs saved by early stopping of trials, on synthetic or measured learning curves."""

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from benchmarks.known import drive, known, make_search
from mtil.run.folder import Run
from mtil.run.plan import Train
from tune import study as studies
from tune.objective import compute_running_value, select_epoch_figures
from tune.record import Search, StoppingKind, StoppingRule
from tune.search import StudySearch
from tune.search.trial import NUMBER_KEY


def stopping(num_trials: int, num_seeds: int, num_epochs: int = 16) -> dict[str, Any]:
    """Return the share of epochs saved by each rule, and the best true score found.

    The curve of a trial rises at a random speed towards the score of the known function, with
    noise.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in get_args(StoppingKind):
            rule = StoppingRule(kind=kind, first=2)
            shares, scores = [], []
            for seed in range(num_seeds):
                search = make_search(Path(folder) / f"{kind}-{seed}", seed=seed, rule=vars(rule))
                searcher = StudySearch(search, num_trials, lambda line: None)
                early_stopper = studies.EarlyStopper(search.storage, search.asked.study, rule)
                curves = Curves(early_stopper, num_epochs, np.random.default_rng(seed))
                drive(searcher, curves)
                shares.append(1 - curves.epochs / (num_epochs * num_trials))
                scores.append(max(curves.completed))
            found[kind] = {"saved": shares, "best": scores}
    return {"trials": num_trials, "epochs": num_epochs, "rules": found}


class Curves:
    """Synthetic learning curves, reported to a stopper after every epoch."""

    def __init__(
        self, early_stopper: studies.EarlyStopper, num_epochs: int, rng: np.random.Generator
    ) -> None:
        self._early_stopper, self._num_epochs, self._rng = early_stopper, num_epochs, rng
        self.epochs, self.completed = 0, [0.0]

    def __call__(self, point: Mapping[str, Any]) -> dict[str, float]:
        """Run the epochs of a trial until the last epoch or the stop. Return the figures."""
        score, speed, best = known(point)["dice"], self._rng.uniform(2, 5), 0.0
        for epoch in range(1, self._num_epochs + 1):
            self.epochs += 1
            value = score * (1 - math.exp(-epoch / speed)) + self._rng.normal(0, 0.01)
            best = max(best, value)
            if not self._early_stopper.record(int(point[NUMBER_KEY]), epoch, best):
                return {"dice": best}
        self.completed.append(score)
        return {"dice": best}


def replaying(uri: str, num_seeds: int) -> dict[str, Any]:
    """Return the figures of `stopping` for the trials of a search without early stopping."""
    real = curves_of(uri)
    longest = max(len(one) for one in real)
    whole = [one for one in real if len(one) == longest]
    best = max(one[-1] for one in whole)
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in get_args(StoppingKind):
            rule = StoppingRule(kind=kind, first=2)
            shares, scores = [], []
            for seed in range(num_seeds):
                search = make_search(
                    Path(folder) / f"{kind}-{seed}", sampler="random", rule=vars(rule)
                )
                searcher = StudySearch(search, len(whole), lambda line: None)
                early_stopper = studies.EarlyStopper(search.storage, search.asked.study, rule)
                order = np.random.default_rng(seed).permutation(len(whole))
                replay = Replay(early_stopper, [whole[index] for index in order])
                drive(searcher, replay)
                shares.append(1 - replay.epochs / (longest * len(whole)))
                scores.append(max(replay.completed, default=0.0))
            found[kind] = {
                "saved": shares,
                "best": scores,
                "share_of_orders_with_the_best": [float(np.mean([one == best for one in scores]))],
            }
    return {"trials": len(whole), "epochs": longest, "best": best, "rules": found}


def curves_of(uri: str) -> list[list[float]]:
    """Return the value after every epoch, for each completed trial of a search."""
    search = Search.open(uri)
    found = []
    for trial in studies.list_trials(studies.load_study(search)):
        if trial.values is None:
            continue
        run = Run.open(search.trial_uri(trial.number))
        curve: list[float] = []
        finished: list[dict[str, float]] = []
        for fold in search.budget.folds:
            history = run.history(Train(0, fold))
            upto = (history[: epoch + 1] for epoch in range(len(history)))
            tolerance = run.config.train.score_tolerance
            curve += [
                compute_running_value(search.objective, finished, epochs, tolerance)
                for epochs in upto
            ]
            finished.append(select_epoch_figures(history, tolerance))
        found.append(curve)
    return found


class Replay:
    """Recorded learning curves, reported to a stopper after every epoch."""

    def __init__(self, early_stopper: studies.EarlyStopper, curves: list[list[float]]) -> None:
        self._early_stopper, self._curves = early_stopper, curves
        self.epochs = 0
        self.completed: list[float] = []

    def __call__(self, point: Mapping[str, Any]) -> dict[str, float]:
        """Run the epochs of a trial until the last epoch or the stop. Return the figures."""
        number = int(point[NUMBER_KEY])
        for epoch, value in enumerate(self._curves[number], start=1):
            self.epochs += 1
            if not self._early_stopper.record(number, epoch, value):
                return {"dice": value}
        self.completed.append(value)
        return {"dice": value}
