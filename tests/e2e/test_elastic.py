"""A node leaves after a warning, and a new node joins: two workers, one worker, two workers."""

import itertools
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import object_store
from mtil.run.folder import Run
from mtil.run.plan import Train
from tests.e2e.conftest import Command
from tests.e2e.gate import Gate, Moment
from tests.e2e.places import BUCKET, SETTINGS, Nodes, kill
from tests.e2e.places import Command as Given
from tests.waiting import until

_EPOCHS = 14
_CONFIG = {
    "data": {"image_size": 64},
    "model": {"encoder": {"name": "resnet18", "pretrained": False}},
    "train": {
        "num_epochs": _EPOCHS,
        "batch_size": 4,
        "min_workers": 1,
        "num_workers": 2,
        "cpus_per_worker": 0.7,  # a node has 1 CPU, room for one worker
    },
}


@pytest.fixture(scope="module")
def longer(mtil: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with more steps per epoch than the 16 between two checks for a warning."""
    folder = tmp_path_factory.mktemp("longer")
    for arguments in (
        ("phantom", folder / "images", "--num-images", "200"),
        ("prepare", folder / "images", "--layout", "busi", "--to", folder / "set",
         "--image-size", "64", "--num-folds", "3"),
    ):  # fmt: skip
        done = mtil(*arguments)
        assert done.returncode == 0, done.stderr
    return folder / "set"


def _steps_within_epoch(run: Run) -> int:
    """Return the number of steps of an unfinished epoch in the latest checkpoint.

    0 between epochs, and without a checkpoint.
    """
    state = run.checkpoints(Train(0, 0)).load()
    return 0 if state is None else int(state["begun"]["steps"])


def _history(run: Run) -> list[dict[str, Any]]:
    return run.history(Train(0, 0))


@pytest.mark.long
def test_two_workers_then_one_then_two(
    longer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning saves the steps so far. No epoch is lost, and all epochs have equal sizes."""
    watching = {
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
    }
    for name, value in (SETTINGS | watching).items():
        monkeypatch.setenv(name, value)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(_CONFIG))
    uri = f"s3://{BUCKET}/run"
    arguments = ["train", "--data", longer, "--run", uri, "--config", config, "--fold", "0"]
    with object_store.run_object_store(tmp_path / "s3", BUCKET) as keys, ExitStack() as open_:
        gate = Gate(keys["AWS_ENDPOINT_URL"], BUCKET)
        for name, value in (keys | {"AWS_ENDPOINT_URL": open_.enter_context(gate)}).items():
            monkeypatch.setenv(name, value)
        nodes = open_.enter_context(Nodes())
        command = Given(list(map(str, arguments)), tmp_path / "log", RAY_ADDRESS=nodes.address)
        open_.callback(command.kill)

        def go_on_until(condition: Callable[[], object]) -> None:
            """Let the training pass the gate write by write until a condition holds."""
            until(lambda: gate.held or command.code is not None)
            while not condition():
                assert gate.held, command.read_output()
                gate.open(deliver=True, until=Moment(".*"))
                until(lambda: gate.held or command.code is not None)

        gate.shut("run", Moment(r".*/history\.jsonl", 2))
        command.start()
        go_on_until(lambda: gate.held)
        nodes.warn_other(3600)  # Ray itself would remove the node after an hour
        run = Run.open(uri)
        go_on_until(lambda: _steps_within_epoch(run))
        kill(nodes.processes("ray::RayTrainWorker"))
        nodes.kill_other()
        state = run.checkpoints(Train(0, 0)).load()
        assert state is not None
        kept, interrupted = state["begun"]["steps"], len(json.loads(state["history"]))
        gate.open(deliver=False, until=Moment(".*"))
        go_on_until(lambda: _history(run)[-1]["num_workers"] == 1)
        nodes.add()
        until(lambda: nodes.hosts("ray::RayTrainWorker") == 2)
        gate.open(deliver=False)
        until(lambda: command.code is not None)
    assert command.code == 0, command.read_output()
    history = _history(run)
    assert [line["epoch"] for line in history] == list(range(_EPOCHS))
    assert {line["steps"] for line in history} == {history[0]["steps"]}
    assert {line["images"] for line in history} == {4 * history[0]["steps"]}
    workers = [number for number, _ in itertools.groupby(line["num_workers"] for line in history)]
    assert workers == [2, 1, 2]
    assert kept in (16, 32)  # the first check after the warning
    line = history[interrupted]
    trained_again = round(line["seconds"] * line["images_per_second"] / 4)
    assert trained_again == line["steps"] - kept
