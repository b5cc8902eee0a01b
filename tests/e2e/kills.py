"""Kill what a circle runs on, at seeded writes of its own, and see that it comes out the same.

    python -m tests.e2e.kills --kills 20 --seed 0 --folder kills

First a run is left alone. Then two clusters do one run, and the first of them dies. Then, run after
run, a process is killed at a time: a train worker, the train controller, the coordinator, the
command (which is given again), a node with its raylet (which is replaced), the S3 server (which
comes back once the command and the coordinator have met the outage). No kill waits for a clock: a
gate before the storage stops the run at one of its writes, drawn by number, and the write arrives
after the kill, or never. Each run must end by itself, with what the undisturbed one has committed:
the same weights, maps, predictions and figures, bit for bit; and its ledger must be one chain in
which each action is done once. Prints JSON; `kills.json` in the folder has it too, and a second
call goes on there.
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
"""What is killed of each kind; `keepers` are all at once that would free a training's CPUs."""
_KILLS_A_RUN = 5
_MOST_WRITES = 20
"""Of the run, between a kill and the next: at least one."""
_PROGRESS = r"(rounds|maps)/.*|ledger/(?!00000[12]\.).*"
"""What the coordinator and its actions write; the first two events come before there are any."""
CHECKPOINT = r"rounds/{round}/.*/checkpoints/latest\.json"
_TRIED_AGAIN = "storage failed, which is tried again"
_TIMES = {"seconds", "written"}
"""What a result says of how it came about, not of what it is."""

CONFIG: dict[str, dict[str, Any]] = {
    "data": {"image_size": 64},
    "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
    "train": {
        "num_epochs": 2,
        "batch_size": 8,
        "warmup_epochs": 0.5,
        "cpus_per_worker": 0.75,  # of a node's one CPU: two workers are on both nodes
    },
}


@dataclass(frozen=True)
class Kill:
    """What is killed, at which write, and whether that write still arrives."""

    kind: str
    moment: Moment
    delivered: bool


class Ground:
    """A storage with a small data set behind a gate, and the commands that work on it."""

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
        """Return where a run is."""
        return f"s3://{BUCKET}/{name}"

    def circle(self, name: str, nodes: Nodes, *, log: str | None = None) -> Command:
        """Return the command that does a run on a cluster."""
        arguments = [
            "circle", "--data", self.data, "--run", self.uri(name), "--config", str(self._config),
            "--fold", self.folds,
        ]  # fmt: skip
        log_file = self.folder / f"{log or name}.log"
        self._commands.append(Command(arguments, log_file, RAY_ADDRESS=nodes.address))
        return self._commands[-1]

    def end(self) -> None:
        """End what was not seen to its end."""
        for command in self._commands:
            command.kill()

    def state(self, name: str) -> CircleState | None:
        """Return what the ledger says of a run, after its chain has been verified."""
        return Ledger.open(open_store(self.uri(name))).state

    def running(self, name: str) -> list[str]:
        """Return what is in flight."""
        state = self.state(name)
        return [] if state is None else sorted(map(str, state.running))


@contextmanager
def ground(folder: Path, folds: str, num_rounds: int = 2, num_workers: int = 2) -> Iterator[Ground]:
    """Set the environment of all that is started, and run the storage."""
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
    """Return what a run has committed, with the digests of its models, maps and predictions.

    Raises:
        AssertionError: if its ledger names no file that is there, has a gap, or an action twice.
        MtilError: if its chain does not hold.
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
    """Do a run without any kill; return what it commits, and how long it takes.

    Two workers are on two nodes, which is seen while they train.
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
    assert command.code == 0, command.said()
    return committed(ground.uri(name)) | {"seconds": time.monotonic() - start}


def disturbed(ground: Ground, nodes: Nodes, name: str, plan: Sequence[Kill]) -> dict[str, Any]:
    """Do a run, kill as planned, and return the kills and what it has committed.

    The run may end before the last moments of a plan: then it has fewer kills.

    Args:
        ground: where.
        nodes: on which cluster.
        name: of the run.
        plan: the kills, each with its moment after the kill before.
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
    assert command.code == 0, command.said()
    for entry in kills:
        entry["seconds_to_the_end"] = round(end - entry["at"], 1)
    return {"kills": kills, "seconds": round(end, 1)} | committed(ground.uri(name))


def _is_held(kind: str, ground: Ground, nodes: Nodes, command: Command) -> bool:
    """Wait until the run is held while the target of a kill is there; False if the run ends."""
    titles = _TITLES.get(kind)
    while True:
        until(lambda: ground.gate.held or command.code is not None)
        if not ground.gate.held:
            return False
        if titles is None or nodes.processes(titles[0]):
            return True
        ground.gate.open(deliver=True, until=Moment(_PROGRESS))


def _wait_until_held(ground: Ground, commands: Sequence[Command]) -> None:
    """Wait until the gate has shut; an AssertionError if a command ends before."""
    until(lambda: ground.gate.held or any(one.code is not None for one in commands))
    assert ground.gate.held, [one.said() for one in commands]


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
        if kind == "keepers":  # who would go on with the training if the gate opened before
            until_gone(workers)


def _outage(ground: Ground, nodes: Nodes, command: Command) -> None:
    """Kill the storage, and start it again when the command and the coordinator have met that."""
    coordinators = nodes.processes("ray::Coordinator")
    told = [command.said, *(partial(nodes.said, process) for process in coordinators)]
    before = [said().count(_TRIED_AGAIN) for said in told]
    ground.storage.kill()
    ground.gate.refuse()
    for said, count in zip(told, before, strict=True):
        until(lambda said=said, count=count: said().count(_TRIED_AGAIN) > count)  # type: ignore[misc]
    ground.storage.restart()


def planned(random_: random.Random, kinds: Sequence[str]) -> list[Kill]:
    """Return at which writes to kill what."""
    return [
        Kill(kind, Moment(_PROGRESS, random_.randint(1, _MOST_WRITES)), random_.random() < 0.5)
        for kind in kinds
    ]


def two_clusters(ground: Ground, name: str = "two-clusters") -> dict[str, Any]:
    """Do a run from two clusters, of which the one that works dies when it trains round 1.

    The other one, where two commands were given, must say that it follows and then take over.
    """
    with Nodes() as first, Nodes() as second:
        commands = [ground.circle(name, first, log=f"{name}-a")]
        ground.gate.shut(name, Moment(CHECKPOINT.format(round=0)))
        commands[0].start()
        _wait_until_held(ground, commands)
        commands += [ground.circle(name, second, log=f"{name}-{which}") for which in "bc"]
        for command in commands[1:]:
            command.start()
        until(lambda: all("following it" in one.said() for one in commands[1:]))
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
        assert [one.code for one in commands[1:]] == [0, 0], [one.said() for one in commands[1:]]
        told = {"takeover_seconds": round(takeover, 1)}
    store = open_store(ground.uri(name))
    boots = [one for one in map(store.read, store.names(LEDGER_FOLDER)) if b'"kind": "boot"' in one]
    assert len(boots) == 2  # two commands on the second cluster have one coordinator
    return told | committed(ground.uri(name))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Say whether two runs have committed the same."""
    return all(one[key] == other[key] for key in ("done", "failures"))


def main() -> int:
    """Do the long form and return whether anything came out different."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.kills")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="where all is kept")
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--runs", type=int, default=100, help="at most so many in this call")
    options = parser.parse_args()
    record = options.folder / "kills.json"
    told: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"runs": []}
    with ground(options.folder.absolute(), options.folds) as place:
        for _ in range(options.runs):
            if not _go_on(place, told, options):
                break
            record.write_text(json.dumps(told, indent=1) + "\n")
    brief = _brief(told)
    sys.stdout.write(json.dumps(brief, indent=1) + "\n")
    return 0 if brief["equal"] else 1


def _go_on(place: Ground, told: dict[str, Any], options: argparse.Namespace) -> bool:
    """Do the next run; say whether there was one to do."""
    missing = options.kills - sum(len(run["kills"]) for run in told["runs"])
    if "undisturbed" not in told:
        with Nodes() as nodes:
            told["undisturbed"] = undisturbed(place, nodes)
    elif "two_clusters" not in told:
        run = two_clusters(place)
        told["two_clusters"] = run | {"equal": same(run, told["undisturbed"])}
    elif missing > 0:
        number, first = len(told["runs"]), options.kills - missing
        draw = random.Random(f"{options.seed} {number}")
        count = min(_KILLS_A_RUN, missing)
        kinds = [KINDS[index % len(KINDS)] for index in range(first, first + count)]
        draw.shuffle(kinds)
        with Nodes() as nodes:
            run = disturbed(place, nodes, f"killed-{number}", planned(draw, kinds))
        told["runs"].append(run | {"equal": same(run, told["undisturbed"])})
    return "two_clusters" not in told or missing > 0


def _brief(told: dict[str, Any]) -> dict[str, Any]:
    kills = [one | {"equal": run["equal"]} for run in told["runs"] for one in run["kills"]]
    runs = [*told["runs"], *([told["two_clusters"]] if "two_clusters" in told else [])]
    return {
        "undisturbed_seconds": round(told["undisturbed"]["seconds"], 1),
        "kills": kills,
        "by_kind": Counter(one["kind"] for one in kills),
        "run_seconds": [run["seconds"] for run in told["runs"]],
        "takeover_seconds": told.get("two_clusters", {}).get("takeover_seconds"),
        "equal": all(run["equal"] for run in runs),
    }


if __name__ == "__main__":
    sys.exit(main())
