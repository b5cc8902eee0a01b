"""A model learns from the outputs of several models, by the command and by the functions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import mtil
from mtil.circle.request import request_circle
from mtil.cli import main
from mtil.config import Config
from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select_rows
from mtil.data.dataset.shards import pixels, read_shard
from mtil.errors import ConfigError, DataError
from mtil.library.distillation import request_distillation
from mtil.prediction.predictor import Predictor
from mtil.run.folder import Run
from mtil.run.maps import NUM_LEVELS
from mtil.run.plan import Train
from mtil.run.teacher import read_teacher_outputs
from mtil.storage import LocalStore

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(train={"num_epochs": 2, "cpus_per_worker": 1.0})


@pytest.fixture(scope="module")
def teachers(
    config: Config, data_uri: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str]:
    """Two read-only runs of fold 0 with different seeds."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed in (0, 1):
        mtil.train_fold(replace(config, seed=seed), data_uri, str(folder / f"{seed}"))
    return str(folder / "0"), str(folder / "1")


def test_the_command_trains_a_model_on_the_averaged_outputs(
    teachers: tuple[str, str],
    data_uri: str,
    manifest: Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "student"
    command = ["distil", teachers[0], "--with", teachers[1], "--to", str(target)]
    assert main([*command, "--train.num-epochs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["fold"] == 0
    run = Run.open(str(target))
    assert run.config.loss.teacher == 0.5
    assert run.result(Train(0, 0)) is not None
    # Repeating the command resumes the run; different teachers are refused.
    assert main([*command, "--train.num-epochs", "1"]) == 0
    other = ["distil", teachers[0], "--to", str(target), "--train.num-epochs", "1"]
    assert main(other) == 2
    assert "must keep its teachers, but fold 0" in capsys.readouterr().err
    outputs = read_teacher_outputs(run, 0)
    models = [Run.open(uri).model(Train(0, 0)) for uri in teachers]
    assert outputs.model_sha256 == ";".join(model.digest for model in models)

    selection = select_rows(manifest, 0, "train")
    tables = [read_shard(LocalStore(data_uri), shard) for shard in manifest.shards]
    rows = pa.concat_tables(
        [table.take(pa.array(selection.rows(table))) for table in tables]
    ).slice(0, 8)
    assert set(rows["sample_id"].to_pylist()) <= set(outputs.sample_id)
    images = to_squares(pixels(rows["image"]))
    alone = [Predictor(model, torch.device("cpu"))(images) for model in models]
    lesion, malignant = outputs.select(rows["sample_id"].to_pylist())
    mean = (alone[0].lesion + alone[1].lesion) / 2
    # Half a level of the stored maps, half a byte, and the rounding of a different batch size.
    tolerance = 0.5 / (NUM_LEVELS - 1) + 0.5 / 255 + 1e-4
    np.testing.assert_allclose(lesion / 255, mean, rtol=0, atol=tolerance)
    np.testing.assert_allclose(malignant, (alone[0].malignant + alone[1].malignant) / 2, atol=1e-5)


def test_without_its_teacher_a_run_does_not_train(
    teachers: tuple[str, str], config: Config, data_uri: str, tmp_path: Path
) -> None:
    student = replace(config, loss=replace(config.loss, teacher=0.5))
    with pytest.raises(DataError, match=r"teacher/fold-0\.parquet is missing"):
        mtil.train_fold(student, data_uri, str(tmp_path / "run"))


def test_the_teacher_changes_the_model(
    teachers: tuple[str, str], config: Config, data_uri: str, tmp_path: Path
) -> None:
    digests = []
    for share in ("0.25", "0.75"):
        target = str(tmp_path / share)
        command = ["distil", teachers[0], "--to", target, "--loss.teacher", share]
        assert main([*command, "--train.num-epochs", "1"]) == 0
        result = Run.open(target).result(Train(0, 0))
        assert result is not None
        digests.append(result.model_sha256)
    assert len(set(digests)) == 2


def test_a_circle_has_no_teacher(config: Config, data_uri: str, tmp_path: Path) -> None:
    taught = replace(config, loss=replace(config.loss, teacher=0.5))
    with pytest.raises(ConfigError, match=r"cannot learn from a teacher, but .* is 0\.5; set it"):
        request_circle(data_uri, str(tmp_path / "run"), taught, [0])


def test_wrong_requests_are_refused(
    teachers: tuple[str, str], config: Config, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must not be its own teacher"):
        request_distillation(teachers, teachers[0], config, [0])
    with pytest.raises(DataError, match=r"Fold 1 of .* must be trained first"):
        request_distillation(teachers, str(tmp_path / "run"), config, [1])
    assert not (tmp_path / "run").exists()
