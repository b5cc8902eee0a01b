"""Commands without Ray: results, output and errors."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

import mtil
from mtil.cli import console, main
from mtil.config import Config, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Manifest
from mtil.run.checkpoint import TrainedModel, model_to_bytes
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import LocalStore
from tests.unit.commands import Fails, outcome
from tests.waiting import PATIENCE_S, until

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("signals")]


def test_phantoms_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "images"
    result = outcome(capsys, "phantom", out, "--num-images", 3, "--seed", 5)
    assert result == {"out": str(out), "num_images": 3, "num_duplicates": 0, "seed": 5}
    images = [path for path in out.rglob("*.png") if "_mask" not in path.name]
    assert len(images) == 3
    assert main(["phantom", str(out)]) == 2
    assert "must be an empty or new folder" in capsys.readouterr().err


def test_data_are_prepared(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "data"
    command = ["prepare", phantoms, "--layout", "busi", "--to", to, "--image-size", "32"]
    result = outcome(capsys, *command, "--num-folds", 4)
    made = manifests.load_manifest(LocalStore(str(to)))
    assert result == {
        "uri": str(to),
        "version": 1,
        "fingerprint": made.fingerprint,
        "protocol": "grouped",
        "read": 60,
        "kept": {"benign": 30, "malignant": 18, "normal": 12},
        "groups": 60,
        "dropped": [],
        "invalid": [],
        "folds": result["folds"],
        "holdout": {"benign": 0, "malignant": 0, "normal": 0},
        "image_level_leakage": 0.0,
        "notes": {"soft_mask": 0, "numbered_mask": 0, "stray_regions": 0},
        "odd_masks": [],
        "account": result["account"],
    }
    account = result["account"]["images"]
    assert (account["read"], account["kept"], account["dropped"]) == (60, 60, [])
    assert result["folds"].keys() == {"0", "1", "2", "3"}
    for name, number in result["kept"].items():
        assert sum(fold[name] for fold in result["folds"].values()) == number
    assert main([*map(str, command), "--num-folds", "3"]) == 2
    assert "num_folds is 4, not the requested 3" in capsys.readouterr().err


def test_dropped_images_are_told_with_the_reason(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stems = sorted(p.stem for p in phantoms.rglob("*.png") if "_mask" not in p.stem)
    group = {stem: "x" if stem in ("benign (1)", "malignant (1)") else stem for stem in stems}
    with (tmp_path / "groups.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_id", "group"), *group.items()])
    result = outcome(
        capsys, "prepare", phantoms, "--layout", "busi", "--to", tmp_path / "data",
        "--image-size", "32", "--groups", tmp_path / "groups.csv",
    )  # fmt: skip
    assert [entry["sample_id"] for entry in result["dropped"]] == ["benign (1)", "malignant (1)"]
    assert all("benign and malignant" in entry["why"] for entry in result["dropped"])
    assert (result["read"], sum(result["kept"].values()), result["groups"]) == (60, 58, 58)


def test_without_json_a_person_is_told(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "data"
    command = ["prepare", str(phantoms), "--layout", "busi", "--to", str(to), "--image-size", "32"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "60 images read, 0 dropped; kept 30 benign, 18 malignant, 12 normal" in captured.out
    assert "Folds of single images would leak: 0.0%" in captured.out
    assert str(to) in captured.out
    assert "{" not in captured.out
    assert captured.err == ""


def test_two_sources_make_one_data_set(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "images"
    assert main(["phantom", str(other), "--num-images", "40", "--seed", "8",
                 "--image-size", "64", "--num-workers", "1"]) == 0  # fmt: skip
    lines = ["path,masks,diagnosis,device"]
    for image in sorted(p for p in other.rglob("*.png") if "_mask" not in p.name):
        masks = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
        kind = {"benign": "0", "malignant": "1", "normal": "-"}[image.parent.name]
        joined = "" if kind == "-" else "|".join(str(p.relative_to(tmp_path)) for p in masks)
        lines.append(f"{image.relative_to(tmp_path)},{joined},{kind},probe {kind}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    capsys.readouterr()
    result = outcome(
        capsys, "prepare", phantoms, "--layout", "busi", "--and", tmp_path / "table.csv",
        "--layout", "table", "--columns", "image=path,label=diagnosis",
        "--classes", "0=benign,1=malignant,-=normal", "--to", tmp_path / "data",
        "--image-size", "32",
    )  # fmt: skip
    assert result["read"] == 100
    made = manifests.load_manifest(LocalStore(str(tmp_path / "data")))
    assert [(source.prefix, source.read) for source in made.sources] == [
        ("busi", 60),
        ("table", 40),
    ]
    rows = pa.concat_tables(
        [shards.read_shard(LocalStore(str(tmp_path / "data")), shard) for shard in made.shards]
    ).to_pylist()
    assert {row["sample_id"].split("/")[0] for row in rows} == {"busi", "table"}
    assert all(row["sample_id"].startswith(f"{row['source']}/") for row in rows)
    assert {dict(row["meta"]).get("device") for row in rows if row["source"] == "table"} == {
        "probe 0", "probe 1", "probe -",
    }  # fmt: skip
    inspected = outcome(capsys, "inspect", tmp_path / "data")
    assert (inspected["read"], inspected["kept"]) == (100, result["kept"])
    assert main(["inspect", str(tmp_path / "data")]) == 0
    assert "100 images read, 0 skipped" in capsys.readouterr().out


def test_images_that_are_skipped_are_listed_with_the_reason(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(phantoms, tmp_path / "mine"))
    for number in range(1, 26):
        (mine / "benign" / f"benign ({number}).png").write_bytes(b"no image")
    command = ["prepare", mine, "--layout", "busi", "--to", tmp_path / "d", "--image-size", 32,
               "--num-folds", 2]  # fmt: skip
    assert main([str(word) for word in command]) == 2
    stderr = capsys.readouterr().err
    assert "25 of 60 images cannot be used; correct them or add --skip-invalid:" in stderr
    assert stderr.count("\n- benign/benign (") == 25
    assert not (tmp_path / "d").exists()
    command.append("--skip-invalid")
    assert main([*map(str, command)]) == 2
    stderr = capsys.readouterr().err
    assert "BUSI would lose 25 of 60: 25 that cannot be used, such as 'benign (1)'" in stderr
    assert stderr.rstrip().endswith("--allow-drops 0.42.")
    assert not (tmp_path / "d").exists()
    assert main([*map(str, command), "--allow-drops", "0.42"]) == 0
    stdout = capsys.readouterr().out
    assert stdout.count("skipped benign (") == 25
    assert "skipped benign (7): benign/benign (7).png cannot be read" in stdout


def test_every_source_needs_its_layout(phantoms: Path, tmp_path: Path, capsys: Any) -> None:
    command = [
        "prepare",
        phantoms,
        "--layout",
        "busi",
        "--and",
        phantoms,
        "--to",
        tmp_path / "data",
    ]
    assert main([str(word) for word in command]) == 2
    assert "Every source needs a layout" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["image", "image=", "=path", "image=path,label"])
def test_renamed_columns_are_pairs(
    text: str, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", phantoms, "--layout", "table", "--columns", text, "--to", tmp_path / "d"]
    assert main([str(word) for word in command]) == 2
    assert "`--columns` must be like name=value" in capsys.readouterr().err


def test_the_paper_protocol_warns(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prepare", phantoms, "--layout", "busi", "--to", tmp_path / "d", "--image-size", 32]
    assert main([*map(str, command), "--protocol", "paper"]) == 0
    assert "Warning: folds of single images leak: 0.0%" in capsys.readouterr().out


FIGURES: dict[str, Any] = {"num_epochs": 1, "seconds": 1.0, "metrics": {"dice": 0.5}}


@pytest.fixture
def run(
    tmp_path: Path,
    data_uri: str,
    manifest: Manifest,
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
) -> Run:
    """A run with a trained fold 1."""
    run = Run.create(str(tmp_path / "run"), make_config(), data_uri, manifest.fingerprint)
    model = make_model(fold=1, fingerprint=manifest.fingerprint)
    run.commit(Train(0, 1), model, **FIGURES)
    return run


def test_images_are_predicted(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(np.full((40, 50), 90, np.uint8)).save(tmp_path / "in" / "a.png")
    result = outcome(capsys, "predict", run.uri, tmp_path / "in", tmp_path / "out")
    assert (result["num_images"], result["num_unreadable"], result["folds"]) == (1, 0, [1])
    assert Path(result["predictions"]).is_file()


def test_images_without_a_probable_lesion_are_counted(
    run: Run,
    tmp_path: Path,
    make_model: Callable[..., TrainedModel],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make_model(fingerprint=run.fingerprint)
    model.weights["head.output.bias"][1] = -50.0  # surely without a lesion
    (tmp_path / "model.pt").write_bytes(model_to_bytes(model))
    Image.fromarray(np.full((40, 50), 90, np.uint8)).save(tmp_path / "a.png")
    command = ["predict", str(tmp_path / "model.pt"), str(tmp_path / "a.png"), str(tmp_path / "o")]
    assert main(command) == 0
    assert "1 image of class normal. If all" in capsys.readouterr().out
    assert main([*command, "--no-normals"]) == 0
    assert "of class normal" not in capsys.readouterr().out


def test_a_model_that_is_not_the_runs_is_refused(
    run: Run, tmp_path: Path, fails: Fails, make_model: Callable[..., TrainedModel]
) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (name,) = (name for name in run.store.names("rounds") if name.endswith(".pt"))
    run.store.write(name, b"other")
    sentence = fails("predict", run.uri, tmp_path / "a.png", tmp_path / "out")
    assert "is not the file that result.json beside it names" in sentence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "3"], "Only `train.num_workers` and `train.gpus_per_worker` may change now"),
        (["--train.batch_size", "3"], "but got `train.batch_size`"),
        (["--num-workers", "0"], "`--num-workers` must be at least 1, but got 0"),
        (["--train.num-workers", "0"], "`train.num_workers` must be at least 1, but got '0'"),
        (["--train.num-workers", "many"], "`train.num_workers` must be at least 1, but got 'many'"),
        (["--train.gpus-per-worker", "-1"], "`train.gpus_per_worker` is wrong"),
        (["--fold", "7"], "one of 0 to 2 in this data set, but got 7"),
        (["--config", "demo"], "`--config demo` differs from the run"),
        (["--data", "nowhere"], "must have a dataset.json"),
    ],
)
def test_evaluation_refuses_what_would_change_the_run(
    run: Run, words: list[str], expected: str, fails: Fails, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert expected in fails("evaluate", "--run", run.uri, *words)


def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `import ray` fail, even after imports by earlier tests."""
    for name in list(sys.modules):
        if f"{name}.".startswith(("mtil.distributed.", "ray.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(mtil, "distributed", None, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.parametrize("words", [[], ["--train.num-workers", "11"], ["--num-workers", "11"]])
def test_evaluation_takes_any_number_of_workers(
    run: Run, words: list[str], fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command gets as far as Ray, for any batch size of the training."""
    _without_ray(monkeypatch)
    assert "needs `ray`" in fails("evaluate", "--run", run.uri, *words)


@pytest.mark.parametrize("words", [["--fold", "all"], ["--train.num-workers", "2"]])
def test_evaluation_of_all_is_of_what_is_trained_by_its_own_configuration(
    run: Run, words: list[str], tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    _without_ray(monkeypatch)
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(config_to_dict(run.config)))
    assert "needs `ray`" in fails("evaluate", "--run", run.uri, "--config", file, *words)


def test_evaluation_needs_a_trained_fold_and_its_own_data(
    run: Run, fails: Fails, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    outcome(capsys, "prepare", phantoms, "--layout", "busi", "--to", other, "--image-size", "64")
    assert "must stay with its data set" in fails("evaluate", "--run", run.uri, "--data", other)
    run.store.delete("rounds/0/fold-1/result.json")
    assert f"run `mtil train --run {run.uri}`" in fails("evaluate", "--run", run.uri)
    assert "must have a run.json" in fails("evaluate", "--run", tmp_path / "nowhere")


def _restore_sigint() -> None:
    """Restore SIGINT: background commands of a shell and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing_half_done(
    tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "mtil", "phantom", str(tmp_path / "out"), "--num-images=99999"]
    with subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_restore_sigint,
    ) as process:
        try:
            until(lambda: any(tmp_path.rglob("*.png")), process)
            os.kill(process.pid, number)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 130
    assert stderr == "mtil: Interrupted; run the same command again to resume.\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_traceback() -> None:
    command = [sys.executable, "-m", "mtil", "train", "--keys"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
    assert (process.returncode, stderr) == (1, "")


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with console.CommandOutput(as_json=False).progress() as bar:
        bar.show("scoring", 1, 3)  # too soon
        monkeypatch.setattr(console, "PROGRESS_LINE_S", 0.0)
        start_s = time.monotonic()
        seconds = iter([start_s, start_s + 4, start_s + 8, start_s + 20, start_s + 40])
        monkeypatch.setattr(console.time, "monotonic", lambda: next(seconds))
        bar.show("reading", 50, 700)  # resumed: the first fifty say nothing about the speed
        bar.show("reading", 100, 700, "images")
        bar.show("reading", 100, 700, "images")
        bar.show("epoch 1", 1, 9, "steps")
        bar.show("epoch 1", 6, 9, "steps")
    assert capsys.readouterr().out == (
        "reading 50/700\nreading 100/700, 12.5 images/s, 48 s left\n"
        "epoch 1 1/9\nepoch 1 6/9, 0.25 steps/s, 12 s left\n"
    )
