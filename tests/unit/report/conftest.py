"""A small run with scored test images, and the report of the run."""

from collections.abc import Callable
from pathlib import Path

import pytest

import mtil
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.report.build import build_report
from mtil.report.elements import Report
from mtil.report.scored import ScoredRun, read_run
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train

NUM_EPOCHS = 4


@pytest.fixture(scope="session")
def make_scored(
    tmp_path_factory: pytest.TempPathFactory,
    make_config: Callable[..., Config],
    make_model: Callable[..., TrainedModel],
    data_uri: str,
    manifest: Manifest,
) -> Callable[..., str]:
    """Make runs of untrained models, with histories, and score the test images."""

    def make(name: str, *, folds: tuple[int, ...] = (0, 1), seed: int = 0) -> str:
        config = make_config(circle={"maps": "recycle"}, zoom={"num_windows": 1}, seed=seed)
        uri = str(tmp_path_factory.mktemp("scored") / name)
        run = Run.create(uri, config, data_uri, manifest.fingerprint)
        for fold in folds:
            training = Train(0, fold)
            run.write_history(
                training,
                [
                    {
                        "epoch": epoch,
                        "fold": fold,
                        "num_workers": 1,
                        "seconds": 2.5,
                        "images_per_second": 8.0,
                        "learning_rate_encoder": 0.001,
                        "learning_rate_rest": 0.003,
                        "loss_segmentation": 1 / (1 + epoch),
                        "validation_dice": 0.1 * epoch,
                        "data_wait_share": 0.01,
                    }
                    for epoch in range(NUM_EPOCHS)
                ],
            )
            model = make_model(
                seed + fold, config=config, fold=fold, fingerprint=manifest.fingerprint
            )
            run.commit(training, model, num_epochs=NUM_EPOCHS, seconds=12.0, metrics={"dice": 0.3})
        mtil.evaluate(uri)
        return uri

    return make


@pytest.fixture(scope="session")
def scored_uri(make_scored: Callable[..., str]) -> str:
    """A run with two of three folds, two passes and a zoom pass."""
    return make_scored("first")


@pytest.fixture(scope="session")
def scored(scored_uri: str) -> ScoredRun:
    """The scored run, loaded."""
    return read_run(scored_uri)


@pytest.fixture(scope="session")
def report(scored: ScoredRun) -> Report:
    """The report of the scored run."""
    return build_report(scored)


@pytest.fixture
def unscored_uri(
    tmp_path: Path, make_config: Callable[..., Config], data_uri: str, manifest: Manifest
) -> str:
    """A run after the first epoch, without scores."""
    run = Run.create(str(tmp_path / "new"), make_config(), data_uri, manifest.fingerprint)
    run.write_history(Train(0, 0), [{"epoch": 0, "fold": 0, "loss_segmentation": 0.5}])
    return run.uri
