"""Trackers, read back: every value occurs once, even after crashes."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from mtil.errors import StorageError
from mtil.tracking.follower import Follower
from mtil.tracking.nodes import Artefact, Node
from mtil.tracking.targets import Target, TrackingError, open_tracker, parse_target
from tests.trackers import (
    Curves,
    list_mlflow_runs,
    read_mlflow,
    read_tensorboard,
    read_wandb,
)

# MLflow and wandb use deprecated features of dependencies.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

HOSTILE = ("=1+1", "<script>alert(1)</script>", "../../up", "a|b\n| c", "\u202egnp.exe", "x" * 9000)


def make_tree(
    epochs: int, *, is_finished: bool = False, artefact: Artefact | None = None
) -> list[Node]:
    """A run with a round and a fold of some epochs, figures and a file."""
    curves = [
        {"loss/segmentation": 1 / (1 + epoch), "validation/dice": 0.25 * epoch, "speed/seconds": 2}
        for epoch in range(epochs)
    ]
    return [
        Node(
            path=(),
            key="a" * 32,
            name="run",
            facts={"seed": "0"},
            figures={"test/dice": 0.75, "test/dice_low": 0.5} if is_finished else {},
            is_finished=is_finished,
        ),
        Node(path=("round-0",), key="b" * 32, name="round-0", is_finished=is_finished),
        Node(
            path=("round-0", "fold-1"),
            key="c" * 32,
            name="fold-1",
            facts={"fold": "1"},
            epochs=curves,
            figures={"kept/dice": 0.5} if is_finished else {},
            artefacts={} if artefact is None else {"model.pt": artefact},
            is_finished=is_finished,
        ),
    ]


@pytest.fixture(params=["mlflow", "mlflow files", "tensorboard", "wandb"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Target, Callable[[], Curves]]:
    """A tracker, and a function to read the tracker back."""
    monkeypatch.chdir(tmp_path)  # MLflow keeps files of a database in the current folder
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    text = {
        "mlflow": f"mlflow=sqlite:///{tmp_path}/mlflow.db",
        "mlflow files": f"mlflow={tmp_path}/mlruns",
        "tensorboard": f"tensorboard={tmp_path}/events",
        "wandb": f"wandb={tmp_path}",
    }[request.param]
    target = parse_target(text)
    assert target.location is not None
    location = target.location
    readers = {"mlflow": read_mlflow, "tensorboard": read_tensorboard, "wandb": read_wandb}
    return target, lambda: readers[target.kind](location)


def update(target: Target, nodes: Sequence[Node], *, is_last: bool = False) -> None:
    """Bring a tracker up to date as a new process would."""
    tracker = open_tracker(target)
    try:
        tracker.update(nodes, is_last=is_last)
    finally:
        tracker.close()


def test_every_epoch_once_through_many_processes(
    place: tuple[Target, Callable[[], Curves]],
) -> None:
    target, read = place
    for epochs in (0, 2, 2, 3):
        update(target, make_tree(epochs), is_last=True)
    for _ in range(2):
        update(target, make_tree(4, is_finished=True), is_last=True)

    fold = read()["fold-1"]
    assert [step for step, _ in fold["validation/dice"]] == [0, 1, 2, 3]
    assert [value for _, value in fold["validation/dice"]] == [0.0, 0.25, 0.5, 0.75]
    assert [value for _, value in fold["loss/segmentation"]] == pytest.approx(
        [1, 1 / 2, 1 / 3, 1 / 4]
    )
    assert [value for _, value in fold["kept/dice"]] == [0.5]
    run = next(curves for name, curves in read().items() if name.startswith("run"))
    assert run == {"test/dice": [(0, 0.75)], "test/dice_low": [(0, 0.5)]}


def test_a_process_that_grows_with_its_training(
    place: tuple[Target, Callable[[], Curves]],
) -> None:
    target, read = place
    tracker = open_tracker(target)
    for epochs in range(4):
        tracker.update(make_tree(epochs), is_last=False)
    tracker.update(make_tree(4, is_finished=True), is_last=True)
    tracker.close()
    assert [step for step, _ in read()["fold-1"]["validation/dice"]] == [0, 1, 2, 3]


def test_a_death_in_the_middle_of_an_update(place: tuple[Target, Callable[[], Curves]]) -> None:
    target, read = place

    def fail() -> bytes:
        raise StorageError("The run's storage is down.")

    if target.kind != "tensorboard":  # TensorBoard keeps no files
        nodes = make_tree(3, is_finished=True, artefact=Artefact(version="1", read=fail))
        with pytest.raises(StorageError):
            update(target, nodes, is_last=True)
    nodes = make_tree(3, is_finished=True, artefact=Artefact(version="1", read=lambda: b"weights"))
    update(target, nodes, is_last=True)
    assert [step for step, _ in read()["fold-1"]["validation/dice"]] == [0, 1, 2]


def test_values_that_are_no_numbers(place: tuple[Target, Callable[[], Curves]]) -> None:
    target, read = place
    nodes = make_tree(1, is_finished=True)
    nodes[2] = replace(
        nodes[2], epochs=[{"loss/segmentation": math.nan}, {"loss/segmentation": 1.0}]
    )
    for _ in range(2):
        update(target, nodes, is_last=True)
    values = read()["fold-1"]["loss/segmentation"]
    assert [step for step, _ in values] == [0, 1]
    assert values[1] == (1, 1.0)


def test_hostile_text_stays_text(
    place: tuple[Target, Callable[[], Curves]], tmp_path: Path
) -> None:
    target, read = place
    nodes = make_tree(1, is_finished=True)
    names = [f"fact {number}" for number in range(len(HOSTILE))]
    nodes[0] = replace(
        nodes[0],
        name="../<b>run",
        facts=dict(zip((*names, *HOSTILE[:4]), (*HOSTILE, *names[:4]), strict=True)),
    )
    nodes[1] = replace(nodes[1], figures={f"best/{HOSTILE[0]}": 1.0, f"best/{HOSTILE[2]}": 2.0})
    for _ in range(2):
        update(target, nodes, is_last=True)
    assert read()["fold-1"]["validation/dice"] == [(0, 0.0)]
    assert sorted(value for ((_, value),) in read()[nodes[1].name].values()) == [1.0, 2.0]
    # Nothing outside the folder of the test: no name became a path.
    assert not (tmp_path.parent / "up").exists()
    assert not list(tmp_path.parent.glob("*run-aaaaaaaa"))


def test_mlflow_nests_runs_and_keeps_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    reads: list[str] = []

    def read() -> bytes:
        reads.append("once")
        return b"weights"

    nodes = make_tree(1, is_finished=True, artefact=Artefact(version="1", read=read))
    for _ in range(2):
        update(Target("mlflow", uri), nodes, is_last=True)
    runs = list_mlflow_runs(uri)
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {
        "run": None,
        "round-0": runs["run"].info.run_id,
        "fold-1": runs["round-0"].info.run_id,
    }
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["run"].data.params == {"seed": "0"}
    assert reads == ["once"]
    assert [file.read_bytes() for file in tmp_path.rglob("model.pt")] == [b"weights"]

    # A resumed training reopens the runs.
    update(Target("mlflow", uri), make_tree(2))
    assert {run.info.status for run in list_mlflow_runs(uri).values()} == {"RUNNING"}


def test_wandb_files_of_a_changed_run_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    nodes = make_tree(1, is_finished=True)
    update(Target("wandb", str(tmp_path)), nodes, is_last=True)
    nodes[0] = replace(nodes[0], figures={"test/dice": 0.8})
    update(Target("wandb", str(tmp_path)), nodes, is_last=True)
    assert read_wandb(str(tmp_path))["run"] == {"test/dice": [(0, 0.8)]}


class Outage:
    """A tracker with failures in the first updates."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
        self.calls = 0
        self._failures = failures
        monkeypatch.setattr("mtil.tracking.follower.open_tracker", lambda _: self)
        monkeypatch.setattr("mtil.tracking.follower._FIRST_RETRY_S", 0.0)

    def update(self, nodes: Sequence[Node], *, is_last: bool) -> None:
        """Raise an error in the first `failures` calls."""
        self.calls += 1
        if self.calls <= self._failures:
            raise TrackingError("It is full.")

    def close(self) -> None:
        """Do nothing."""


def test_an_outage_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    outage, warnings = Outage(monkeypatch, failures=3), []
    target = Target("tensorboard", None)
    follower = Follower(lambda _: make_tree(1), target, warnings.append)
    follower._retry_s = 0.0
    assert [follower.update() for _ in range(5)] == [False, False, False, True, True]
    assert outage.calls == 5
    assert len(warnings) == 1
    assert "tensorboard" in warnings[0]
    assert "It is full." in warnings[0]


def test_a_follower_waits_for_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    outage = Outage(monkeypatch, failures=0)
    follower = Follower(lambda _: [], Target("tensorboard", None), pytest.fail)
    assert follower.update()
    assert outage.calls == 0


def test_mlflow_server_that_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match="MLflow fails"):
        open_tracker(Target("mlflow", "http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comet", "must be one of mlflow, tensorboard, wandb, but is 'comet'"),
        ("mlflow=", "location must follow `mlflow=`"),
        ("mlflow=https://ada:secret@host/x", "must hold no password"),
    ],
)
def test_unknown_trackers(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_target(text)


def test_a_tracker_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ModuleNotFoundError):
        parse_target("wandb")
