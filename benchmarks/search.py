"""Gain and cost of a hyperparameter search.

    python -m benchmarks.search sampler|overhead|tiny|stopping [--num-trials N] [--num-seeds N]

sampler   60 TPE trials against 60 random trials on a known function; and the share of the
          hypervolume under a known front (2,001 points) found by 100 trials of two goals;
          no cluster
overhead  one-worker trials of `--trial-seconds` on BUSI, or phantoms: time of the search beyond
          the training time, and time of an equal training without a search
tiny      200 trials without work: seconds per trial, memory and files of all processes of the
          cluster and the driver (median of the ten readings before a mark), and leftovers
stopping  epochs saved by each stopping rule, and the best score, on synthetic learning curves or,
          in random orders, on the curves of a search without stopping (`--search URI`)

The exit code is 1 if a goal is missed, or if placement groups, actors, memory or files leak.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import images, prepared, show
from benchmarks.known import best_of, front_share, known, make_search
from benchmarks.stopping import replaying, stopping
from mtil import presets
from mtil.circle.request import request_trainings
from mtil.config import Config, config_from_dict, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.storage import open_store
from tune import study as studies
from tune.record import TrialBudget

_FRONT_SEEDS = (100, 101, 102)
_FRONT_TRIALS = 100
_CALIBRATION_EPOCHS = 3
_MARKS = (20, 50, 100, 200)
_READINGS = 10
_PATIENCE_S = 30.0
"""Most seconds until the placement groups and actors of a search are removed."""
_GROWTH = 0.1
"""Largest relative growth of memory and open files from the second mark to the last."""


def sampler(num_trials: int, num_seeds: int) -> dict[str, Any]:
    """Compare TPE with random trials, and measure the fronts found by all samplers."""
    best: dict[str, list[float]] = {"tpe": [], "random": []}
    volumes: dict[str, list[float]] = {"tpe": [], "nsga2": [], "random": []}
    with tempfile.TemporaryDirectory() as folder:
        for kind, values in best.items():
            for seed in range(num_seeds):
                where = Path(folder) / f"one-{kind}-{seed}"
                values.append(best_of(where, kind, seed, num_trials))
        for kind, values in volumes.items():
            for seed in _FRONT_SEEDS:
                where = Path(folder) / f"two-{kind}-{seed}"
                values.append(front_share(where, kind, seed, _FRONT_TRIALS))
    wins = sum(a > b for a, b in zip(best["tpe"], best["random"], strict=True))
    return {
        "trials": num_trials,
        "best": best,
        "front_trials": _FRONT_TRIALS,
        "share_of_hypervolume": volumes,
        "goals": {
            "share_of_seeds_won": {"value": wins / num_seeds, "goal": 0.8},
            "share_of_hypervolume": {"value": min(volumes["tpe"]), "goal": 0.95},
        },
        "is_good": wins >= 0.8 * num_seeds and min(volumes["tpe"]) >= 0.95,
    }


def overhead(
    num_trials: int, trial_seconds: float, image_size: int, concurrent: int
) -> dict[str, Any]:
    """Run one-worker trials, and an equal training without a search. Return the times.

    The overhead is the search's time beyond the training time, as a share of the training time.
    """
    from mtil.distributed.runtime import cluster
    from tune import search as searches

    with tempfile.TemporaryDirectory() as folder, cluster.connect_ray():
        data = f"{folder}/data"
        prepared(*images(Path(folder)), data, image_size)
        config = config_from_dict(
            {"data": {"image_size": image_size}, "train": {"num_workers": 1}}, presets.cpu()
        )
        short, _ = plain(data, f"{folder}/short", config, _CALIBRATION_EPOCHS)
        num_epochs = max(1, round(trial_seconds / concurrent * _CALIBRATION_EPOCHS / short))
        search = make_search(
            Path(folder) / "s",
            data=data,
            fingerprint=manifests.load_manifest(open_store(data)).fingerprint,
            config=config_to_dict(config),
            budget=vars(TrialBudget(num_epochs=num_epochs)),
            objective="0.5*dice+0.5*auc",
        )
        start = time.monotonic()
        searches.run_search(search, num_trials, lambda line: None, max_concurrent=concurrent)
        wall = time.monotonic() - start
        each = [one.seconds or 0.0 for one in studies.list_trials(studies.load_study(search))]
        alone, alone_wall = plain(data, f"{folder}/plain", config, num_epochs)
    share = (concurrent * wall - sum(each)) / sum(each)
    return {
        "trials": num_trials,
        "concurrent": concurrent,
        "epochs": num_epochs,
        "image_size": image_size,
        "wall_seconds": wall,
        "training_seconds": each,
        "plain_training_seconds": alone,
        "plain_wall_seconds": alone_wall,
        "training_over_plain": statistics.mean(each) / alone,
        "goals": {"overhead": {"value": share, "goal": 0.1}},
        "is_good": share <= 0.1,
    }


def plain(data: str, uri: str, config: Config, num_epochs: int) -> tuple[float, float]:
    """Train like `mtil train`. Return the training time and the total time in seconds."""
    from mtil.distributed.training.folds import run_trainings

    start = time.monotonic()
    whole = TrialBudget(num_epochs=num_epochs).apply_to(config)
    (result,) = run_trainings(request_trainings(data, uri, whole, [0]), lambda line: None)
    return result.seconds, time.monotonic() - start


def tiny(num_trials: int) -> dict[str, Any]:
    """Run trials without work on a local cluster. Return their cost and leftovers."""
    from mtil.distributed.runtime import cluster
    from tune import search as searches

    readings: list[dict[str, float]] = []

    def listen(line: dict[str, Any]) -> None:
        if line["kind"] == "trial":
            readings.append(usage())

    def work(uri: str, number: int, point: Mapping[str, Any], means: Any) -> dict[str, Any]:
        return {"figures": [known(point)], "seconds": 0.0}

    with tempfile.TemporaryDirectory() as folder, cluster.connect_ray():
        search = make_search(Path(folder) / "s")
        start = time.monotonic()
        searches.run_search(search, num_trials, listen, does=work)
        seconds = time.monotonic() - start
        groups, actors = left()
    marks = {
        mark: {
            name: statistics.median(one[name] for one in readings[max(0, mark - _READINGS) : mark])
            for name in readings[0]
        }
        for mark in (*(one for one in _MARKS if one < num_trials), num_trials)
    }
    early, late = (marks[one] for one in (sorted(marks)[min(1, len(marks) - 1)], num_trials))
    growth = {name: late[name] / early[name] - 1 for name in ("rss_mib", "files")}
    return {
        "trials": num_trials,
        "seconds_each": seconds / num_trials,
        "after_trials": marks,
        "growth": growth,
        "groups_left": groups,
        "actors_left": actors,
        "is_good": not groups and not actors and max(growth.values()) <= _GROWTH,
    }


def usage() -> dict[str, float]:
    """Return memory and open files of the process and all descendants, Ray's included."""
    own = psutil.Process()
    found = {"processes": 0.0, "rss_mib": 0.0, "files": 0.0}
    for process in (own, *own.children(recursive=True)):
        try:
            rss, files = process.memory_info().rss, process.num_fds()
        except psutil.Error:
            continue  # the process has just ended
        found["processes"] += 1
        found["rss_mib"] += rss / 2**20
        found["files"] += files
    return found | {"driver_rss_mib": own.memory_info().rss / 2**20, "driver_files": own.num_fds()}


def left() -> tuple[int, list[str]]:
    """Return the number of remaining placement groups, and the classes of remaining actors."""
    import ray
    from ray.util import placement_group_table

    end = time.monotonic() + _PATIENCE_S
    while True:
        groups = [one for one in placement_group_table().values() if one["state"] != "REMOVED"]
        actors = ray._private.state.actors().values()
        alive = [one["ActorClassName"] for one in actors if one["State"] != "DEAD"]
        if not (groups or alive) or time.monotonic() > end:
            return len(groups), alive
        time.sleep(0.5)


def main() -> int:
    """Print one JSON object and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("sampler", "overhead", "tiny", "stopping"))
    parser.add_argument("--num-trials", type=int)
    parser.add_argument("--num-seeds", type=int, default=10)
    parser.add_argument("--search", metavar="URI", help="search to replay in `stopping`")
    parser.add_argument("--trial-seconds", type=float, default=120.0)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--concurrent", type=int, default=1, help="trials at a time in `overhead`")
    options = parser.parse_args()
    if options.what == "sampler":
        found = sampler(options.num_trials or 60, options.num_seeds)
    elif options.what == "overhead":
        found = overhead(
            options.num_trials or 2, options.trial_seconds, options.image_size, options.concurrent
        )
    elif options.what == "tiny":
        found = tiny(options.num_trials or 200)
    elif options.search is not None:
        found = replaying(options.search, options.num_seeds)
    else:
        found = stopping(options.num_trials or 40, options.num_seeds)
    show(found)
    return 0 if found.get("is_good", True) else 1


if __name__ == "__main__":
    sys.exit(main())
