"""A run's folder: configuration and data set are fixed, and results name the committed model."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtil import __version__
from mtil.config import Config, compute_config_digest, config_from_dict, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.errors import ConfigError, DataError, OtherModelError, StorageError, UserError
from mtil.run import names
from mtil.run.checkpoint import TrainedModel, TrainingCheckpoints, model_to_bytes
from mtil.run.folder import Run, TrainingProgressReader
from mtil.run.plan import Train
from mtil.storage import LocalStore

MakeModel = Callable[..., TrainedModel]
FINGERPRINT = "f" * 64
FIGURES = {"num_epochs": 5, "seconds": 1.5, "metrics": {"dice": 0.75, "score": 0.75}}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config()


@pytest.fixture
def run(uri: str, config: Config) -> Run:
    return Run.create(uri, config, "s3://bucket/data", FINGERPRINT)


def test_a_run_says_what_it_was_asked_to_do(run: Run, uri: str, config: Config) -> None:
    values = json.loads((Path(uri) / "run.json").read_text())
    assert values == {
        "version": __version__,
        "config": config_to_dict(config),
        "config_digest": compute_config_digest(config),
        "data": "s3://bucket/data",
        "fingerprint": FINGERPRINT,
    }
    for again in (run, Run.open(uri), Run.open(Path(uri).as_uri())):
        assert again.config == config
        assert (again.uri, again.data_uri) == (uri, "s3://bucket/data")
        assert again.fingerprint == FINGERPRINT


def test_the_same_again_takes_the_run_up(run: Run, uri: str, config: Config) -> None:
    before = (Path(uri) / names.RUN).read_bytes()
    again = Run.create(
        uri, config_from_dict(config_to_dict(config)), "s3://bucket/data", FINGERPRINT
    )
    assert again.config == run.config
    assert (Path(uri) / names.RUN).read_bytes() == before
    moved = Run.create(uri, config, "/elsewhere/data", FINGERPRINT)  # a copy of the data set
    assert moved.fingerprint == FINGERPRINT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"num_epochs": 9}}, "`train.num_epochs` = 4 and 9 was asked for"),
        ({"seed": 1}, "`seed` = 0 and 1 was asked for"),
        (
            {"model": {"decoder_channels": [8, 8, 8, 4]}},
            "`model.decoder_channels` = [8, 8, 8, 8] and [8, 8, 8, 4] was asked for",
        ),
        ({"model": {"attention": {"kind": "self"}}}, "`model.attention.kind` = 'both' and 'self'"),
    ],
)
def test_another_configuration_is_refused_with_key_and_values(
    run: Run, uri: str, config: Config, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Run.create(uri, config_from_dict(changes, config), "s3://bucket/data", FINGERPRINT)
    assert message in str(caught.value)
    assert str(caught.value).endswith("name another --run.")
    assert Run.open(uri).config == config


def test_other_data_are_refused_with_both_fingerprints(
    run: Run, uri: str, config: Config, manifest: Manifest, data_uri: str
) -> None:
    with pytest.raises(DataError, match=r"fingerprint f{12}… and /d has 0{12}…; name another"):
        Run.create(uri, config, "/d", "0" * 64)
    message = rf"f{{12}}… and {data_uri} has {manifest.fingerprint[:12]}…; name the"
    with pytest.raises(DataError, match=message):
        run.manifest(data_uri)
    trained = Run.create(f"{uri}-2", config, data_uri, manifest.fingerprint)
    assert trained.manifest() == manifest


def test_where_there_is_no_run_it_says_so(uri: str) -> None:
    with pytest.raises(DataError, match=r"must have a run\.json, but .* make one with `mtil train"):
        Run.open(uri)
    assert not Path(uri).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '"x"', '{"config": {}}', '{"config": 3}'])
def test_a_file_that_is_no_run_is_one_sentence(uri: str, text: str) -> None:
    LocalStore(uri).write(names.RUN, text.encode())
    with pytest.raises(UserError, match=r"run\.json") as caught:
        Run.open(uri)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_read_is_called_that(tmp_path: Path) -> None:
    """A storage failure is not reported as a damaged file."""
    uri = str(tmp_path / ("x" * 300))
    for read in (
        lambda: Run.open(uri),
        lambda: manifests.load_manifest(LocalStore(uri)),
        lambda: TrainingCheckpoints(LocalStore(uri), "checkpoints").load(),
    ):
        with pytest.raises(StorageError, match=r"cannot be read: File name too long"):
            read()


def test_a_committed_fold_names_its_model(run: Run, uri: str, make_model: MakeModel) -> None:
    model = make_model(fold=1)
    assert run.result(Train(0, 1)) is None
    result = run.commit(Train(0, 1), model, **FIGURES)
    assert result == run.result(Train(0, 1)) == Run.open(uri).result(Train(0, 1))
    assert (result.fold, result.best_epoch, result.version) == (1, model.epoch, __version__)
    assert result.metrics == {"dice": 0.75, "score": 0.75}
    assert result.config_digest == compute_config_digest(run.config)
    assert result.fingerprint == FINGERPRINT
    data = (Path(uri) / run.model_name(Train(0, 1), result)).read_bytes()
    assert result.model_sha256 == hashlib.sha256(data).hexdigest()
    read = run.model(Train(0, 1))
    assert read.digest == result.model_sha256
    assert read.weights.keys() == model.weights.keys()
    assert all(torch.equal(read.weights[name], model.weights[name]) for name in model.weights)


def test_a_commit_ends_the_checkpoints_of_its_fold_only(run: Run, make_model: MakeModel) -> None:
    for fold in (0, 1):
        run.checkpoints(Train(0, fold)).save(2, {"fold": fold})
    result = run.commit(Train(0, 1), make_model(fold=1), **FIGURES)
    assert run.checkpoints(Train(0, 1)).load() is None
    assert run.checkpoints(Train(0, 0)).load() == {"fold": 0}
    assert run.store.names("rounds/0/fold-1") == [
        run.model_name(Train(0, 1), result),
        "rounds/0/fold-1/result.json",
    ]


def test_trained_folds_are_those_with_a_result(run: Run, make_model: MakeModel) -> None:
    assert run.find_trained_folds() == {}
    run.commit(Train(0, 2), make_model(fold=2), **FIGURES)
    run.commit(Train(0, 0), make_model(fold=0), **FIGURES)
    run.store.write("rounds/0/fold-1/model-0123.pt", b"no result names this yet")
    assert run.find_trained_folds() == {0: [0, 2]}
    assert run.last_round() == 0
    run.commit(Train(1, 0), make_model(fold=0), **FIGURES)
    run.commit(Train(1, 2, 3), make_model(fold=2), **FIGURES)  # an inner model
    assert run.find_trained_folds() == {0: [0, 2], 1: [0]}
    assert run.last_round() == 0
    run.commit(Train(1, 2), make_model(fold=2), **FIGURES)
    assert run.last_round() == 1


def test_a_run_without_a_trained_fold_has_no_last_round(run: Run) -> None:
    with pytest.raises(DataError, match=r"must have a trained fold, but .* has none"):
        run.last_round()


def test_the_first_result_of_a_training_counts(run: Run, make_model: MakeModel) -> None:
    of = Train(0, 0)
    first = run.commit(of, make_model(seed=0), **FIGURES)
    before = run.store.names()
    assert run.commit(of, make_model(seed=1), **FIGURES) == first == run.result(of)
    assert run.store.names() == before
    assert run.commit(of, make_model(seed=0), **FIGURES) == first
    assert run.model(of).digest == first.model_sha256


def test_a_fold_without_a_result_has_no_model(run: Run, make_model: MakeModel) -> None:
    run.store.write("rounds/0/fold-0/model-0123.pt", model_to_bytes(make_model()))
    with pytest.raises(DataError, match=r"Fold 0 of .* run `mtil train --fold 0`"):
        run.model(Train(0, 0))


@pytest.mark.parametrize("how", ["other", "flipped", "cut"])
def test_a_model_that_its_result_does_not_name_is_refused(
    run: Run, make_model: MakeModel, how: str
) -> None:
    result = run.commit(Train(0, 0), make_model(seed=0), **FIGURES)
    name = run.model_name(Train(0, 0), result)
    data = run.store.read(name)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    other = model_to_bytes(make_model(seed=1))
    run.store.write(name, {"other": other, "flipped": bytes(flipped), "cut": data[:-1]}[how])
    with pytest.raises(
        OtherModelError, match=r"model-\w+\.pt is not the file that result\.json beside it"
    ):
        run.model(Train(0, 0))


@pytest.mark.parametrize("text", ["", "[]", '{"fold": 0}', '{"unknown": 1}'])
def test_a_result_that_is_none_is_one_sentence(run: Run, text: str) -> None:
    run.store.write("rounds/0/fold-0/result.json", text.encode())
    with pytest.raises(DataError, match=r"fold-0/result\.json .*; restore it, or delete it"):
        run.result(Train(0, 0))


def test_nothing_secret_is_written(
    uri: str, config: Config, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIAEXAMPLEKEYID",
        "AWS_SECRET_ACCESS_KEY": "very/secret+value",
        "AWS_SESSION_TOKEN": "a-session-token",
        "RAY_AUTH_TOKEN": "a-ray-token",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    run = Run.create(uri, config, "s3://bucket/data", FINGERPRINT)
    run.checkpoints(Train(0, 0)).save(0, {"epoch": 0})
    run.commit(Train(0, 0), make_model(), **FIGURES)
    run.checkpoints(Train(0, 1)).save(0, {"epoch": 0})
    written = {name: run.store.read(name) for name in run.store.names()}
    assert len(written) == 5
    for name, data in written.items():
        for value in secrets.values():
            assert value.encode() not in data, name


def epoch(number: int) -> dict[str, float]:
    return {"epoch": number, "loss_segmentation": 0.5}


def test_a_fold_without_history_has_none(run: Run) -> None:
    assert run.history(Train(0, 0)) == []
    assert run.step(Train(0, 0)) is None


def test_history_and_step_are_read_as_they_were_written(run: Run, uri: str) -> None:
    run.write_history(Train(0, 1), [epoch(0), epoch(1)])
    run.write_step(Train(0, 1), {"epoch": 2, "step": 3, "steps": 9})
    assert run.history(Train(0, 1)) == [epoch(0), epoch(1)]
    assert run.step(Train(0, 1)) == {"epoch": 2, "step": 3, "steps": 9, "hosts": []}
    assert run.history(Train(0, 0)) == []
    lines = (Path(uri) / "rounds/0/fold-1/history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [epoch(0), epoch(1)]


def test_news_is_what_was_not_told_before(run: Run) -> None:
    run.write_history(Train(0, 0), [epoch(0)])
    news = TrainingProgressReader(run, Train(0, 0))
    assert news.lines() == []
    run.write_step(Train(0, 0), {"epoch": 1, "step": 4, "steps": 9})
    assert news.lines() == [
        {"kind": "step", "fold": 0, "epoch": 1, "step": 4, "steps": 9, "hosts": []}
    ]
    assert news.lines() == []
    run.write_history(Train(0, 0), [epoch(0), epoch(1), epoch(2)])
    assert news.lines() == [{"kind": "epoch", **epoch(1)}, {"kind": "epoch", **epoch(2)}]


def test_news_does_not_tell_the_step_of_an_epoch_that_is_over(run: Run) -> None:
    news = TrainingProgressReader(run, Train(0, 0))
    run.write_history(Train(0, 0), [epoch(0)])
    run.write_step(Train(0, 0), {"epoch": 0, "step": 4, "steps": 9})
    assert news.lines() == [{"kind": "epoch", **epoch(0)}]


def test_a_commit_leaves_no_step_behind(run: Run, make_model: MakeModel) -> None:
    run.write_step(Train(0, 0), {"epoch": 0, "step": 4, "steps": 9})
    run.commit(
        Train(0, 0), make_model(config=run.config, fold=0, fingerprint=FINGERPRINT), **FIGURES
    )
    assert run.step(Train(0, 0)) is None
