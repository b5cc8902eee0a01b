"""Kill processes of a circle at seeded writes, and check that the results do not change.

    python -m tests.e2e.kills --kills 20 --seed 0 --folder kills

The first run is undisturbed. In the second run, the working cluster dies and a second cluster takes
over. All later runs lose processes, a single process at a time: a train worker, the train
controller, the coordinator, the command (which is started again), a node with the node's raylet
(which is replaced), the S3 server (which restarts once the command and the coordinator have met the
outage).

No kill depends on a clock. A gate in front of the storage stops the run at a write with a random
number. The write arrives after the kill, or never. Every run must finish without help and commit
the results of the undisturbed run: equal weights, maps, predictions and figures, bit for bit. The
ledger must be a single chain with every action done once. Prints JSON, also written to `kills.json`
in the folder. A second call continues from the file.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from mtil import phantom
from mtil.circle.ledger import LEDGER_FOLDER, Ledger
from mtil.circle.state import CircleState
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.run.folder import Run
from mtil.run.plan import Train, WriteMaps
from mtil.storage import open_store
from tests.e2e.gate import NEVER, Gate, Moment
from tests.e2e.places import BUCKET, SETTINGS, Command, Nodes, Storage, kill
from tests.waiting import until, until_gone

KINDS = ("worker", "controller", "coordinator", "command", "node", "storage")
_TITLES = {
    "worker": ("ray::RayTrainWorker",),
    "controller": ("ray::TrainController",),
    "coordinator": ("ray::Coordinator",),
    "keepers": ("ray::TrainController", "ray::PlacementGroupCleaner", "ray::Coordinator"),
}
"""Processes to kill, by kind. `keepers`: all processes able to free a training's CPUs, at once."""
_KILLS_A_RUN = 5
_MOST_WRITES = 20
"""Maximum number of the run's writes between two kills. The minimum is 1."""
_PROGRESS = r"(rounds|maps)/.*|ledger/(?!00000[12]\.).*"
"""Files of the coordinator and the actions. The first two ledger events precede all actions."""
CHECKPOINT = r"rounds/{round}/.*/checkpoints/latest\.json"
_TRIED_AGAIN = "storage failed, which is tried again"
_TIMES = {"seconds", "written"}
"""Keys of a result about the computation. The values may differ between equal results."""

CONFIG: dict[str, dict[str, Any]] = {
    "data": {"image_size": 64},
    "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
    "train": {
        "num_epochs": 2,
        "batch_size": 8,
        "warmup_epochs": 0.5,
        "cpus_per_worker": 0.75,  # a node has 1 CPU: two workers need two nodes
    },
}


@dataclass(frozen=True)
class Kill:
    """A kill: the target, the write, and whether the write still arrives."""

    kind: str
    moment: Moment
    delivered: bool


class Ground:
    """A storage with a small data set behind a gate, and the commands started on the data set."""

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        gate: Gate,
        folds: str,
        num_rounds: int,
        num_workers: int,
    ) -> None:
        self.folder, self.storage, self.gate, self.folds = folder, storage, gate, folds
        self.num_workers = num_workers
        self.data = f"s3://{BUCKET}/phantoms"
        self._config = folder / "config.yaml"
        self._commands: list[Command] = []
        if not self._config.exists():
            phantom.write_phantoms(folder / "images", num_images=48, seed=1)
            prepare(
                [CollectionSource(uri=str(folder / "images"), layout="busi")],
                self.data,
                Settings(image_size=64, num_folds=3, max_shard_bytes=100_000),
            )
            train = CONFIG["train"] | {"num_workers": num_workers}
            config = CONFIG | {"circle": {"num_rounds": num_rounds}, "train": train}
            self._config.write_text(yaml.safe_dump(config))

    def uri(self, name: str) -> str:
        """Return the URI of a run."""
        return f"s3://{BUCKET}/{name}"

    def circle(self, name: str, nodes: Nodes, *, log: str | None = None) -> Command:
        """Return a command for a run on a cluster."""
        arguments = [
            "circle", "--data", self.data, "--run", self.uri(name), "--config", str(self._config),
            "--fold", self.folds,
        ]  # fmt: skip
        log_file = self.folder / f"{log or name}.log"
        self._commands.append(Command(arguments, log_file, RAY_ADDRESS=nodes.address))
        return self._commands[-1]

    def end(self) -> None:
        """Kill all commands still running."""
        for command in self._commands:
            command.kill()

    def state(self, name: str) -> CircleState | None:
        """Verify the chain of a run's ledger, and return the state. None if the ledger is empty."""
        return Ledger.open(open_store(self.uri(name))).state

    def running(self, name: str) -> list[str]:
        """Return the actions in flight."""
        state = self.state(name)
        return [] if state is None else sorted(map(str, state.running))


@contextmanager
def ground(folder: Path, folds: str, num_rounds: int = 2, num_workers: int = 2) -> Iterator[Ground]:
    """Run the storage and the gate. Set the environment of all processes started in the block."""
    folder.mkdir(parents=True, exist_ok=True)
    before = dict(os.environ)
    os.environ.update(SETTINGS)
    try:
        with Storage(folder / "s3") as storage:
            gate = Gate(storage.environment["AWS_ENDPOINT_URL"], BUCKET)
            with gate as os.environ["AWS_ENDPOINT_URL"]:
                place = Ground(folder, storage, gate, folds, num_rounds, num_workers)
                try:
                    yield place
                finally:
                    place.end()
    finally:
        os.environ.clear()
        os.environ.update(before)


def committed(uri: str) -> dict[str, Any]:
    """Return the committed results of a run, with digests of models, maps and predictions.

    Raises:
        AssertionError: if the ledger has a gap, a repeated action, or a wrong digest of a file.
        MtilError: if the chain of the ledger is broken, or a file is missing.
    """
    run = Run.open(uri)
    state = Ledger.open(run.store).state
    assert state is not None
    names = run.store.names(LEDGER_FOLDER)
    assert names == [f"{LEDGER_FOLDER}/{number:06d}.json" for number in range(1, state.number + 1)]
    events = [json.loads(run.store.read(name)) for name in names]
    done = Counter(json.dumps(e["action"], sort_keys=True) for e in events if e["kind"] == "done")
    assert set(done.values()) == {1}
    assert len(done) == len(state.done)
    found = {}
    for action, result in state.done.items():
        what: dict[str, Any] = {key: result[key] for key in result.keys() - _TIMES}
        if isinstance(action, Train):
            assert run.model(action).digest == result["model_sha256"]
        elif isinstance(action, WriteMaps):
            maps = run.store.names(run.map_folder(action))
            what["maps"] = {name: _sha256(run.store.read(name)) for name in maps}
        elif "sha256" in result:
            assert _sha256(run.store.read(str(result["file"]))) == result["sha256"]
        found[str(action)] = what
    return {"done": found, "failures": {str(a): list(c) for a, c in state.failures.items()}}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def undisturbed(ground: Ground, nodes: Nodes) -> dict[str, Any]:
    """Run a circle without kills. Return the committed results and the duration in seconds.

    Checks during the training that every worker has a separate node.
    """
    name = "undisturbed"
    command = ground.circle(name, nodes)
    start = time.monotonic()
    ground.gate.shut(name, Moment(CHECKPOINT.format(round=0)))
    command.start()
    _wait_until_held(ground, [command])
    assert nodes.hosts("ray::RayTrainWorker") == ground.num_workers
    ground.gate.open(deliver=True)
    until(lambda: command.code is not None)
    assert command.code == 0, command.read_output()
    return committed(ground.uri(name)) | {"seconds": time.monotonic() - start}


def disturbed(ground: Ground, nodes: Nodes, name: str, plan: Sequence[Kill]) -> dict[str, Any]:
    """Run a circle with planned kills. Return the kills and the committed results.

    A run may end before the last planned moments. The result then has fewer kills.

    Args:
        ground: storage, gate and data set.
        nodes: cluster of the run.
        name: name of the run.
        plan: kills in order. A moment counts writes from the previous kill on.
    """
    command = ground.circle(name, nodes)
    kills: list[dict[str, Any]] = []
    start = time.monotonic()
    moments = [one.moment for one in plan]
    if plan:
        ground.gate.shut(name, moments[0])
    command.start()
    for one, after in zip(plan, [*moments[1:], NEVER], strict=True):
        if not _is_held(one.kind, ground, nodes, command):
            break
        moment = {"run": name, "kind": one.kind, "at": round(time.monotonic() - start, 1)}
        moment |= {"write": ground.gate.held, "delivered": one.delivered}
        kills.append(moment | {"running": ground.running(name)})
        _kill(one.kind, ground, nodes, command)
        ground.gate.open(deliver=one.delivered, until=after)
    until(lambda: command.code is not None)
    end = time.monotonic() - start
    assert command.code == 0, command.read_output()
    for entry in kills:
        entry["seconds_to_the_end"] = round(end - entry["at"], 1)
    return {"kills": kills, "seconds": round(end, 1)} | committed(ground.uri(name))


def _is_held(kind: str, ground: Ground, nodes: Nodes, command: Command) -> bool:
    """Wait until the gate holds the run and the kill's target exists. False if the run ends."""
    titles = _TITLES.get(kind)
    while True:
        until(lambda: ground.gate.held or command.code is not None)
        if not ground.gate.held:
            return False
        if titles is None or nodes.processes(titles[0]):
            return True
        ground.gate.open(deliver=True, until=Moment(_PROGRESS))


def _wait_until_held(ground: Ground, commands: Sequence[Command]) -> None:
    """Wait until the gate has shut. Raises AssertionError if a command ends first."""
    until(lambda: ground.gate.held or any(one.code is not None for one in commands))
    assert ground.gate.held, [one.read_output() for one in commands]


def _kill(kind: str, ground: Ground, nodes: Nodes, command: Command) -> None:
    if kind == "command":
        command.kill()
        command.start()
    elif kind == "node":
        nodes.kill_other()
        nodes.add()
    elif kind == "storage":
        _outage(ground, nodes, command)
    else:
        workers = nodes.processes("ray::RayTrainWorker")
        kill(process for title in _TITLES[kind] for process in nodes.processes(title)[:1])
        if kind == "keepers":  # before the gate opens: live workers would go on
            until_gone(workers)


def _outage(ground: Ground, nodes: Nodes, command: Command) -> None:
    """Kill the storage. Restart after the command and the coordinator have met the outage."""
    coordinators = nodes.processes("ray::Coordinator")
    readers = [
        command.read_output,
        *(partial(nodes.read_stderr, process) for process in coordinators),
    ]
    before = [read().count(_TRIED_AGAIN) for read in readers]
    ground.storage.kill()
    ground.gate.refuse()
    for read, count in zip(readers, before, strict=True):
        until(lambda read=read, count=count: read().count(_TRIED_AGAIN) > count)  # type: ignore[misc]
    ground.storage.restart()


def planned(random_: random.Random, kinds: Sequence[str]) -> list[Kill]:
    """Return a kill at a random write for every kind."""
    return [
        Kill(kind, Moment(_PROGRESS, random_.randint(1, _MOST_WRITES)), random_.random() < 0.5)
        for kind in kinds
    ]


def two_clusters(ground: Ground, name: str = "two-clusters") -> dict[str, Any]:
    """Run a circle from two clusters. The working cluster dies while training round 1.

    The second cluster has two commands. Both must report that they follow the run, and take over.
    """
    with Nodes() as first, Nodes() as second:
        commands = [ground.circle(name, first, log=f"{name}-a")]
        ground.gate.shut(name, Moment(CHECKPOINT.format(round=0)))
        commands[0].start()
        _wait_until_held(ground, commands)
        commands += [ground.circle(name, second, log=f"{name}-{which}") for which in "bc"]
        for command in commands[1:]:
            command.start()
        until(lambda: all("following it" in one.read_output() for one in commands[1:]))
        assert not second.processes("ray::Coordinator")
        ground.gate.open(deliver=True, until=Moment(CHECKPOINT.format(round=1)))
        _wait_until_held(ground, commands)
        start = time.monotonic()
        commands[0].kill()
        first.kill()
        ground.gate.open(deliver=True)
        until(lambda: second.processes("ray::Coordinator"))
        takeover = time.monotonic() - start
        until(lambda: all(one.code is not None for one in commands[1:]))
        assert [one.code for one in commands[1:]] == [0, 0], [
            one.read_output() for one in commands[1:]
        ]
        figures = {"takeover_seconds": round(takeover, 1)}
    store = open_store(ground.uri(name))
    boots = [one for one in map(store.read, store.names(LEDGER_FOLDER)) if b'"kind": "boot"' in one]
    assert len(boots) == 2  # one per cluster: the two commands share a coordinator
    return figures | committed(ground.uri(name))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two runs have equal committed results."""
    return all(one[key] == other[key] for key in ("done", "failures"))


def main() -> int:
    """Run the long form. Return 1 if a run differs from the undisturbed run, else 0."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, required=True, help="folder of storage, logs and results"
    )
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--runs", type=int, default=100, help="most runs of this call")
    options = parser.parse_args()
    record = options.folder / "kills.json"
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"runs": []}
    with ground(options.folder.absolute(), options.folds) as place:
        for _ in range(options.runs):
            is_unfinished = _go_on(place, results, options)
            record.write_text(json.dumps(results, indent=1) + "\n")
            if not is_unfinished:
                break
    brief = _brief(results)
    sys.stdout.write(json.dumps(brief, indent=1) + "\n")
    return 0 if brief["equal"] else 1


def _go_on(place: Ground, results: dict[str, Any], options: argparse.Namespace) -> bool:
    """Do the next missing run. Return False only when all runs are done."""
    missing = options.kills - sum(len(run["kills"]) for run in results["runs"])
    if "undisturbed" not in results:
        with Nodes() as nodes:
            results["undisturbed"] = undisturbed(place, nodes)
    elif "two_clusters" not in results:
        run = two_clusters(place)
        results["two_clusters"] = run | {"equal": same(run, results["undisturbed"])}
    elif missing > 0:
        number, first = len(results["runs"]), options.kills - missing
        draw = random.Random(f"{options.seed} {number}")
        count = min(_KILLS_A_RUN, missing)
        kinds = [KINDS[index % len(KINDS)] for index in range(first, first + count)]
        draw.shuffle(kinds)
        with Nodes() as nodes:
            run = disturbed(place, nodes, f"killed-{number}", planned(draw, kinds))
        results["runs"].append(run | {"equal": same(run, results["undisturbed"])})
    return "two_clusters" not in results or missing > 0


def _brief(results: dict[str, Any]) -> dict[str, Any]:
    kills = [one | {"equal": run["equal"]} for run in results["runs"] for one in run["kills"]]
    runs = [*results["runs"], *([results["two_clusters"]] if "two_clusters" in results else [])]
    return {
        "undisturbed_seconds": round(results["undisturbed"]["seconds"], 1),
        "kills": kills,
        "by_kind": Counter(one["kind"] for one in kills),
        "run_seconds": [run["seconds"] for run in results["runs"]],
        "takeover_seconds": results.get("two_clusters", {}).get("takeover_seconds"),
        "equal": all(run["equal"] for run in runs),
    }


if __name__ == "__main__":
    sys.exit(main())
