"""A Ray worker and a process without Ray: equal weights, scores and figures."""

import pytest

import mtil
from mtil.circle.request import request_trainings
from mtil.config import config_from_dict
from mtil.distributed.prediction import scoring
from mtil.distributed.training.folds import run_trainings
from mtil.library.evaluation import request_evaluation, score_folds
from mtil.run.folder import Run
from mtil.run.plan import Train

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_fold_is_the_same_on_ray_and_in_this_process(
    dataset: str, bucket: str, mode: str
) -> None:
    config = config_from_dict(
        {
            "data": {"image_size": 64, "mode": mode},
            "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
            "train": {"num_epochs": 2, "batch_size": 8, "cpus_per_worker": 1.0},
        }
    )
    on_ray, local = f"{bucket}/local/{mode}-ray", f"{bucket}/local/{mode}-here"
    request = request_trainings(dataset, on_ray, config, [1])
    (expected,) = run_trainings(request, lambda line: None)
    result = mtil.train_fold(config, dataset, local, fold=1)
    assert result.model_sha256 == expected.model_sha256
    assert result.metrics == expected.metrics
    names = [run.store.names("rounds") for run in (Run.open(on_ray), Run.open(local))]
    assert names[0] == names[1]
    assert Run.open(local).history(Train(0, 1))[0]["num_workers"] == 1
    scored = [
        scoring.predict_folds(Run.open(on_ray), [1], num_workers=2, listen=lambda line: None),
        score_folds(request_evaluation(local), lambda line: None),
    ]
    # As text: the Dice of a normal image is NaN, and NaN equals nothing.
    assert repr(scored[0].to_pylist()) == repr(scored[1].to_pylist())
