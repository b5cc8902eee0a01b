"""`mtil status` and `mtil stop`: reports on a run from files alone."""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtil.circle import heartbeat
from mtil.circle.ledger import Ledger
from mtil.circle.state import ActionDone, ActionFailed, ActionStarted
from mtil.cli import main
from mtil.cli.commands import circle
from mtil.cli.console import CommandOutput
from mtil.cli.views import circles
from mtil.config import Config, config_to_dict
from mtil.distributed.circle import driver as distributed
from mtil.distributed.runtime import cluster
from mtil.errors import StorageError
from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Summarise, Train, WriteMaps
from tests.waiting import until

CircleRun = Callable[..., Run]
Meanwhile = Callable[[Callable[[], object]], None]
CommandResult = tuple[int, dict[str, Any], str]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the signal handler after a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Call a function while `--watch` waits for the first time."""

    def do(something: Callable[[], object]) -> None:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            if not waits:
                something()
            waits.append(seconds)

        monkeypatch.setattr(circles, "time", SimpleNamespace(sleep=sleep))

    return do


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Run a command with `--json`. Return exit code, printed object and text on stderr."""

    def run(*arguments: object) -> CommandResult:
        code = main([*map(str, arguments), "--json"])
        captured = capsys.readouterr()
        assert captured.out.count("\n") == 1
        return code, json.loads(captured.out), captured.err

    return run


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Run a command and return the printed lines."""

    def run(*arguments: object) -> list[str]:
        assert main([str(word) for word in arguments]) == 0
        return capsys.readouterr().out.splitlines()

    return run


def begin(run: Run, *started: Train) -> Ledger:
    """Record a second coordinator and the start of some trainings in the ledger."""
    ledger = Ledger.open(run.store, session="later")
    ledger.boot()
    for action in started:
        ledger.append(ActionStarted(action=action, attempt=1))
    return ledger


def test_rounds_and_folds_are_told_by_their_stage(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Train(1, 0))
    begin(run, Train(1, 1))
    where = {"epoch": 2, "step": 3, "steps": 9, "hosts": ["node-1", "node-2"]}
    run.write_step(Train(1, 1), where)
    code, values, seen = run_command("status", "--run", run.uri)
    assert code == 0
    assert values.keys() == {
        "run", "verified", "events", "condition", "host", "waits", "stages", "running",
        "failed_folds", "rounds",
    }  # fmt: skip
    assert (values["run"], values["verified"], values["condition"]) == (run.uri, True, "waiting")
    assert values["stages"] == {
        "0": {"0": "done", "1": "done"},
        "1": {"0": "waiting", "1": "training"},
        "2": {"0": "waiting", "1": "waiting"},
    }
    assert values["running"] == [
        {"action": "training of round 1, fold 1", "attempt": 1}
        | {"epoch": 2, "epochs": 4, "hosts": ["node-1", "node-2"]}
    ]
    assert values["failed_folds"] == {}
    # begin, boot, two events for each of 7 actions, boot, start
    assert values["events"] == 2 + 2 * 7 + 2
    (of_round,) = values["rounds"]
    assert of_round.keys() == {"round", "folds", "metrics", "by_pass"}
    assert of_round["metrics"]["dice"] == {"value": 0.8125, "low": 0.75, "high": 0.875}
    assert "Running: training of round 1, fold 1, attempt 1, epoch 3 of 4 on node-1, node-2" in seen
    assert "No coordinator runs the circle; `mtil circle` resumes." in seen


def test_figures_are_told_by_round_and_pass(
    circle_run: CircleRun, lines: Callable[..., list[str]]
) -> None:
    run = circle_run(num_rounds=2)
    seen = lines("status", "--run", run.uri)
    assert [line.split() for line in seen[:3]] == [
        ["round", "fold", "0", "fold", "1"],
        ["0", "done", "done"],
        ["1", "done", "done"],
    ]
    figures = ["0.812", "0.750-0.875"] * 3
    assert seen[3] == "Test images by round and pass; each pass reads the map of the previous pass:"
    assert [line.split() for line in seen[4:8]] == [
        ["round", "pass", "folds", "dice,", "95", "%", "f1,", "95", "%", "auc,", "95", "%"],
        ["0", "0", "2", *figures],
        ["1", "0", "2", *figures],
        ["1", "1", "2", *figures],
    ]
    assert seen[8].endswith("events, one chain. The run is over.")
    assert max(map(len, seen[:8])) <= 80


def test_a_figure_that_is_undefined_is_not_a_number(
    circle_run: CircleRun, lines: Callable[..., list[str]]
) -> None:
    run = circle_run([0], num_rounds=1, until=Summarise(0))
    ledger = begin(run)
    assert ledger.state is not None
    action = Summarise(0)
    metrics: dict[str, Any] = {
        "dice": {"value": None, "low": None, "high": None},
        "f1": {"value": 1.0, "low": None, "high": None},
        "auc": {"value": 0.5, "low": 0.25, "high": 1.0},
    }
    ledger.append(ActionStarted(action=action, attempt=1))
    result: dict[str, Any] = {"folds": [0], "by_pass": [{"pass": 0, "metrics": metrics}]}
    ledger.append(ActionDone(action=action, attempt=1, result=result))
    (line,) = [line for line in lines("status", "--run", run.uri) if "n/a" in line]
    assert line.split() == ["0", "0", "1", "n/a", "1.000", "0.500", "0.250-1.000"]


def test_many_folds_fit_the_page(circle_run: CircleRun, lines: Callable[..., list[str]]) -> None:
    run = circle_run(range(10), num_rounds=1, until=Train(0, 0))
    begin(run, *(Train(0, fold) for fold in range(10)))
    seen = lines("status", "--run", run.uri)
    assert max(map(len, seen[:4])) <= 80
    shown = [word for line in (seen[1], seen[3]) for word in line.split()]
    assert shown == ["0", *["training"] * 6, "0", *["training"] * 4]


def test_a_failed_fold_is_told_with_its_cause(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Train(0, 0), max_attempts=1)
    ledger = begin(run, Train(0, 1))
    ledger.append(ActionFailed(action=Train(0, 1), attempt=1, cause="No memory."))
    code, values, seen = run_command("status", "--run", run.uri)
    assert code == 0
    cause = "training of round 0, fold 1: No memory."
    assert values["failed_folds"] == {"1": cause}
    assert values["stages"]["0"] == {"0": "waiting", "1": "failed"}
    assert f"Fold 1 has failed: {cause}" in seen


@pytest.mark.slow
def test_a_coordinator_at_work_is_seen(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Train(0, 0))
    with heartbeat.HeartbeatThread(run.store, "later"):
        until(lambda: heartbeat.read_heartbeat(run.store))
        _, values, seen = run_command("status", "--run", run.uri)
        assert (values["condition"], values["host"]) == ("running", socket.gethostname())
        assert f"A coordinator on {socket.gethostname()} runs the circle." in seen
    assert run_command("status", "--run", run.uri)[1]["condition"] == "waiting"


# Errors


def test_a_changed_event_is_told_and_fails(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Evaluate(0, 0))
    name = "ledger/000003.json"
    run.store.write(name, run.store.read(name).replace(b'"at": "2', b'"at": "3'))
    code, values, seen = run_command("status", "--run", run.uri)
    assert code == 2
    error = (
        f"Event 3 of {run.uri}/ledger was changed after writing: the sha256 of the text differs "
        "from the key `sha256`; restore the event, or choose a new --run."
    )
    assert values == {"run": run.uri, "verified": False, "error": error}
    assert seen == f"mtil: {error}\n"
    assert main(["stop", "--run", run.uri]) == 2


def test_an_event_that_is_changed_while_it_is_watched_is_told(
    circle_run: CircleRun, run_command: Callable[..., CommandResult], meanwhile: Meanwhile
) -> None:
    run = circle_run(until=Train(0, 0))
    meanwhile(lambda: run.store.write("ledger/000003.json", b"{"))
    code, values, _ = run_command("status", "--run", run.uri, "--watch")
    assert (code, values["verified"]) == (2, False)
    assert "Event 3 of" in values["error"]


def test_a_run_without_a_ledger_is_not_stopped_from_elsewhere(
    make_config: Callable[..., Config], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = str(tmp_path / "run")
    Run.create(uri, make_config(), "data", "f" * 64)
    assert main(["stop", "--run", uri, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"mtil: `mtil stop` needs a circle, but {uri} has no ledger. End `mtil train` with "
        "Ctrl-C in the terminal where the command runs; repeat the command to resume.\n"
    )
    for command in ("stop", "status"):
        assert main([command, "--run", str(tmp_path)]) == 2
        assert "must have a run.json" in capsys.readouterr().err


def test_a_foreign_sign_of_life_is_one_sentence(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Train(0, 0))
    run.store.write("coordinator.json", b"[]")
    code, values, seen = run_command("status", "--run", run.uri)
    assert code == 1
    assert values["error"] == (
        f"{run.uri}/coordinator.json must be a JSON object, but is an array; delete it."
    )
    assert "Traceback" not in seen


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--watch", "--lineage", "x"], "not allowed with argument --watch"),
        (
            ["--fold", "1"],
            "`--fold` selects the map of `--lineage`. Give both options, or leave out",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    circle_run: CircleRun, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run(until=Train(0, 0))
    assert main(["status", "--run", run.uri, *words]) == 2
    assert why in capsys.readouterr().err


# Stopping and watching


def test_a_run_is_stopped_once_however_often_it_is_asked(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run(until=Train(1, 0))
    begin(run, Train(1, 0))
    before = len(run.store.names("ledger"))
    for _ in range(2):
        code, values, seen = run_command("stop", "--run", run.uri)
        assert code == 0
        assert values == {"run": run.uri, "stopped": True}
        assert "Repeat the `mtil circle` command to resume from the committed results." in seen
    assert len(run.store.names("ledger")) == before + 1
    code, values, seen = run_command("status", "--run", run.uri)
    assert (code, values["condition"]) == (0, "stopped")
    assert values["stages"]["1"] == {"0": "waiting", "1": "waiting"}
    assert values["running"] == []
    assert "Running:" not in seen
    assert "The run is stopped; `mtil circle` resumes." in seen


def test_an_ended_run_cannot_be_stopped(
    circle_run: CircleRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run([0], num_rounds=1)
    before = run.store.names("ledger")
    assert main(["stop", "--run", run.uri, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"mtil: {run.uri} has ended already and cannot be stopped.\n"
    assert run.store.names("ledger") == before


@pytest.mark.parametrize("how", ["over", "stopped"])
def test_watching_ends_with_the_run(
    circle_run: CircleRun, run_command: Callable[..., CommandResult], meanwhile: Meanwhile, how: str
) -> None:
    run = circle_run([0], num_rounds=1, until=Summarise(0))
    ledger = begin(run)

    def end() -> None:
        if how == "stopped":
            ledger.stop()
            return
        ledger.append(ActionStarted(action=Summarise(0), attempt=1))
        metrics = {
            name: {"value": 0.5, "low": 0.25, "high": 0.75} for name in ("dice", "f1", "auc")
        }
        result: dict[str, Any] = {"folds": [0], "by_pass": [{"pass": 0, "metrics": metrics}]}
        ledger.append(ActionDone(action=Summarise(0), attempt=1, result=result))

    meanwhile(end)
    code, values, seen = run_command("status", "--run", run.uri, "--watch")
    assert (code, values["condition"]) == (0, how)
    assert seen.count("round  fold 0") == 2  # at first, and after the event
    assert "No coordinator runs the circle" in seen


def test_a_coordinator_that_died_with_everything_is_not_at_work(
    circle_run: CircleRun,
    run_command: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.03)
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 0.3)
    run = circle_run(until=Train(0, 0))
    run.store.write("coordinator.json", b'{"session": "dead", "count": 7}')
    _, values, _ = run_command("status", "--run", run.uri)
    assert (values["condition"], values["host"]) == ("waiting", "")


def test_what_a_coordinator_waits_for_is_told(
    circle_run: CircleRun,
    run_command: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.03)
    run = circle_run(until=Train(0, 0))
    heart = heartbeat.HeartbeatThread(run.store, "later")
    heart.waits = "The coordinator waits for machines: none are left."
    with heart:
        until(lambda: heartbeat.read_heartbeat(run.store))
        _, values, seen = run_command("status", "--run", run.uri)
    assert values["waits"] == heart.waits
    assert f"{heart.waits}\n" in seen


def test_watching_tells_of_epochs_and_outlasts_a_storage_that_fails(
    circle_run: CircleRun,
    run_command: Callable[..., CommandResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = circle_run([0], num_rounds=1, until=Train(0, 0))
    ledger = begin(run, Train(0, 0))
    failing: list[str] = []
    happens: list[Callable[[], object]] = [
        lambda: run.write_step(Train(0, 0), {"epoch": 0, "step": 1, "steps": 9}),
        lambda: run.write_step(Train(0, 0), {"epoch": 0, "step": 7, "steps": 9}),
        lambda: failing.append("Bucket 'b' is out of reach."),
        lambda: None,
        lambda: failing.clear(),
        lambda: run.write_step(Train(0, 0), {"epoch": 1, "step": 7, "steps": 9}),
        ledger.stop,
    ]
    refresh = Ledger.refresh

    def moody(self: Ledger) -> Any:
        if failing:
            raise StorageError(failing[0])
        return refresh(self)

    monkeypatch.setattr(Ledger, "refresh", moody)
    sleep = SimpleNamespace(sleep=lambda seconds: happens.pop(0)())
    monkeypatch.setattr(circles, "time", sleep)
    code, values, seen = run_command("status", "--run", run.uri, "--watch")
    assert (code, values["condition"]) == (0, "stopped")
    assert seen.count("epoch 1 of 4") == 1
    assert seen.count("epoch 2 of 4") == 1
    assert seen.count("storage failed; retrying. Bucket 'b' is out of reach.") == 1


def test_watching_an_ended_run_says_so_and_leaves(
    circle_run: CircleRun, run_command: Callable[..., CommandResult]
) -> None:
    run = circle_run([0], num_rounds=1)
    code, values, seen = run_command("status", "--run", run.uri, "--watch")
    assert (code, values["condition"]) == (0, "over")
    assert seen.count("round  fold 0") == 1


def test_being_detached_is_told_as_json_too(
    make_config: Callable[..., Config],
    data_uri: str,
    circle_run: CircleRun,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., CommandResult],
) -> None:
    """Ctrl-C detaches from a run on a cluster. The test replaces the cluster."""
    run = circle_run([0], until=Train(0, 0))

    def follow(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(cluster, "connect_ray", lambda **_: nullcontext())
    monkeypatch.setattr(distributed, "begin_circle", lambda *_, **__: run)
    monkeypatch.setattr(distributed, "follow_circle", follow)
    config = Path(f"{run.uri}.json")
    config.write_text(json.dumps(config_to_dict(run.config)))
    words = ("circle", "--data", data_uri, "--run", run.uri, "--config", str(config))
    code, values, seen = run_command(*words, "--fold", "0")
    assert (code, values) == (0, {"run": run.uri, "detached": True})
    assert "Detached; the run continues." in seen


def test_what_a_circle_is_at_is_told_line_by_line(
    circle_run: CircleRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = circle_run([0], num_rounds=1, until=Train(0, 0))
    passes = [
        {"pass": 0, "dice": 0.25, "f1": 0.25, "auc": 0.25},
        {"pass": 1, "dice": 0.5, "f1": None, "auc": 0.75},
    ]
    whole = {name: {"value": 0.5, "low": 0.25, "high": 0.75} for name in ("auc", "dice", "f1")}
    results: list[tuple[Action, dict[str, Any]]] = [
        (Train(0, 0), {"metrics": {"auc": 1.0, "f1": 0.5, "dice": 0.8125, "score": 0.9}}),
        (WriteMaps(0, 0), {"folder": "maps/0/fold-0", "shards": 1}),
        (Evaluate(0, 0), {"by_pass": passes}),
        (Summarise(0), {"by_pass": [{"pass": 0, "metrics": whole}]}),
    ]
    lines: list[dict[str, Any]] = [
        {"kind": "elsewhere"},
        {"kind": "waits", "text": "The coordinator waits for machines."},
        {"kind": "step", "action": Train(0, 0), "epoch": 0, "step": 1, "steps": 9},
        {"kind": "step", "action": Train(0, 0), "epoch": 0, "step": 7, "steps": 9},
        {"kind": "step", "action": Train(0, 0), "epoch": 1, "step": 3, "steps": 9},
        {"kind": "failed", "action": Train(0, 0), "cause": "Out of memory."},
        *({"kind": "committed", "action": of, "result": result} for of, result in results),
    ]
    output = CommandOutput(as_json=False)
    with output.progress() as bar:
        printer = circle.CircleEventPrinter(run, bar, output)
        for line in lines:
            printer(line)
    assert capsys.readouterr().out.splitlines() == [
        "A coordinator on another cluster owns this run; following it.",
        "The coordinator waits for machines.",
        f"training of round 0, fold 0, epoch 1/{run.config.train.num_epochs}",
        f"training of round 0, fold 0, epoch 2/{run.config.train.num_epochs}",
        "Failed: training of round 0, fold 0: Out of memory.",
        "Done: training of round 0, fold 0; validation images: dice 0.812, f1 0.500, auc 1.000",
        "Done: maps of round 0, fold 0",
        "Done: evaluation of round 0, fold 0; test images: dice 0.500, auc 0.750",
        "Done: summary of round 0; test images: dice 0.500, f1 0.500, auc 0.500",
    ]
