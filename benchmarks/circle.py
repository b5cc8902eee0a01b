"""Cost of a circle beyond the trainings: maps, decisions, memory, and time between actions.

    python -m benchmarks.circle [--epochs 3] [--phantoms] [--no-ray]

*Map stage*: Ray runs two rounds of a fold with the `cpu` preset and a few epochs. The events of the
ledger give the duration of every action. The training time is extrapolated to the preset's number
of epochs: the measured time outside the epochs, plus the measured seconds per epoch times the
number of epochs. *Idle*: the time without an action in flight, from the start of the first action
to the end of the last action. *Bytes*: maps of 256 images at 256 px by the model of the first
round. *Decisions*: a plan of 5 folds, 10 rounds of `cross_fit` and 10,000 shards goes through the
rules and a ledger on a local disk in a separate process, with results of realistic size; seconds
are CPU seconds. Then the ledger is opened from disk and from an S3 server. The manifest of 10,000
shards is measured separately: the coordinator holds no manifest, but every task of an action reads
the file.
"""

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import images, prepared, show, spread
from cluster import object_store
from mtil import presets
from mtil.circle.ledger import LEDGER_FOLDER, Ledger
from mtil.circle.request import request_circle
from mtil.circle.state import (
    ActionDone,
    ActionStarted,
    CircleState,
    LedgerEvent,
    is_finished,
    next_actions,
    replay_events,
)
from mtil.config import CircleConfig, apply_overrides, compute_config_digest
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Cell, Manifest, Shard
from mtil.metrics import METRICS
from mtil.run.folder import Run
from mtil.run.plan import Action, CirclePlan, Evaluate, Summarise, Train, WriteMaps
from mtil.storage import Store, open_store

BUCKET = "benchmark"
SIDE = 256
NUM_MAPS = 256
FOLDS, ROUNDS, SHARDS = 5, 10, 10_000
Spans = dict[tuple[str, int], tuple[float, float]]

_IN_FLIGHT = 8
_OPENINGS = 5


def rounds(data_uri: str, run_uri: str, num_epochs: int) -> dict[str, Any]:
    """Run two rounds of a fold on Ray. Return the times of the actions."""
    from mtil.distributed.circle import driver
    from mtil.distributed.runtime import cluster

    preset = presets.cpu()
    few = {"train.num_epochs": str(num_epochs), "circle.num_rounds": "2"}
    with cluster.connect_ray():
        run = driver.begin_circle(
            request_circle(data_uri, run_uri, apply_overrides(preset, few), [0])
        )
        state = driver.follow_circle(run, lambda line: None)
    assert not state.failures
    times = spans(run.store)
    trained = [training(run, Train(number, 0), times) for number in (0, 1)]
    start, end = times["write_maps", 0]
    epochs = preset.train.num_epochs
    whole = [one["other_seconds"] + epochs * one["seconds_per_epoch"] for one in trained]
    return {
        "image_size": preset.data.image_size,
        "num_workers": preset.train.num_workers,
        "epochs_run": num_epochs,
        "trainings": trained,
        "map_stage_seconds": end - start,
        "epochs_of_the_preset": epochs,
        "training_seconds_of_the_preset": whole,
        "idle_seconds": idle(list(times.values())),
        "goals": {
            "map_stage_over_training": {"value": (end - start) / whole[0], "goal": 0.05},
        },
    }


def training(run: Run, of: Train, times: Spans) -> dict[str, float]:
    """Return the seconds of a training: total, per epoch with validation, outside the epochs."""
    result = run.result(of)
    assert result is not None
    start, end = times["train", of.round]
    return {
        "seconds": end - start,
        "seconds_per_epoch": result.seconds / result.num_epochs,
        "other_seconds": end - start - result.seconds,
    }


def spans(store: Store) -> Spans:
    """Return start and end of each action of the single fold in seconds, by kind and round."""
    started, found = {}, {}
    for name in store.names(LEDGER_FOLDER):
        event = json.loads(store.read(name))
        at = datetime.fromisoformat(event["at"]).timestamp()
        action = event.get("action", {})
        key = (action.get("kind"), action.get("round"))
        if event["kind"] == "started":
            started[key] = at
        elif event["kind"] == "done":
            found[key] = (started[key], at)
    return found


def idle(busy: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the gaps without an action in flight, and the share of the gaps in the whole time."""
    gaps, latest = [], min(busy)[0]
    for start, end in sorted(busy):
        if start > latest:
            gaps.append(start - latest)
        latest = max(latest, end)
    return {"gaps": spread(gaps or [0.0]), "share": sum(gaps) / (latest - min(busy)[0])}


def map_bytes(data_uri: str, run: Run) -> dict[str, Any]:
    """Return the bytes per map of larger images, by the first model of a run."""
    from mtil.data.dataset.shards import read_shard
    from mtil.prediction.predictor import Predictor, map_shard
    from mtil.run import maps

    store, of = open_store(data_uri), Train(0, 0)
    manifest, model = manifests.load_manifest(store), run.model(of)
    config = apply_overrides(model.config, {"data.image_size": str(SIDE)})
    predictor = Predictor(replace(model, config=config))
    origin = maps.MapOrigin(
        fingerprint=manifest.fingerprint,
        shard=manifest.shards[0].path,
        model_sha256=model.digest,
        config_digest=compute_config_digest(config),
        round=0,
        fold=0,
        size=maps.default_map_size(SIDE),
    )
    rows = read_shard(store, manifest.shards[0], ("sample_id", "image")).slice(0, NUM_MAPS)
    per_map = len(map_shard(rows, predictor, origin)) / rows.num_rows
    return {
        "image_size": SIDE,
        "maps": rows.num_rows,
        "goals": {"bytes_per_map": {"value": per_map, "goal": 4096}},
    }


def plan(folder: str) -> dict[str, Any]:
    """Run a large plan through rules and ledger. Return CPU seconds and memory."""
    store = open_store(folder)
    ledger = Ledger.open(store)
    ledger.begin(
        CirclePlan.of(CircleConfig(num_rounds=ROUNDS, maps="cross_fit"), range(FOLDS)), "f", "c"
    )
    state = ledger.boot()
    rng = random.Random(0)
    decisions: list[float] = []
    folds: list[float] = []

    def write(change: ActionStarted | ActionDone) -> CircleState:
        former, event = ledger.state, LedgerEvent(state.number + 1, ledger.session, change)
        folds.append(seconds(partial(replay_events, [event], former), time.thread_time))
        return ledger.append(change)

    while not is_finished(state):
        decisions.append(seconds(partial(next_actions, state), time.thread_time))
        for action in next_actions(state)[: _IN_FLIGHT - len(state.running)]:
            state = write(ActionStarted(action=action, attempt=1))
        action = rng.choice(list(state.running))
        state = write(ActionDone(action=action, attempt=1, result=result_of(action)))
    opened = held(partial(Ledger.open, store))
    return {
        "folds": FOLDS,
        "rounds": ROUNDS,
        "shards": SHARDS,
        "actions": len(state.done),
        "events": state.number,
        "next_actions_seconds": spread(decisions),
        "event_seconds": spread(folds),
        "ledger_mib": opened,
        "manifest_of_a_task_mib": held(
            partial(manifests.load_manifest, open_store(f"{folder}/data"))
        ),
        "goals": {
            "decision_seconds_at_most": {"value": max(decisions) + max(folds), "goal": 0.05},
            "ledger_mib_at_most": {"value": opened["peak"], "goal": 200},
        },
    }


def result_of(action: Action) -> dict[str, Any]:
    """Return a result of realistic size."""
    sha256 = f"{hash(str(action)) % 2**256:064x}"
    figures = dict.fromkeys(METRICS, 0.123456789012345)
    if isinstance(action, WriteMaps):
        return {"folder": str(action), "model_sha256": sha256, "shards": SHARDS, "written": SHARDS}
    if isinstance(action, Train):
        return {"folder": str(action), "model_sha256": sha256, "config_digest": sha256,
                "fingerprint": sha256, "metrics": figures}  # fmt: skip
    metrics: dict[str, Any] = figures
    if isinstance(action, Summarise):
        metrics = {name: {"value": v, "low": v, "high": v} for name, v in figures.items()}
    else:
        assert isinstance(action, Evaluate)
    by_pass = [{"pass": number, "metrics": metrics} for number in range(2)]
    return {"file": str(action), "sha256": sha256, "by_pass": by_pass}


def many_shards(source: Manifest) -> Manifest:
    """Return a manifest of many shards, each with rows of every kind."""
    kinds = itertools.product(range(FOLDS), range(source.num_parts), range(3))
    cells = tuple(Cell(fold=f, part=p, label=label, rows=9) for f, p, label in kinds)
    rows = sum(cell.rows for cell in cells)
    shards = (
        Shard(path=f"shards/part-{n:05d}.parquet", rows=rows, bytes=2**26, sha256=f"{n:064x}",
              cells=cells)
        for n in range(SHARDS)
    )  # fmt: skip
    return replace(source, shards=tuple(shards), num_folds=FOLDS)


def opening(local: Store, far: Store) -> dict[str, Any]:
    """Return the seconds of opening and verifying a ledger on disk and on S3."""
    for name in local.names(LEDGER_FOLDER):
        far.write(name, local.read(name))
    return {
        name: spread([seconds(partial(Ledger.open, store)) for _ in range(_OPENINGS)])
        for name, store in (("disk", local), ("s3", far))
    }


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of a call."""
    start = clock()
    work()
    return clock() - start


def held(work: Callable[[], object]) -> dict[str, float]:
    """Return the MiB held by the result of a call, and the peak during the call."""
    tracemalloc.start()
    result = work()
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del result
    return {"held": kept / 2**20, "peak": peak / 2**20}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--phantoms", action="store_true", help="ignore real images")
    parser.add_argument("--no-ray", action="store_true", help="only the plan and the ledger")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        print(json.dumps(plan(options.plan)))
        return
    found: dict[str, Any] = {"benchmark": "circle"}
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        if options.phantoms:
            os.environ["MTIL_DATA"] = folder  # a folder without real images
        source, groups = images(scratch)
        found["images"] = source.name
        small, large = f"{folder}/small", f"{folder}/large"
        prepared(source, groups, large, SIDE)
        if not options.no_ray:
            prepared(source, groups, small, presets.cpu().data.image_size)
            found["map_stage"] = rounds(small, f"{folder}/run", options.epochs)
            found["maps"] = map_bytes(large, Run.open(f"{folder}/run"))
        simulated = open_store(f"{folder}/plan")
        many = many_shards(manifests.load_manifest(open_store(large)))
        simulated.write(f"data/{manifests.FILE_NAME}", manifests.manifest_to_json(many))
        command = [sys.executable, "-m", "benchmarks.circle", "--plan", simulated.uri]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        found["plan"] = json.loads(done.stdout)
        with object_store.run_object_store(scratch / "s3", BUCKET) as environment:
            os.environ.update(environment)
            far = open_store(f"s3://{BUCKET}/plan")
            found["plan"]["open_seconds"] = opening(simulated, far)
    show(found)


if __name__ == "__main__":
    main()
