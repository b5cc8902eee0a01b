"""Training and evaluation through Ray, with buckets on real servers."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from mtil.circle.request import request_trainings
from mtil.config import Config, config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.selection import count_rows, select_rows
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.distributed.prediction import scoring
from mtil.distributed.runtime import cluster, resources
from mtil.distributed.training import folds, trainer
from mtil.distributed.training.folds import run_trainings
from mtil.distributed.training.job import FoldJob
from mtil.errors import CheckpointError, ConfigError, DataError, ResourceError
from mtil.prediction.evaluation import evaluate_predictions
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import open_store
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("local_ray")


def _config(**train: Any) -> Config:
    return config_from_dict(
        {
            "data": {"image_size": 64},
            "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
            "train": {"num_epochs": 3, "batch_size": 8, "num_workers": 2, **train},
        }
    )


def _ignore(line: dict[str, Any]) -> None:
    assert "kind" in line


@pytest.fixture(scope="module")
def undisturbed(dataset: str, bucket: str) -> Run:
    uri = f"{bucket}/läufe/проба 乳腺 #1 100% '{'l' * 200}'"
    run_trainings(request_trainings(dataset, uri, _config(), [0]), _ignore)
    return Run.open(uri)


def test_a_run_keeps_what_the_contract_says(undisturbed: Run) -> None:
    names = undisturbed.store.names("rounds/0/fold-0")
    assert "rounds/0/fold-0/history.jsonl" in names
    assert not [name for name in names if "checkpoints" in name]  # cleared once committed
    result = undisturbed.result(Train(0, 0))
    assert result is not None
    assert undisturbed.model_name(Train(0, 0), result) in names
    assert result.num_epochs == 3
    assert 0 <= result.metrics["dice"] <= 1
    assert 0 <= result.metrics["auc"] <= 1
    lines = undisturbed.store.read("rounds/0/fold-0/history.jsonl").splitlines()
    assert len(lines) == 3


def test_no_actor_is_started_for_nothing(undisturbed: Run) -> None:
    """By default, Ray Train starts two useless actors, and every training waits for both."""
    assert not cluster.has_dashboard()
    names = {actor["ActorClassName"] for actor in ray._private.state.actors().values()}
    assert "TrainController" in names
    assert not names & {"PlacementGroupCleaner", "DatasetManager"}


def test_a_finished_fold_is_not_trained_again(undisturbed: Run, dataset: str) -> None:
    before = undisturbed.result(Train(0, 0))
    lines: list[dict[str, Any]] = []
    (after,) = run_trainings(
        request_trainings(dataset, undisturbed.uri, _config(), [0]), lines.append
    )
    assert after == before
    assert lines == []


def test_another_configuration_needs_another_run(undisturbed: Run, dataset: str) -> None:
    with pytest.raises(ConfigError, match="num_epochs"):
        run_trainings(
            request_trainings(dataset, undisturbed.uri, _config(num_epochs=4), [0]), _ignore
        )


def test_a_killed_worker_costs_nothing_but_time(
    undisturbed: Run, dataset: str, bucket: str, tmp_path: Path
) -> None:
    """SIGKILL one of two workers before the second epoch. The weights equal the undisturbed run's.

    The undisturbed run had resident rows, and the killed run streams rows. Further kills are in
    tests/e2e/test_kills.py. The controller only starts workers and loads no PyTorch. The workers
    wait for the kill, on slow and fast machines alike.
    """
    config = config_from_dict({"data": {"mode": "streaming"}}, _config())
    disturbed = Run.create(
        f"{bucket}/run-killed", config, undisturbed.data_uri, undisturbed.fingerprint
    )
    waits, killed = tmp_path / "waits", tmp_path / "killed"
    with_torch: list[bool] = []
    over = threading.Event()

    def wait_for_the_killer(history: Sequence[Mapping[str, Any]]) -> bool:
        while not killed.exists():
            waits.touch()
            time.sleep(0.05)
        return True

    def kill() -> None:
        until(lambda: waits.exists() or over.is_set())
        if not over.is_set():
            worker = _processes("RayTrainWorker")[-1]
            with_torch.extend(map(_has_torch, (worker, *_processes("TrainController"))))
            os.kill(worker, signal.SIGKILL)
            killed.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    job = FoldJob(disturbed.uri, dataset, Train(0, 0), None, should_continue=wait_for_the_killer)
    try:
        trainer.run_training_job(disturbed, job, resources.plan_reserved_cpus(config), _ignore)
    finally:
        over.set()
        killer.join()
    worker_has, *controllers_have = with_torch  # an earlier training's controller may be ending
    assert worker_has
    assert controllers_have
    assert not any(controllers_have)
    lines = disturbed.store.read("rounds/0/fold-0/history.jsonl").splitlines()
    assert len(lines) == 3
    _assert_same_weights(disturbed, undisturbed)


def _processes(title: str) -> list[int]:
    """Return the sorted ids of child processes with `title` in the command line."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # the process has just ended
            if title in " ".join(child.cmdline()):
                found.append(child.pid)
    return sorted(found)


def _has_torch(pid: int) -> bool:
    return any("libtorch" in one.path for one in psutil.Process(pid).memory_maps())


def _assert_same_weights(one: Run, other: Run) -> None:
    ours, theirs = one.model(Train(0, 0)), other.model(Train(0, 0))
    assert ours.epoch == theirs.epoch
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


def test_folds_train_side_by_side_where_the_cluster_has_room(
    dataset: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of two folds waits for the other to start. A fold alone has the same weights."""
    config = _config(num_workers=1, cpus_per_worker=0.75)
    run_job = folds._run_job

    def run_with_the_other(run_uri: str, job: FoldJob, cpus: float) -> None:
        (tmp_path / f"fold-{job.train.fold}").touch()
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        run_job(run_uri, job, cpus)

    lines: list[dict[str, Any]] = []
    alone = request_trainings(dataset, f"{bucket}/run-alone", config, [2])
    (expected,) = run_trainings(alone, _ignore)
    monkeypatch.setattr(folds, "_run_job", run_with_the_other)
    both = request_trainings(dataset, f"{bucket}/run-both", config, [2, 0])
    second, first = run_trainings(both, lines.append)
    assert (first.fold, second.fold) == (0, 2)
    assert second.model_sha256 == expected.model_sha256
    epochs = [(line["fold"], line["epoch"]) for line in lines if line["kind"] == "epoch"]
    assert sorted(epochs) == [(fold, epoch) for fold in (0, 2) for epoch in range(3)]
    assert sorted(line["fold"] for line in lines if line["kind"] == "done") == [0, 2]


def test_the_first_error_ends_the_folds_beside_it(
    dataset: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid_file = tmp_path / "pid"

    def fail_beside_another(run_uri: str, job: FoldJob, cpus: float) -> None:
        if job.train.fold == 1:
            until(pid_file.exists)
            raise DataError("The shard is damaged.")
        (tmp_path / "part").write_text(str(os.getpid()))
        (tmp_path / "part").rename(pid_file)
        until(lambda: False)

    monkeypatch.setattr(folds, "_run_job", fail_beside_another)
    config = _config(num_workers=1, cpus_per_worker=0.75)
    request = request_trainings(dataset, f"{bucket}/run-failed", config, [0, 1])
    with pytest.raises(DataError, match=r"^The shard is damaged\.$"):
        run_trainings(request, _ignore)
    until(lambda: not psutil.pid_exists(int(pid_file.read_text())))


def test_a_task_keeps_its_files_in_rays_folder() -> None:
    """A cancelled task cannot remove its files, but the end of the cluster does."""
    task: Any = ray.remote(num_cpus=0)(cluster.find_session_folder)
    folder = ray.get(task.remote())
    assert folder.is_dir()
    assert folder.name.startswith("session_")
    assert cluster.find_session_folder() is None


def test_a_users_mistake_that_only_a_worker_finds_is_not_tried_again(
    dataset: str, bucket: str
) -> None:
    """Two workers read a damaged checkpoint. No worker is started again."""
    uri = f"{bucket}/run-damaged"
    store = open_store(uri)
    store.write("rounds/0/fold-0/checkpoints/latest.json", b"not JSON")
    before = _num_workers()
    with pytest.raises(CheckpointError, match=r"latest\.json"):
        run_trainings(request_trainings(dataset, uri, _config(max_failures=3), [0]), _ignore)
    assert _num_workers() == before + 2


def _num_workers() -> int:
    """Return the number of workers started by Ray Train so far."""
    actors = ray._private.state.actors().values()
    return sum(actor["ActorClassName"] == "RayTrainWorker" for actor in actors)


def test_evaluation_is_the_same_with_any_number_of_workers(undisturbed: Run) -> None:
    figures, digests = [], []
    for num_workers in (1, 2, 3):
        predictions = scoring.predict_folds(
            undisturbed, [0], num_workers=num_workers, listen=_ignore
        )
        figures.append(evaluate_predictions(predictions, run_uri=undisturbed.uri, folds=[0]))
        written = undisturbed.store.read("rounds/0/fold-0/predictions.parquet")
        digests.append(hashlib.sha256(written).hexdigest())
    assert figures[0] == figures[1] == figures[2]
    assert len(set(digests)) == 1
    manifest = manifests.load_manifest(open_store(undisturbed.data_uri))
    assert figures[0]["num_images"] == count_rows(manifest, select_rows(manifest, 0, "test"))


def test_an_untrained_fold_cannot_be_evaluated(undisturbed: Run) -> None:
    with pytest.raises(DataError, match=r"Fold 1 .* must be trained first"):
        scoring.predict_folds(undisturbed, [1], listen=_ignore)


def test_a_plan_that_would_hang_is_refused(dataset: str, bucket: str) -> None:
    with pytest.raises(ResourceError, match="leave"):
        run_trainings(
            request_trainings(dataset, f"{bucket}/run-big", _config(cpus_per_worker=1.0), [0]),
            _ignore,
        )
    assert open_store(f"{bucket}/run-big").names() == []


def test_a_run_of_another_data_set_is_refused(
    undisturbed: Run, phantoms: Path, bucket: str
) -> None:
    other = f"{bucket}/phantoms-other"
    source = CollectionSource(uri=str(phantoms), layout="busi")
    prepare([source], other, Settings(image_size=32, num_folds=3))
    with pytest.raises(DataError, match="fingerprint"):
        run_trainings(request_trainings(other, undisturbed.uri, _config(), [0]), _ignore)


def test_a_training_from_and_to_google_cloud_tells_of_its_epochs(
    phantoms: Path, gcs_bucket: str
) -> None:
    data, run = f"{gcs_bucket}/phantoms", f"{gcs_bucket}/run"
    source = CollectionSource(uri=str(phantoms), layout="busi")
    prepare([source], data, Settings(image_size=64, num_folds=3, max_shard_bytes=120_000))
    lines: list[dict[str, Any]] = []
    heard = threading.Event()

    def listen(line: dict[str, Any]) -> None:
        lines.append(line)
        heard.set()

    run_trainings(
        request_trainings(
            data, run, _config(num_epochs=1, num_workers=1, cpus_per_worker=0.75), [1]
        ),
        listen,
    )
    assert heard.is_set()
    kinds = [line["kind"] for line in lines]
    assert kinds.count("epoch") == 1
    assert kinds[-1] == "done"
    epoch = next(line for line in lines if line["kind"] == "epoch")
    assert epoch["fold"] == 1
    assert {"loss_segmentation", "validation_dice", "data_wait_share"} <= epoch.keys()
    assert Run.open(run).result(Train(0, 1)) is not None
