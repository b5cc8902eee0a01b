"""The device of actors, and the number of threads of a run's trainings."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from mtil.circle.inputs import find_map_source
from mtil.config import Config, TrainConfig
from mtil.distributed.circle import actions
from mtil.distributed.prediction import scoring
from mtil.distributed.prediction.map_writing import MapWriter
from mtil.distributed.prediction.scoring import ScoringActor
from mtil.errors import DataError
from mtil.models.devices import prepare_device, should_use_bf16
from mtil.run.folder import Run
from mtil.run.plan import Evaluate, Train, WriteMaps
from mtil.run.threads import settle_num_threads

CircleRun = Callable[..., Run]
CPU = torch.device("cpu")


@pytest.fixture
def foreign_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A visible GPU, as Ray shows to actors without a reserved GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_an_actor_computes_on_a_gpu_only_if_it_has_reserved_one(foreign_gpu: None) -> None:
    assert prepare_device(0.0) == CPU
    assert torch.get_num_threads() == 1
    assert prepare_device(1.0) == torch.device("cuda")


def test_only_the_wanted_processor_computes_in_bf16() -> None:
    assert not should_use_bf16(TrainConfig(precision="auto"), CPU)
    assert not should_use_bf16(TrainConfig(precision="fp32"), CPU)
    assert should_use_bf16(TrainConfig(precision="bf16"), CPU)
    assert not should_use_bf16(TrainConfig(precision="fp32"), torch.device("cuda"))


@pytest.mark.slow
def test_scoring_and_mapping_leave_the_gpus_of_others_alone(
    circle_run: CircleRun, foreign_gpu: None
) -> None:
    run = circle_run([0], until=WriteMaps(0, 0), whole=True)
    of = WriteMaps(0, 0)
    writer = MapWriter(run.uri, of, find_map_source(run, run.manifest(), of), priors=None)
    assert writer._predictor.device == CPU
    scorer = ScoringActor(run.uri, run.data_uri, 0, 0.0)
    scorer(pa.table({"fold": [0], "shard": [0], "start": [0], "rows": [64]}))
    assert scorer._scorer._chains[0][0][0].device == CPU


def test_an_evaluation_reserves_the_gpus_that_a_training_worker_does(
    circle_run: CircleRun, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = circle_run([0], until=WriteMaps(0, 0))
    run.config = replace(run.config, train=replace(run.config.train, gpus_per_worker=0.5))
    asked: list[object] = []

    def predict_folds(*_: object, **options: object) -> None:
        asked.append(options["gpus_per_worker"])
        raise DataError("as far as it matters")

    monkeypatch.setattr(scoring, "predict_folds", predict_folds)
    with pytest.raises(DataError, match="as far as it matters"):
        actions._evaluate(run, Evaluate(0, 0))
    assert asked == [0.5]


def test_a_run_keeps_the_number_of_threads_that_it_began_with(circle_run: CircleRun) -> None:
    run = circle_run([0], until=Train(0, 0))
    assert settle_num_threads(run, 2) == 2
    assert settle_num_threads(run, 8) == 2
    run.store.write("threads.json", b'{"threads": 0}')
    with pytest.raises(DataError, match=r"threads\.json is wrong at `threads`.* or name another"):
        settle_num_threads(run, 8)
