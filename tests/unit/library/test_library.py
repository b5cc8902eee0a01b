"""The public functions train, score and use a fold in the calling process, without Ray."""

import csv
import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mtil
from mtil.cli import main
from mtil.config import Config
from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.data.dataset.manifest import Manifest
from mtil.errors import ConfigError, DataError, OutOfMemoryError, ResourceError
from mtil.library import dataset, evaluation, predictor, training
from mtil.library.fold import FoldTraining
from mtil.library.samples import Epochs, StoredSamples
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.training.engine import TrainingEngine
from mtil.training.group import Group

pytestmark = pytest.mark.slow

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def config(make_config: MakeConfig) -> Config:
    # A single thread, as in the tests below with `FoldTraining`.
    return make_config(train={"num_epochs": 3, "cpus_per_worker": 1.0})


@pytest.fixture(scope="module")
def run_uri(config: Config, data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A read-only run with fold 0 trained by the library."""
    uri = str(tmp_path_factory.mktemp("library") / "run")
    mtil.train_fold(config, data_uri, uri)
    return uri


@pytest.fixture(scope="module")
def image(phantoms: Path) -> np.ndarray:
    return np.asarray(Image.open(phantoms / "malignant" / "malignant (1).png").convert("L"))


def _sha256(uri: str) -> str:
    result = Run.open(uri).result(Train(0, 0))
    assert result is not None
    return result.model_sha256


@pytest.mark.parametrize("module", [mtil, dataset, evaluation, predictor, training])
def test_examples_of_the_docstrings_run(
    module: Any, config: Config, data_uri: str, run_uri: str, image: np.ndarray
) -> None:
    names = {"config": config, "data": data_uri, "run": run_uri, "image": image}
    results = doctest.testmod(module, extraglobs=names)
    assert results.attempted > 0
    assert results.failed == 0


def test_every_public_name_is_there() -> None:
    assert all(hasattr(mtil, name) for name in mtil.__all__)
    assert set(mtil.__all__) <= set(dir(mtil))
    with pytest.raises(AttributeError, match="no attribute 'other'"):
        mtil.other  # noqa: B018


def test_importing_mtil_loads_neither_torch_nor_ray_nor_numpy() -> None:
    heavy = "{'torch', 'ray', 'numpy', 'pyarrow', 'pydantic'}"
    code = f"import sys, mtil\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_training_begun_again_goes_on_from_its_checkpoint_to_the_same_weights(
    config: Config, data_uri: str, manifest: Manifest, run_uri: str, tmp_path: Path
) -> None:
    run = Run.create(str(tmp_path), config, data_uri, manifest.fingerprint)

    def report(figures: dict[str, Any]) -> None:
        if figures["epoch"] == 1:
            raise ConnectionError("the process is taken away")

    samples = StoredSamples(data_uri)
    group = Group(report=report)
    training_ = FoldTraining(run, Train(0, 0), manifest, samples, torch.device("cpu"), group=group)
    with pytest.raises(ConnectionError):
        training_.finish()
    assert run.result(Train(0, 0)) is None
    assert [record["epoch"] for record in run.history(Train(0, 0))] == [0, 1]
    lines: list[dict[str, Any]] = []
    result = mtil.train_fold(config, data_uri, str(tmp_path), listen=lines.append)
    assert result.model_sha256 == _sha256(run_uri)
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [2]
    assert lines[-1] == {"kind": "done", "fold": 0}
    again = mtil.train_fold(config, data_uri, str(tmp_path))
    assert again == result


@pytest.mark.parametrize(
    ("train", "images", "remedy"),
    [
        ({}, "4 images", "`train.micro_batch_size` 2 or `data.image_size` below 32"),
        ({"micro_batch_size": 1}, "1 image", "`data.image_size` below 32"),
        (
            {"micro_batch_size": 1, "gpus_per_worker": 0.5},
            "1 image",
            "`train.gpus_per_worker` above 0.5 or `data.image_size` below 32",
        ),
    ],
)
def test_a_training_that_needs_too_much_memory_says_what_to_change(
    train: dict[str, Any],
    images: str,
    remedy: str,
    make_config: MakeConfig,
    data_uri: str,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(train=train)
    run = Run.create(str(tmp_path), config, data_uri, manifest.fingerprint)
    # No machine has memory for 2**50 numbers.
    monkeypatch.setattr(TrainingEngine, "train_epoch", lambda *_, **__: torch.empty(2**50))
    samples = StoredSamples(data_uri)
    sentence = f"for a forward pass over {images} of 32 pixels; begin a new run with {remedy}."
    with pytest.raises(OutOfMemoryError, match=re.escape(sentence)):
        FoldTraining(run, Train(0, 0), manifest, samples, torch.device("cpu")).finish()
    assert run.result(Train(0, 0)) is None


class _LoggedSamples:
    """Samples from storage that log every batch and raise an error at batch `fail_at`."""

    def __init__(self, data_uri: str, fail_at: int | None = None) -> None:
        self._samples, self._fail_at = StoredSamples(data_uri), fail_at
        self.validation = self._samples.validation
        self.ids: list[list[str]] = []

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        for epoch, batches in self._samples.epochs(plan, epochs, first):
            yield epoch, self._log(batches)

    def _log(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            if len(self.ids) == self._fail_at:
                raise ConnectionError("the machine goes")
            self.ids.append(batch.sample_id)
            yield batch


def test_a_training_begun_again_within_an_epoch_goes_on_at_the_next_step(
    config: Config,
    data_uri: str,
    manifest: Manifest,
    run_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtil.library.fold._PREEMPTION_CHECK_STEPS", 1)
    run, other = (
        Run.create(str(tmp_path / name), config, data_uri, manifest.fingerprint)
        for name in ("run", "other")
    )

    def train(run: Run, samples: _LoggedSamples, group: Group) -> None:
        FoldTraining(run, Train(0, 0), manifest, samples, torch.device("cpu"), group=group).finish()

    # With a constant preemption warning, the training saves after the first step of an epoch.
    cut = _LoggedSamples(data_uri, fail_at=3)
    with pytest.raises(ConnectionError):
        train(run, cut, Group(is_leaving=lambda: True))
    again = _LoggedSamples(data_uri)
    train(run, again, Group())
    undisturbed = _LoggedSamples(data_uri)
    train(other, undisturbed, Group())
    assert len(undisturbed.ids) > 6
    assert cut.ids == undisturbed.ids[:3]
    assert again.ids == undisturbed.ids[1:]
    assert _sha256(str(tmp_path / "run")) == _sha256(str(tmp_path / "other")) == _sha256(run_uri)


def test_a_data_set_that_is_read_from_storage_in_each_epoch_gives_the_same_weights(
    config: Config, data_uri: str, run_uri: str, tmp_path: Path
) -> None:
    streaming = replace(config, data=replace(config.data, mode="streaming"))
    uri = str(tmp_path)
    result = mtil.train_fold(streaming, data_uri, uri)
    resident, streamed = (Run.open(u).history(Train(0, 0)) for u in (run_uri, uri))
    names = [name for name in resident[0] if name.startswith(("loss_", "validation_"))]
    assert len(names) > 4
    assert len(streamed) == result.num_epochs == 3
    for one, other in zip(resident, streamed, strict=True):
        assert {name: one[name] for name in names} == {name: other[name] for name in names}


def test_the_callers_number_of_threads_comes_back(
    config: Config, data_uri: str, tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    one_epoch = replace(config, train=replace(config.train, num_epochs=1, cpus_per_worker=2.0))
    mtil.train_fold(one_epoch, data_uri, str(tmp_path))
    assert torch.get_num_threads() == before
    assert json.loads((tmp_path / "threads.json").read_text()) == {"threads": 2}


def test_figures_are_those_that_the_command_writes(
    run_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = mtil.evaluate(run_uri)
    stored = json.loads((Path(run_uri) / "evaluation.json").read_text())
    assert main(["evaluate", "--run", run_uri, "--local", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads(json.dumps(figures)) == stored == printed
    assert figures["folds"] == [0]
    test = mtil.open_dataset(Run.open(run_uri).data_uri).rows(0, "test")
    assert figures["num_images"] == len(test)


def test_inner_validation_rows_are_scored_on_request(
    run_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", "--run", run_uri, "--local", "--split", "validation", "--errors"]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["split"] == "validation"
    rows = mtil.open_dataset(Run.open(run_uri).data_uri).rows(0, "validation")
    assert figures["num_images"] == len(rows)
    assert json.loads((Path(run_uri) / "evaluation-validation.json").read_text()) == figures
    table = pq.read_table(Path(run_uri) / "rounds/0/fold-0/validation.parquet")
    assert sorted(table.column("sample_id").to_pylist()) == sorted(rows.sample_id)
    tumours = table.filter(pa.compute.not_equal(table["label"], 2))
    lost = 1 - tumours.column("dice").to_numpy()
    shares = [band["share_of_loss"] for band in figures["errors"]["bands"]]
    assert shares[0] == pytest.approx(lost[lost > 0.99].sum() / lost.sum())
    assert sum(shares) == pytest.approx(1)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "inner validation images of folds 0" in printed
    assert "half peak if empty" in printed


def test_a_prediction_is_that_of_mtil_predict(
    run_uri: str, phantoms: Path, image: np.ndarray, tmp_path: Path
) -> None:
    source = phantoms / "malignant" / "malignant (1).png"
    assert main(["predict", run_uri, str(source), str(tmp_path)]) == 0
    (row,) = csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines())
    prediction = mtil.load(run_uri)(image)
    assert f"{prediction.malignancy:.6f}" == row["malignant_probability"]
    assert int(prediction.mask.sum()) == int(row["lesion_area_px"])
    assert prediction.is_malignant == (row["malignant"] == "1")
    assert f"{prediction.lesion_probability:.6f}" == row["lesion_probability"]
    assert prediction.class_name == row["class"]
    rule = Run.open(run_uri).model(Train(0, 0)).mask_rule
    presence = prediction.lesion_probability
    assert presence is not None
    assert np.array_equal(prediction.mask, rule(prediction.lesion, presence))
    assert np.array_equal(prediction.passes[-1], prediction.lesion)


def test_colours_and_a_model_file_are_taken(run_uri: str, image: np.ndarray) -> None:
    expected = mtil.load(run_uri)(image)
    (file,) = Path(run_uri).glob("rounds/0/fold-0/model-*.pt")
    loaded = mtil.load(str(file))
    assert loaded.lineage["model_sha256"] == _sha256(run_uri)
    for same in (image, np.stack([image] * 3, axis=2), image.astype(np.uint16)):
        prediction = loaded(same)
        assert prediction.malignancy == expected.malignancy
        assert np.array_equal(prediction.lesion, expected.lesion)


@pytest.mark.parametrize(
    "wrong", [np.zeros((4, 4), np.float32), np.zeros((2, 3, 4, 3), np.uint8), np.zeros((0, 3))]
)
def test_an_array_that_is_no_image_is_refused(run_uri: str, wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match="must be an array"):
        mtil.load(run_uri)(wrong)


def test_what_is_not_there_is_a_sentence(run_uri: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Fold 2 of .* is not trained, but folds 0 are"):
        mtil.load(run_uri, fold=2)
    with pytest.raises(DataError, match="neither"):
        mtil.load(str(tmp_path))
    with pytest.raises(DataError):
        mtil.open_dataset(str(tmp_path))
    with pytest.raises(DataError, match="has none"):
        mtil.evaluate(str(tmp_path))


def test_a_gpu_that_is_not_there_is_a_sentence(
    config: Config, data_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    on_gpu = replace(config, train=replace(config.train, gpus_per_worker=1.0))
    with pytest.raises(ResourceError, match=r"is 1, but PyTorch sees no GPU"):
        mtil.train_fold(on_gpu, data_uri, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_two_workers_are_not_local(data_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--local", "--data", data_uri, "--run", "none", "--config", "demo"]
    assert main([*command, "--train.num-workers", "2"]) == 2
    assert "`--local` trains with one worker" in capsys.readouterr().err


def test_rows_are_those_of_the_folds(data_uri: str, manifest: Manifest) -> None:
    data = mtil.open_dataset(data_uri)
    assert len(data) == manifest.num_rows == len(data.rows())
    assert repr(data) == f"<{manifest.num_rows} images in 3 folds at {data.uri}>"
    every = [data.rows(fold, "test") for fold in range(data.num_folds)]
    ids = [name for rows in every for name in rows.sample_id]
    assert sorted(ids) == sorted(data.rows().sample_id)
    for fold, rows in enumerate(every):
        assert set(rows.fold) == {fold}
        train, validation = data.rows(fold), data.rows(fold, "validation")
        assert not set(rows.group) & set(train.group)
        assert not set(validation.group) & set(train.group)
        assert len(rows) + len(train) + len(validation) == len(data)
    tumours = every[0].label < 2
    assert np.array_equal(every[0].mask.any(axis=(1, 2)), tumours)


def test_the_torch_data_set_holds_the_same_rows(data_uri: str) -> None:
    data = mtil.open_dataset(data_uri)
    rows, items = data.rows(1, "validation"), data.torch(1, "validation")
    loader = torch.utils.data.DataLoader(items, batch_size=4)
    batches = list(loader)
    assert [name for batch in batches for name in batch["sample_id"]] == list(rows.sample_id)
    image = torch.cat([batch["image"] for batch in batches])
    mask = torch.cat([batch["mask"] for batch in batches])
    label = torch.cat([batch["label"] for batch in batches])
    assert torch.equal((image[:, 0] * 255).round().to(torch.uint8), torch.tensor(rows.image))
    assert torch.equal(mask[:, 0] == 1, torch.tensor(rows.mask))
    assert torch.equal(label, torch.tensor(rows.label))


def test_a_preset_is_named_by_its_name(data_uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be one of demo, cpu, best, base"):
        mtil.train_fold("other", data_uri, str(tmp_path / "run"))


def test_commands_train_score_and_predict_where_ray_cannot_be_imported(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for library in ("ray", "psutil"):  # both come with the extra `ray`
        text = f"raise ModuleNotFoundError('No module named {library}', name={library!r})\n"
        (blocked / f"{library}.py").write_text(text)
    small = ["--data.image-size", "32", "--model.encoder.name", "resnet10_tiny",
             "--model.encoder.pretrained", "false", "--train.num-epochs", "1"]  # fmt: skip
    train = ["train", "--config", "demo", "--data", "data", "--run", "run", *small]
    commands = [
        ["phantom", "images", "--num-images", "40", "--seed", "1", "--image-size", "64"],
        ["prepare", "images", "--layout", "busi", "--to", "data", "--image-size", "64"],
        train,
        [*train, "--local"],
        ["evaluate", "--run", "run", "--local"],
        ["predict", "run", "images/malignant", "out"],
        ["status", "--run", "run"],
    ]
    script = tmp_path / "script.py"
    script.write_text(f"""
from mtil.cli import main
if __name__ == "__main__":
    print([main(words) for words in {commands!r}])
""")
    places = [str(blocked), str(Path(mtil.__file__).parents[1])]
    environment = {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[0, 0, 2, 0, 0, 0, 0]"], done.stderr
    refusal = "This command needs `ray`; run `pip install 'mtil[ray]'`, or add `--local`."
    assert refusal in done.stderr
    assert "next: mtil evaluate --local --run run" in done.stdout
    assert (tmp_path / "out" / "predictions.csv").is_file()


@pytest.fixture(scope="module")
def other_uri(config: Config, data_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A read-only run; the configuration differs only in the seed."""
    uri = str(tmp_path_factory.mktemp("other") / "run")
    mtil.train_fold(replace(config, seed=5), data_uri, uri)
    return uri


def test_runs_form_an_ensemble(run_uri: str, other_uri: str, tmp_path: Path) -> None:
    """The figures of two runs come from averaged predictions, in separate files."""
    run = tmp_path / "run"
    shutil.copytree(run_uri, run)
    before = (run / "evaluation.json").exists()
    figures = mtil.evaluate(str(run), others=[other_uri])
    assert figures["ensemble"] == [other_uri]
    assert (run / "evaluation.json").exists() == before
    (scores,) = run.glob("rounds/0/fold-0/ensemble-*-predictions.parquet")
    assert len(list(run.glob("ensemble-*-evaluation.json"))) == 1
    together = pq.read_table(scores).to_pylist()
    alone = []
    for uri in (str(run), other_uri):
        copy = tmp_path / f"copy-{len(alone)}"
        shutil.copytree(uri, copy)
        mtil.evaluate(str(copy))
        (own,) = copy.glob("rounds/0/fold-0/predictions.parquet")
        alone.append(pq.read_table(own).to_pylist())
    for row, one, other in zip(together, *alone, strict=True):
        values = [one["probability"], other["probability"]]
        assert row["probability"] == pytest.approx(np.mean(values))
        assert row["probability_spread"] == pytest.approx(np.std(values))
        assert 0 <= row["mask_spread"] <= 1
        assert np.isnan(one["mask_spread"])
        assert row["model_sha256"] == f"{one['model_sha256']};{other['model_sha256']}"
    assert figures["uncertainty"].keys() == {"masks", "classes"}
    risks = [1 - row["dice"] for row in together if row["label"] < 2]
    assert figures["uncertainty"]["masks"]["random"] == pytest.approx(np.mean(risks))


def test_the_command_names_the_other_runs(
    run_uri: str, other_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_uri, run)
    assert main(["evaluate", "--local", "--run", str(run), "--with", other_uri]) == 0
    printed = capsys.readouterr().out
    assert "Spread of the models as uncertainty of masks: area under the risk-coverage" in printed
    assert "ensemble-" in printed


def test_runs_that_form_no_ensemble_are_refused(
    config: Config, run_uri: str, data_uri: str, manifest: Manifest, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="must have each run once"):
        mtil.evaluate(run_uri, others=[run_uri])
    foreign = Run.create(str(tmp_path / "foreign"), config, data_uri, "e" * 64)
    with pytest.raises(DataError, match=r"must have one data set, but .* eeeeeeeeeeee"):
        mtil.evaluate(run_uri, others=[foreign.uri])
    untrained = Run.create(str(tmp_path / "none"), config, data_uri, manifest.fingerprint)
    with pytest.raises(DataError, match="must have a trained fold"):
        mtil.evaluate(run_uri, others=[untrained.uri])
