"""What the search itself is worth and costs: `python -m benchmarks.search sampler|tiny|stopping`.

sampler   60 TPE trials against 60 random ones on a known function, and what 120 trials find of a
          known front; no cluster
tiny      200 trials of nothing: seconds, memory, files, actors and placement groups
stopping  epochs saved by each rule on made-up learning curves, and the best score; no cluster
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
from optuna._hypervolume import compute_hypervolume
from ray.tune.search import Searcher

from mtil.config import Config, to_dict
from tune import study as studies
from tune.record import Asked, Budget, Rule, Search, Stopping, study_name
from tune.search import StudySearch
from tune.search.trial import NUMBER, TOLD

Figures = Callable[[Mapping[str, Any]], dict[str, float]]

_FRONT_SEEDS = 3
"""So many of the seeds look for the front as well."""
_NUMBERS = ("loss.dice", "loss.boundary", "loss.deep_supervision")
_BEST = {"loss.dice": 0.35, "loss.boundary": 0.7, "loss.deep_supervision": 0.6}
_WIDTH = {"loss.dice": 0.6, "loss.boundary": 1.0, "loss.deep_supervision": 0.8}


def make_search(folder: Path, **changes: Any) -> Search:
    """Return a search of the loss space without data."""
    values: dict[str, Any] = {
        "data": "/none",
        "fingerprint": "0" * 64,
        "config": to_dict(Config()),
        "budget": vars(Budget()),
        "space": ["loss"],
        "narrowing": {},
        "objective": "dice",
        "sampler": "tpe",
        "seed": 0,
        "rule": vars(Rule()),
        "storage": None,
        "study": study_name(str(folder)),
    }
    return Search.create(str(folder), Asked(**values | changes))


def drive(searcher: StudySearch, figures: Figures) -> None:
    """Do a searcher's trials one after the other, as Ray Tune does, but here."""
    for number in range(sys.maxsize):
        point = searcher.suggest(str(number))
        if not isinstance(point, dict):
            assert point == Searcher.FINISHED
            return
        outcome = {"figures": [figures(point)], "seconds": 0.0}
        searcher.on_trial_complete(str(number), {TOLD: json.dumps(outcome)})


def known(point: Mapping[str, Any]) -> dict[str, float]:
    """Return Dice that is 1 at `_BEST` with a focal loss of gamma 1.5, and lower elsewhere."""
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
    """Return two goals whose front is Dice² + AUC² = 1, reached where two keys are 0."""
    along = (point["loss.dice"] - 0.2) / 0.6
    off = 1 + 0.5 * point["loss.boundary"] + 0.5 * point["loss.deep_supervision"]
    angle = along * math.pi / 2
    return {"dice": 1 - off * (1 - math.cos(angle)), "auc": 1 - off * (1 - math.sin(angle))}


def sampler(num_trials: int, num_seeds: int) -> dict[str, Any]:
    """Compare TPE with random trials, and measure the front of twice as many with each sampler."""
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    volumes: dict[str, list[float]] = {"tpe": [], "nsga2": [], "random": []}
    ideal = _volume(
        [front({**_at_zero(), "loss.dice": one}) for one in np.linspace(0.2, 0.8, 2001)]
    )
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(num_seeds):
            for kind, values in best.items():
                where = Path(folder) / f"one-{kind}-{seed}"
                searcher = StudySearch(
                    make_search(where, sampler=kind, seed=seed), num_trials, lambda line: None
                )
                drive(searcher, known)
                values.append(float(searcher.study.best_value))
            for kind, values in volumes.items() if seed < _FRONT_SEEDS else ():
                where = Path(folder) / f"two-{kind}-{seed}"
                search = make_search(where, sampler=kind, seed=seed, objective="dice,auc")
                searcher = StudySearch(search, 2 * num_trials, lambda line: None)
                drive(searcher, front)
                found = studies.best(searcher.study)
                pairs = [dict(zip(("dice", "auc"), one.values or [], strict=True)) for one in found]
                values.append(_volume(pairs) / ideal)
    return {
        "trials": num_trials,
        "best": best,
        "tpe_wins": sum(a > b for a, b in zip(best["tpe"], best["random"], strict=True)),
        "share_of_hypervolume": volumes,
    }


def _at_zero() -> dict[str, Any]:
    return {"loss.boundary": 0.0, "loss.deep_supervision": 0.0}


def _volume(points: list[dict[str, float]]) -> float:
    """Return the area that points dominate above (0, 0)."""
    losses = np.array([[-one["dice"], -one["auc"]] for one in points])
    return float(compute_hypervolume(losses[(losses < 0).all(axis=1)], np.zeros(2)))


def tiny(num_trials: int) -> dict[str, Any]:
    """Do trials of nothing on a cluster of this machine; return what they cost and leave."""
    import ray
    from ray.util import placement_group_table

    from mtil.distributed import cluster
    from tune import search as searches

    own = psutil.Process()
    seen: list[tuple[int, int, int]] = []

    def listen(line: dict[str, Any]) -> None:
        seen.append((line["ended"], own.memory_info().rss, own.num_fds()))

    def work(uri: str, number: int, point: Mapping[str, Any], means: Any) -> dict[str, Any]:
        return {"figures": [known(point)], "seconds": 0.0}

    with tempfile.TemporaryDirectory() as folder, cluster.connected():
        search = make_search(Path(folder) / "s")
        start = time.monotonic()
        searches.run(search, num_trials, listen, does=work)
        seconds = time.monotonic() - start
        groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
        actors = ray._private.state.actors().values()
        alive = [actor["ActorClassName"] for actor in actors if actor["State"] == "ALIVE"]
    quarter = seen[len(seen) // 4], seen[-1]
    return {
        "trials": num_trials,
        "seconds_each": seconds / num_trials,
        "rss_mib": [one[1] / 2**20 for one in quarter],
        "files": [one[2] for one in quarter],
        "groups_left": len(groups),
        "actors_left": alive,
    }


def stopping(num_trials: int, num_seeds: int, num_epochs: int = 16) -> dict[str, Any]:
    """Return, for each rule, the share of epochs that it saves and the best true score found.

    A trial rises towards its score of the known function at a speed of its own, with noise.
    """
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in get_args(Stopping):
            rule = Rule(kind=kind, first=2)
            shares, scores = [], []
            for seed in range(num_seeds):
                search = make_search(Path(folder) / f"{kind}-{seed}", seed=seed, rule=vars(rule))
                searcher = StudySearch(search, num_trials, lambda line: None)
                judge = studies.Judge(search.storage, search.asked.study, rule)
                curves = Curves(judge, num_epochs, np.random.default_rng(seed))
                drive(searcher, curves)
                shares.append(1 - curves.epochs / (num_epochs * num_trials))
                scores.append(max(curves.completed))
            found[kind] = {"saved": shares, "best": scores}
    return {"trials": num_trials, "epochs": num_epochs, "rules": found}


class Curves:
    """Figures of a trial whose epochs the judge hears of."""

    def __init__(self, judge: studies.Judge, num_epochs: int, rng: np.random.Generator) -> None:
        self._judge, self._num_epochs, self._rng = judge, num_epochs, rng
        self.epochs, self.completed = 0, [0.0]

    def __call__(self, point: Mapping[str, Any]) -> dict[str, float]:
        """Go through a trial's epochs as far as the judge lets it."""
        score, speed, best = known(point)["dice"], self._rng.uniform(2, 5), 0.0
        for epoch in range(1, self._num_epochs + 1):
            self.epochs += 1
            value = score * (1 - math.exp(-epoch / speed)) + self._rng.normal(0, 0.01)
            best = max(best, value)
            if not self._judge.hear(int(point[NUMBER]), epoch, best):
                return {"dice": best}
        self.completed.append(score)
        return {"dice": best}


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sampler", "tiny", "stopping"))
    parser.add_argument("--num-trials", type=int, default=None)
    parser.add_argument("--num-seeds", type=int, default=10)
    options = parser.parse_args()
    if options.what == "sampler":
        found = sampler(options.num_trials or 60, options.num_seeds)
    elif options.what == "stopping":
        found = stopping(options.num_trials or 40, options.num_seeds)
    else:
        found = tiny(options.num_trials or 200)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
