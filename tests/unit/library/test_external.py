"""Evaluation of all models together on a second data set, without images seen in training."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mtil import phantom
from mtil.cli import main
from mtil.config import Config
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import read_shard
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.metrics.mask_rule import NEVER, MaskRule
from mtil.prediction.predictor import Predictor
from mtil.prediction.scoring import EVALUATION_COLUMNS, score
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import LocalStore

NUM_NEW, NUM_SHARED = 15, 3


@pytest.fixture(scope="module")
def other_uri(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of new phantoms and of some phantoms from the run's data set."""
    folder = tmp_path_factory.mktemp("other")
    phantom.write_phantoms(folder / "busi", num_images=NUM_NEW, seed=77, image_size=64)
    for number in range(1, NUM_SHARED + 1):
        for suffix in ("", "_mask"):
            name = f"benign/benign ({number}){suffix}.png"
            shutil.copy(
                phantoms / name, folder / "busi" / name.replace(f"({number})", f"(9{number})")
            )
    prepare(
        [CollectionSource(uri=str(folder / "busi"), layout="busi")],
        str(folder / "set"),
        Settings(image_size=64, num_folds=2),
    )
    return str(folder / "set")


@pytest.fixture
def run(
    tmp_path: Path,
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    data_uri: str,
    manifest: Manifest,
) -> Run:
    """A run with models of two folds."""
    run = Run.create(str(tmp_path / "run"), make_config(), data_uri, manifest.fingerprint)
    for fold in (0, 1):
        model = make_model(fold, fold=fold, fingerprint=manifest.fingerprint)
        run.commit(Train(0, fold), model, num_epochs=1, seconds=1.0, metrics={"dice": 0.5})
    return run


def test_all_models_score_the_images_that_none_has_seen(
    run: Run, other_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", run.uri, "--on", other_uri, "--json"]) == 0
    captured = capsys.readouterr()
    assert "gets an outline" not in captured.err
    figures = json.loads(captured.out)
    other = manifests.load_manifest(LocalStore(other_uri))
    assert (figures["seen"], figures["num_images"]) == (NUM_SHARED, NUM_NEW)
    assert f"{NUM_SHARED} images are left out" in captured.err
    assert "by the models of folds 0, 1 together" in captured.err
    name = f"external-{other.fingerprint[:12]}"
    scores = pq.read_table(f"{run.uri}/rounds/0/{name}/predictions.parquet")
    drawn = pq.read_table(f"{run.uri}/rounds/0/{name}/predictions-pictures.parquet")
    assert scores["sample_id"].to_pylist() == drawn["sample_id"].to_pylist()
    assert not [name for name in scores["sample_id"].to_pylist() if "(9" in name]
    stored = json.loads(Path(f"{run.uri}/evaluation-{name}.json").read_text())
    assert stored == figures
    assert not Path(f"{run.uri}/evaluation.json").exists()

    rows = pa.concat_tables(
        [read_shard(LocalStore(other_uri), shard, EVALUATION_COLUMNS) for shard in other.shards]
    )
    models = [Predictor(run.model(Train(0, fold)), torch.device("cpu")) for fold in (0, 1)]
    expected = {row["sample_id"]: row for row in score(rows, *models).to_pylist()}
    for row in scores.to_pylist():
        assert row["probability"] == pytest.approx(expected[row["sample_id"]]["probability"])
        assert row["tp"] == expected[row["sample_id"]]["tp"]
    dice = [row["dice"] for row in scores.to_pylist()]
    assert figures["metrics"]["dice"]["value"] == pytest.approx(np.nanmean(dice))


def test_a_data_set_without_normal_images_gets_an_outline_in_each(
    run: Run,
    make_model: Callable[..., TrainedModel],
    manifest: Manifest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Presence probabilities transfer badly to new scanners; here all images show a lesion."""
    folder = tmp_path / "tumours"
    phantom.write_phantoms(folder, num_images=NUM_NEW, seed=78, image_size=64)
    shutil.rmtree(folder / "normal")
    prepare(
        [CollectionSource(uri=str(folder), layout="busi")],
        str(tmp_path / "set"),
        Settings(image_size=64, num_folds=2),
    )
    gated = replace(
        make_model(0, fold=0, fingerprint=manifest.fingerprint),
        mask_rule=MaskRule(empty_below=NEVER),
    )
    other = Run.create(str(tmp_path / "gated"), gated.config, run.data_uri, manifest.fingerprint)
    other.commit(Train(0, 0), gated, num_epochs=1, seconds=1.0, metrics={"dice": 0.5})
    assert main(["evaluate", "--run", other.uri, "--on", str(tmp_path / "set"), "--json"]) == 0
    captured = capsys.readouterr()
    assert "no normal image, so every image gets an outline" in captured.err
    figures = json.loads(captured.out)
    assert figures["normals"] is False
    (scores,) = Path(other.uri).glob("rounds/0/external-*/predictions.parquet")
    rows = pq.read_table(scores).to_pylist()
    assert rows
    assert all(row["tp"] + row["fp"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--fold", "0"), "`--fold` chooses"),
        (("--split", "validation"), "`--split` chooses"),
        (("--with", "elsewhere"), "`--with` chooses"),
    ],
)
def test_a_choice_of_images_does_not_go_with_it(
    run: Run, other_uri: str, words: tuple[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", run.uri, "--on", other_uri, *words]) == 2
    assert says in capsys.readouterr().err


def test_the_own_data_set_is_not_another(
    run: Run, data_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--run", run.uri, "--on", data_uri]) == 2
    assert "must name another data set" in capsys.readouterr().err


def test_a_data_set_of_nothing_new_is_refused(
    run: Run, phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(
        [CollectionSource(uri=str(phantoms), layout="busi")],
        str(tmp_path / "same"),
        Settings(image_size=64, num_folds=2),
    )
    assert main(["evaluate", "--run", run.uri, "--on", str(tmp_path / "same")]) == 2
    assert "have not seen, but has none" in capsys.readouterr().err
