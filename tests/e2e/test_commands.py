"""The main workflow, step by step, with the commands of a user."""

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from cluster import object_store
from mtil.run.folder import Run
from mtil.run.plan import Train
from tests.e2e.gate import Gate, Moment
from tests.e2e.places import BUCKET, kill
from tests.e2e.signals import SENTENCE, Shot
from tests.waiting import until

Command = Callable[..., "subprocess.CompletedProcess[str]"]

SMALL = (
    "--config", "demo", "--data.image-size", "64", "--model.encoder.name", "resnet10_tiny",
    "--model.encoder.pretrained", "false", "--train.num-epochs", "3",
    "--train.cpus-per-worker", "0.75",  # a single thread: faster for a small network
)  # fmt: skip

METRICS = {
    "dice", "dice_pooled", "iou", "hd95", "assd", "miss_rate", "false_positive_area", "f1",
    "macro_f1", "auc", "average_precision", "accuracy", "sensitivity", "specificity",
    "sensitivity_at_90_specificity", "ece", "brier", "presence_auc",
    "three_class_accuracy", "three_class_macro_f1",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(mtil: Command, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    done = mtil("train", "--data", data, "--run", folder, "--fold", "0", *SMALL, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["run"] == str(folder)
    assert result["fold"] == 0
    assert result["seconds"] > 0
    assert {"dice", "auc"} <= result["metrics"].keys()
    assert "epoch 3/3" in done.stderr
    return folder


def test_evaluate_prints_one_object(mtil: Command, run: Path, data: Path) -> None:
    done = mtil("evaluate", "--run", run, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["folds"] == [0]
    assert set(result["metrics"]) == METRICS
    assert set(result["metrics"]["dice"]) == {"value", "low", "high"}
    assert result["by_class"].keys() == {"benign", "malignant", "normal"}
    assert len(result["by_pass"]) == 1
    counts = json.loads((data / "dataset.json").read_text())["folds"]["0"]
    assert result["num_images"] == sum(counts.values())


def test_predict_writes_masks_overlays_and_a_table(
    mtil: Command, run: Path, images: Path, tmp_path: Path
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    with Image.open(images / "benign" / "benign (1).png") as image:
        gray = image.convert("L")
    gray.resize((150, 90)).save(inputs / "small.png")
    gray.resize((640, 480)).save(inputs / "large.jpg")
    (inputs / "broken.png").write_bytes((inputs / "small.png").read_bytes()[:200])
    done = mtil("predict", run, inputs, tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["num_images"], result["num_unreadable"]) == (2, 1)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"small.png", "large.jpg", "broken.png"}
    assert rows["broken.png"]["error"]
    for name, size in (("small.png", (150, 90)), ("large.jpg", (640, 480))):
        row = rows[name]
        assert 0 <= float(row["malignant_probability"]) <= 1
        with (
            Image.open(tmp_path / "out" / row["mask"]) as mask,
            Image.open(tmp_path / "out" / row["overlay"]) as overlay,
        ):
            assert mask.size == overlay.size == size
            assert int(np.count_nonzero(np.array(mask))) == int(row["lesion_area_px"])


def test_a_driver_that_was_killed_goes_on(
    mtil: Command,
    environment: dict[str, str],
    run: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL the command and all children in epoch 2. A second start ends with equal weights."""
    killed = f"s3://{BUCKET}/killed"
    arguments = ["train", "--data", str(data), "--run", killed, "--fold", "0", *SMALL]
    with object_store.run_object_store(tmp_path / "s3", BUCKET) as keys:
        gate = Gate(keys["AWS_ENDPOINT_URL"], BUCKET)
        with gate as url:
            for name, value in (keys | {"AWS_ENDPOINT_URL": url}).items():
                monkeypatch.setenv(name, value)
            keys |= {"AWS_ENDPOINT_URL": url}
            gate.shut("killed", Moment(r"rounds/0/fold-0/checkpoints/latest\.json", 2))
            first = subprocess.Popen(
                [sys.executable, "-m", "mtil", *arguments],
                env=environment | keys,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            until(lambda: gate.held, first)
            family = [psutil.Process(first.pid)]
            kill([*family, *family[0].children(recursive=True)])
            first.wait()
            gate.open(deliver=False)
            assert Run.open(killed).result(Train(0, 0)) is None
            again = mtil(*arguments, **keys)
            assert again.returncode == 0, again.stderr
            assert "epoch 1/3" not in again.stdout
            assert "epoch 2/3" in again.stdout
            ours, theirs = (Run.open(str(uri)).model(Train(0, 0)).weights for uri in (killed, run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_training_that_is_told_to_end_leaves_nothing_and_goes_on(
    mtil: Command, run: Path, data: Path, tmp_path: Path
) -> None:
    """SIGTERM to the command while Ray starts, and to the process group during the training."""
    folder = tmp_path / "told"
    arguments = ["mtil", "train", "--data", str(data), "--run", str(folder), "--fold", "0", *SMALL]
    pointer = folder / "rounds" / "0" / "fold-0" / "checkpoints" / "latest.json"

    def end(moment: Callable[[Shot], object], *, to_group: bool) -> None:
        shot = Shot(arguments, tmp_path / "log")
        try:
            until(lambda: moment(shot), shot.process)
            shot.send(signal.SIGTERM, to_group=to_group)
            assert shot.wait() == 130
            assert shot.log.read_text() == f"mtil: {SENTENCE}"
            assert shot.left() == []
        finally:
            shot.clean()

    end(lambda shot: list(shot.scratch.glob("mtil-*/r/session_*")), to_group=False)
    assert not folder.exists()
    end(lambda shot: pointer.exists(), to_group=True)
    again = mtil("train", "--data", data, "--run", folder, "--fold", "0", *SMALL)
    assert again.returncode == 0, again.stderr
    ours, theirs = (Run.open(str(root)).model(Train(0, 0)).digest for root in (folder, run))
    assert ours == theirs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("train", "--data", "{data}", "--run", "{tmp}/r", "--train.lr", "1"), "train.lr"),
        (("train", "--data", "{tmp}/none", "--run", "{tmp}/r"), "dataset.json"),
        (("train", "--data", "{data}", "--run", "{tmp}/r", "--fold", "7"), "fold"),
        (("train", "--data", "{data}", "--run", "{tmp}/r", "--config", "no.yaml"), "no.yaml"),
        (("evaluate", "--run", "{tmp}/r"), "run.json"),
        (("predict", "{tmp}/r", "{images}", "{tmp}/out"), "{tmp}/r"),
        (("prepare", "{tmp}", "--layout", "busi", "--to", "{tmp}/d"), "empty or missing"),
        (("prepare", "{images}", "--layout", "busi", "--to", "{data}"), "image_size is 64"),
        (("train", "--run", "{tmp}/r"), "--data"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    mtil: Command,
    data: Path,
    images: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    places = {"data": str(data), "images": str(images), "tmp": str(tmp_path)}
    done = mtil(*(argument.format(**places) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert says.format(**places) in done.stderr
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("mtil")]
    assert len(sentences) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_cluster_that_does_not_answer_is_one_sentence(
    mtil: Command, data: Path, tmp_path: Path
) -> None:
    arguments = ("train", "--data", data, "--run", tmp_path / "r", "--fold", "0")
    done = mtil(*arguments, RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert "RAY_ADDRESS=127.0.0.1:1 does not answer (Connection refused)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


def test_doctor_knows_the_storage_and_leaves_nothing_behind(mtil: Command, tmp_path: Path) -> None:
    """TMPDIR is too long for sockets. TMPDIR and HOME have non-ASCII letters."""
    home, to, temporary = tmp_path / "hömé", tmp_path / "to", tmp_path / ("x y ü" * 20)
    home.mkdir()
    temporary.mkdir()
    variables = {"HOME": str(home), "TMPDIR": str(temporary), "RAY_AUTH_MODE": "token"}
    done = mtil("doctor", "--to", to, "--json", **variables)
    assert done.returncode == 0, done.stderr + done.stdout
    result = json.loads(done.stdout)
    assert result["ok"]
    details = {check["name"]: check["detail"] for check in result["checks"]}
    assert "Ray's sockets go to /" in details["temporary files"]
    assert not [path for path in to.rglob("*") if path.is_file()]
    assert list(temporary.iterdir()) == []
    assert not (home / ".ray").exists()  # no token for other users to read
