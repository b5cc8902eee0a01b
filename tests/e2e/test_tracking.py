"""Tracking of circles, searches and trainings: a real MLflow server, which may die, and files."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from cluster import object_store
from tests.trackers import list_mlflow_runs, read_mlflow, read_tensorboard, read_wandb
from tests.waiting import STOP_AT, until, until_stopped

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = (
    "--config", "demo", "--data.image-size", "64", "--model.encoder.name", "resnet10_tiny",
    "--model.encoder.pretrained", "false", "--train.cpus-per-worker", "0.75",
)  # fmt: skip
NUM_EPOCHS = 4


@contextmanager
def serve(store: str, folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an MLflow server on a store."""
    server = subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store,
            "--artifacts-destination", str(folder / "artefacts"), "--port", str(port),
            "--host", object_store.HOST, "--workers", "1",
        ],
        env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true"},
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: _answers(f"http://{object_store.HOST}:{port}/health"), server)
        yield server
    finally:
        _kill(server)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _kill(server: "subprocess.Popen[bytes]") -> None:
    """SIGKILL a server and the server's workers."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mlflow")
    port = object_store.find_free_ports(None, object_store.HOST)[-1]
    with serve(f"sqlite:///{folder}/mlflow.db", folder, port):
        yield f"http://{object_store.HOST}:{port}"


def test_a_circle_in_all_three(
    mtil: Command, data: Path, tmp_path: Path, database_server: str
) -> None:
    circle = [
        "circle", "--data", data, "--run", tmp_path / "circle", "--folds", "0,1", *SMALL,
        "--train.num-epochs", "2", "--circle.num-rounds", "2",
        "--track", f"mlflow={database_server}", "--track", f"tensorboard={tmp_path}/events",
        "--track", f"wandb={tmp_path}",
    ]  # fmt: skip
    for _ in range(2):  # the second command has nothing left to train
        done = mtil(*circle, WANDB_DATA_DIR=str(tmp_path / "staged"))
        assert done.returncode == 0, done.stderr
        assert "Tracking" not in done.stderr

    names = {
        f"round {number}{below}" for number in (0, 1) for below in ("", ", fold 0", ", fold 1")
    }
    runs = {name: run for name, run in list_mlflow_runs(database_server).items() if name in names}
    assert runs.keys() == names
    assert all(run.info.status == "FINISHED" for run in runs.values())
    rounds = {number: runs[f"round {number}"] for number in (0, 1)}
    top = rounds[0].data.tags["mlflow.parentRunId"]
    assert rounds[1].data.tags["mlflow.parentRunId"] == top
    client = MlflowClient(tracking_uri=database_server)
    assert client.get_run(top).data.params["circle.num_rounds"] == "2"
    assert {file.path for file in client.list_artifacts(top)} == {"run.json", "report.html"}
    for number, one in rounds.items():
        evaluation = json.loads((tmp_path / f"circle/rounds/{number}/evaluation.json").read_text())
        dice = evaluation["by_pass"][-1]["metrics"]["dice"]["value"]
        assert one.data.metrics["test/dice"] == pytest.approx(dice)
        for fold in (0, 1):
            below = runs[f"round {number}, fold {fold}"]
            assert below.data.tags["mlflow.parentRunId"] == one.info.run_id
            assert [file.path for file in client.list_artifacts(below.info.run_id)] == ["model.pt"]

    histories = {
        f"round {number}, fold {fold}": [
            json.loads(line)["validation_dice"]
            for line in (tmp_path / f"circle/rounds/{number}/fold-{fold}/history.jsonl")
            .read_text()
            .splitlines()
        ]
        for number in (0, 1)
        for fold in (0, 1)
    }
    in_mlflow, in_wandb = read_mlflow(database_server), read_wandb(str(tmp_path))
    for name, dice in histories.items():
        expected = list(enumerate(dice))
        assert in_mlflow[name]["validation/dice"] == expected
        assert in_wandb[name]["validation/dice"] == expected
        events = read_tensorboard(
            str(next(tmp_path.glob(f"events/*/{name.split(',')[0].replace(' ', '-')}")))
        )
        assert events[name.split(", ")[1].replace(" ", "-")]["validation/dice"] == [
            (step, pytest.approx(value)) for step, value in expected
        ]


def test_a_search(
    environment: dict[str, str], data: Path, tmp_path: Path, database_server: str
) -> None:
    done = subprocess.run(
        [
            sys.executable, "-m", "tune", "run", "--data", str(data), "--run", str(tmp_path / "s"),
            *SMALL, "--num-trials", "2", "--trial-epochs", "2", "--max-concurrent", "1",
            "--track", f"mlflow={database_server}", "--json",
        ],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    client = MlflowClient(tracking_uri=database_server)
    (experiment,) = [one for one in client.search_experiments() if one.name == "mtil"]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trials = sorted(
        (run for run in runs if run.info.run_name.startswith("trial")),
        key=lambda run: run.info.run_name,
    )
    assert [run.info.run_name for run in trials] == ["trial 0000", "trial 0001"]
    top = client.get_run(trials[0].data.tags["mlflow.parentRunId"])
    assert {file.path for file in client.list_artifacts(top.info.run_id)} == {"report.html"}
    best = trials[result["best"]["trial"]]
    # MLflow allows no `*` and no `+` in a name.
    objective = best.data.metrics["objective/0.5_dice_0.5_auc"]
    assert objective == pytest.approx(result["best"]["value"])
    for key, value in result["best"]["overrides"].items():
        assert best.data.params[key] == str(value) or float(best.data.params[key]) == value
    (fold,) = [
        run
        for run in runs
        if run.info.run_name == "round 0, fold 0"
        and client.get_run(run.data.tags["mlflow.parentRunId"]).data.tags.get("mlflow.parentRunId")
        == best.info.run_id
    ]
    history = client.get_metric_history(fold.info.run_id, "validation/dice")
    assert [one.step for one in history] == [0, 1]


def test_a_training_outlives_its_tracker(mtil: Command, data: Path, tmp_path: Path) -> None:
    port = object_store.find_free_ports(None, object_store.HOST)[-1]
    url, store = f"http://{object_store.HOST}:{port}", str(tmp_path / "mlruns")
    train = ["train", "--local", "--data", str(data), "--fold", "0", *SMALL,
             "--train.num-epochs", str(NUM_EPOCHS)]  # fmt: skip
    run = str(tmp_path / "tracked")
    with serve(store, tmp_path, port) as server:
        # The training stops itself before writing the third epoch.
        training = subprocess.Popen(
            [
                sys.executable, "-c",
                f"{STOP_AT}\nfrom mtil.cli import main\nsys.exit(main(sys.argv[4:]))",
                "", run, "history/3", *train, "--run", run, "--track", f"mlflow={url}",
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        until_stopped(training)
        until(lambda: _count_epochs(url) == 2)
        _kill(server)
        training.send_signal(signal.SIGCONT)
        _, stderr = training.communicate()
    assert training.returncode == 0, stderr
    assert stderr.count("Tracking in mlflow") == 1

    untracked = str(tmp_path / "untracked")
    assert mtil(*train, "--run", untracked).returncode == 0
    results = [
        json.loads(Path(uri, "rounds/0/fold-0/result.json").read_text()) for uri in (run, untracked)
    ]
    assert results[0]["model_sha256"] == results[1]["model_sha256"]

    with serve(store, tmp_path, port):
        done = mtil("track", run, "--to", f"mlflow={url}")
        assert done.returncode == 0, done.stderr
        curves = read_mlflow(url)["round 0, fold 0"]
        assert [step for step, _ in curves["validation/dice"]] == list(range(NUM_EPOCHS))


def _count_epochs(url: str) -> int:
    runs = MlflowClient(tracking_uri=url)
    if runs.get_experiment_by_name("mtil") is None:
        return 0
    return len(read_mlflow(url).get("round 0, fold 0", {}).get("validation/dice", []))
