"""Trainings with initial weights of an earlier run, on two data sets of phantoms."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mtil.circle.initial import choose_initial_models, load_fitting_weights
from mtil.circle.inputs import load_initial_weights
from mtil.circle.request import request_circle, request_trainings
from mtil.config import Config
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import ConfigError, DataError
from mtil.run.checkpoint import TrainedModel, model_from_bytes
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import LocalStore

MakeConfig = Callable[..., Config]
MakeModel = Callable[..., TrainedModel]
OtherRun = Callable[..., Run]


@pytest.fixture
def other_run(
    tmp_path: Path,
    make_config: MakeConfig,
    make_model: MakeModel,
    data_uri: str,
    manifest: Manifest,
) -> OtherRun:
    """Make a run of a data set, with a trained model of every given fold."""

    def make(*folds: int, data: str = data_uri, **config: object) -> Run:
        fingerprint = manifests.load_manifest(LocalStore(data)).fingerprint
        run = Run.create(str(tmp_path / "other"), make_config(**config), data, fingerprint)
        for fold in folds:
            model = make_model(fold, config=run.config, fingerprint=fingerprint, fold=fold)
            run.commit(Train(0, fold), model, num_epochs=1, seconds=0.0, metrics={})
        return run

    return make


@pytest.fixture(scope="session")
def unlike_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a data set of different phantoms."""
    from mtil.phantom.folder import write_phantoms

    folder = tmp_path_factory.mktemp("unlike")
    write_phantoms(folder / "images", num_images=30, seed=77, image_size=64)
    source = CollectionSource(uri=str(folder / "images"), layout="busi")
    prepare([source], str(folder / "set"), Settings(image_size=64, num_folds=3))
    return str(folder / "set")


def _start(run: Run, config: Config, data_uri: str, uri: Path, folds: str = "0") -> Run:
    """Make a run with initial weights of `run`."""
    given = replace(config, train=replace(config.train, init=run.uri))
    return request_trainings(data_uri, str(uri), given, folds).create()


def test_a_fold_starts_from_the_model_that_has_not_seen_its_test_images(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    source = other_run(0, 1, 2)
    run = _start(source, make_config(), data_uri, tmp_path / "run", "0,2")
    for fold in (0, 2):
        expected = source.model(Train(0, fold)).weights
        found = load_initial_weights(run, Train(0, fold))
        assert found is not None
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        # Inner models of the first round start from equal weights.
        inner = load_initial_weights(run, Train(0, fold, 1))
        assert inner is not None
        assert inner.keys() == expected.keys()


def test_the_copy_in_the_run_is_the_file_itself(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    """The copy has the digest of the earlier run's result. The earlier run may be deleted."""
    source = other_run(0)
    name, data = source.model_file(Train(0, 0))
    run = _start(source, make_config(), data_uri, tmp_path / "run")
    shutil.rmtree(source.uri)
    assert run.read_initial_model(0) == data
    assert model_from_bytes(data, name).fingerprint == source.fingerprint
    again = _start(source, make_config(), data_uri, tmp_path / "run")
    assert load_fitting_weights(again, 0) is not None


def test_a_model_that_has_seen_test_images_is_refused(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    source = other_run(1, 2)
    with pytest.raises(
        DataError, match=r"Fold 0 must start .* the model of fold 1 in .* same data"
    ):
        _start(source, make_config(), data_uri, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_are_recognised_in_another_data_set(
    other_run: OtherRun,
    make_config: MakeConfig,
    phantoms: Path,
    data_uri: str,
    manifest: Manifest,
    tmp_path: Path,
) -> None:
    """Equal images in different folds: nearly every model has seen test images of a fold."""
    uri = str(tmp_path / "dealt")
    prepare(
        [CollectionSource(uri=str(phantoms), layout="busi")],
        uri,
        Settings(image_size=64, num_folds=3, seed=9),
    )
    dealt = manifests.load_manifest(LocalStore(uri))
    assert dealt.fingerprint != manifest.fingerprint
    source = other_run(0, 1, 2, data=uri)
    config = make_config(train={"init": source.uri})
    with pytest.raises(DataError, match=r"has seen \d+ of them, such as '"):
        choose_initial_models(config, LocalStore(data_uri), manifest, [0, 1, 2], None)


def test_a_model_of_other_images_serves_every_fold(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, unlike_uri: str, tmp_path: Path
) -> None:
    source = other_run(1, data=unlike_uri)
    run = _start(source, make_config(), data_uri, tmp_path / "run", "0,1,2")
    data = source.model_file(Train(0, 1))[1]
    assert [run.read_initial_model(fold) for fold in range(3)] == [data] * 3


def test_a_model_file_of_a_run_may_be_named(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    source = other_run(0, 1)
    name, data = source.model_file(Train(0, 0))
    config = make_config(train={"init": f"{source.uri}/{name}"})
    run = request_circle(data_uri, str(tmp_path / "run"), config, [0]).create()
    assert run.read_initial_model(0) == data
    lone = tmp_path / "lone.pt"
    lone.write_bytes(data)
    config = make_config(train={"init": str(lone)})
    with pytest.raises(DataError, match=r"a run or a model file inside a run, but .*lone\.pt is"):
        request_trainings(data_uri, str(tmp_path / "third"), config, [0])


def test_weights_that_do_not_fit_are_left_out(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    source = other_run(0)
    wider = make_config(model={"decoder_channels": [16, 8, 8, 8]})
    found = load_fitting_weights(_start(source, wider, data_uri, tmp_path / "run"), 0)
    expected = source.model(Train(0, 0)).weights
    assert found is not None
    assert found.keys() < expected.keys()
    assert {name for name in expected if name.startswith("encoder.")} < found.keys()


def test_the_encoder_alone_may_be_taken(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    config = make_config(train={"init_part": "encoder"})
    found = load_fitting_weights(_start(other_run(0), config, data_uri, tmp_path / "run"), 0)
    assert found
    assert all(name.startswith("encoder.") for name in found)


def test_a_network_without_a_common_weight_is_refused(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    config = make_config(
        train={"init_part": "encoder"}, model={"encoder": {"name": "efficientnet_lite0"}}
    )
    with pytest.raises(ConfigError, match=r"weights that fit the network, but .* has none; choose"):
        _start(other_run(0), config, data_uri, tmp_path / "run")


def test_a_lost_copy_is_one_sentence(
    other_run: OtherRun, make_config: MakeConfig, data_uri: str, tmp_path: Path
) -> None:
    run = _start(other_run(0), make_config(), data_uri, tmp_path / "run")
    run.store.delete("initial/fold-0.pt")
    with pytest.raises(DataError, match=r"fold 0 started from, but initial/fold-0\.pt is missing"):
        load_initial_weights(run, Train(0, 0))
