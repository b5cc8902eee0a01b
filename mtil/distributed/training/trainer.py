"""Folds through Ray Train: any number of workers, restarted from the latest checkpoint."""

import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import (
    PlacementGroupCleanerCallback,
)
from ray.train.v2._internal.execution.failure_handling import (
    DefaultFailurePolicy,
    FailureDecision,
)
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import TrainingFailedError

from mtil.circle.inputs import find_prior_maps
from mtil.circle.request import TrainingRequest
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.distributed.data.resident import load_resident_tables
from mtil.distributed.runtime import cluster, resources
from mtil.distributed.runtime.failures import find_user_error, unwrap_errors
from mtil.distributed.training.job import FoldJob
from mtil.distributed.training.process_group import ProcessGroupConfig
from mtil.library.samples import fits_in_memory
from mtil.process import supervisor
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train
from mtil.run.priors import PriorMaps
from mtil.run.relay import GuardedListener, ProgressListener, relay_progress
from mtil.run.threads import settle_num_threads

_ABORT_S = 10.0
_RESIZE_S = 10.0
"""How often a group of workers that may grow looks for room."""

CPU_MALLOC_SETTINGS = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
"""Have glibc keep freed activations for the next step: fresh pages cost a tenth of a CPU's step."""


def run_trainings(request: TrainingRequest, listen: ProgressListener) -> list[FoldResult]:
    """Train folds one after the other; a fold that has a result is not trained again.

    Args:
        request: the folds, by `request_trainings`.
        listen: takes progress: `step`, `epoch` and `done` lines.

    Raises:
        UserError: if the data set, the run or the resources are not as they must be.
        RunError: if the workers failed more often than the configuration allows.
    """
    config, data_uri = request.config, request.data_uri
    cpus = resources.plan_reserved_cpus(config)  # refused here, a run is not begun
    resources.report_missing_resources(config)
    run = request.create()
    trainings = [Train(0, fold) for fold in request.folds]
    waiting = [of for of in trainings if run.result(of) is None]
    held = load_if_resident(data_uri, request.manifest, config) if waiting else None
    for of in waiting:
        _train(run, FoldJob(run.uri, data_uri, of, held), cpus, listen)
    results = [run.result(of) for of in trainings]
    return [result for result in results if result is not None]


def train_action(run: Run, of: Train, listen: ProgressListener) -> FoldResult:
    """Do one training of a circle, unless it has a result.

    Raises:
        UserError: if the data set, the run or the resources are not as they must be.
        MapError: if a map that it reads is missing or damaged.
        RunError: if the workers failed more often than the configuration allows.
    """
    cpus = resources.plan_reserved_cpus(run.config)
    result = run.result(of)
    if result is not None:
        return result
    manifest = run.manifest()
    priors = find_prior_maps(run, manifest, of)
    held = load_if_resident(run.data_uri, manifest, run.config, priors)
    return run_training_job(run, FoldJob(run.uri, run.data_uri, of, held, priors), cpus, listen)


def run_training_job(run: Run, job: FoldJob, cpus: float, listen: ProgressListener) -> FoldResult:
    """Do one training by Ray Train, unless it has a result, with as many CPUs a worker.

    Raises:
        UserError: if the data set, the run or the resources are not as they must be.
        MapError: if a map that it reads is missing or damaged.
        RunError: if the workers failed more often than the configuration allows.
    """
    if run.result(job.train) is None:
        _train(run, job, cpus, listen)
    result = run.result(job.train)
    assert result is not None
    return result


def train_in_process(run: Run, job: FoldJob) -> FoldResult:
    """Do one training in this process, unless it has a result, on its GPU if it has one.

    Raises:
        UserError: if the data set or the run are not as they must be.
        MapError: if a map that it reads is missing or damaged.
    """
    if run.result(job.train) is None:
        from mtil.distributed.training import worker  # PyTorch, which what only waits does not need

        worker.train_single_process(job, run.config.train.gpus_per_worker)
    result = run.result(job.train)
    assert result is not None
    return result


def load_if_resident(
    data_uri: str, manifest: Manifest, config: Config, priors: PriorMaps | None = None
) -> list[ray.ObjectRef[Any]] | None:
    """Put the data set, with its maps, into the object store if it is to be resident there.

    Raises:
        DataError: if a shard is missing or not the one that the manifest names.
        MapError: if a map shard is.
    """
    if not fits_in_memory(manifest, config.data):
        return None
    with unwrap_errors():
        return load_resident_tables(data_uri, manifest, priors)


class _Policy(DefaultFailurePolicy):
    """Ray's, but for a user's mistake: the same again would fail in the same way."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Say whether to start the workers again."""
        if find_user_error(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _Trainer(DataParallelTrainer):
    """Ray's, without the actors that do nothing here and that each training would wait for.

    One hands out the shards of data sets, of which this trainer is given none. One asks the
    dashboard for the controller: without a dashboard it learns nothing and takes twelve seconds
    to end.
    """

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        policy = _Policy(self.run_config.failure_config)  # type: ignore[arg-type]  # as Ray's own
        return super()._initialize_and_run_controller(**options | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        idle: list[type] = [DatasetsCallback]
        if not cluster.has_dashboard():
            idle.append(PlacementGroupCleanerCallback)
        return [one for one in callbacks if not isinstance(one, tuple(idle))]

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave signals to mtil: Ray's handler exits with 0, and stays after the training."""
        self._controller = controller

    def abort(self) -> None:
        """Stop the training on a cluster that lives on, and free what it holds there."""
        if self._controller is not None:
            with suppress(RayError):
                ray.get(self._controller.abort.remote(), timeout=_ABORT_S)


def _train_in_group(job: FoldJob) -> None:
    """Train a fold; every worker of a Ray Train group runs this."""
    from mtil.distributed.training import worker  # PyTorch, which the controller does not need

    worker.train_in_group(job)


def _train(run: Run, job: FoldJob, cpus: float, listen: ProgressListener) -> None:
    workers = run.config.train
    if job.num_threads is None and not workers.gpus_per_worker:
        proposed = resources.propose_num_threads(run.config, cpus)
        job = replace(job, num_threads=settle_num_threads(run, proposed))
    reserved = {"CPU": cpus} | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {})
    with (
        relay_progress(run, job.train, listen),
        tempfile.TemporaryDirectory(prefix="mtil-train-") as scratch,
    ):
        supervisor.remove_at_end(Path(scratch))
        trainer = _Trainer(
            partial(_train_in_group, job),  # as a configuration its controller would unpack it too
            scaling_config=ScalingConfig(  # type: ignore[call-arg]
                num_workers=(workers.min_workers, workers.num_workers)  # type: ignore[arg-type]
                if workers.min_workers
                else workers.num_workers,
                elastic_resize_monitor_interval_s=_RESIZE_S,
                use_gpu=workers.gpus_per_worker > 0,
                resources_per_worker=reserved,
            ),
            backend_config=ProcessGroupConfig("nccl" if workers.gpus_per_worker else "gloo"),
            run_config=RunConfig(
                name=run.folder(job.train).replace("/", "-"),
                storage_path=scratch,  # checkpoints go to the run's own storage
                failure_config=FailureConfig(max_failures=workers.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                worker_runtime_env={  # type: ignore[call-arg]
                    "env_vars": {} if workers.gpus_per_worker else CPU_MALLOC_SETTINGS
                },
            ),
        )
        try:
            with unwrap_errors():
                trainer.fit()
        except KeyboardInterrupt:
            if cluster.uses_shared_cluster():
                trainer.abort()
            raise
    GuardedListener(listen)({"kind": "done", "fold": job.train.fold})
