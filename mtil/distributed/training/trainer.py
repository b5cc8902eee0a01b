"""Run a training with Ray Train: any number of workers, restarted from the latest checkpoint."""

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
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.distributed.data.resident import load_resident_tables
from mtil.distributed.runtime import cluster, resources
from mtil.distributed.runtime.failures import unwrap_errors, would_fail_again
from mtil.distributed.training.job import FoldJob
from mtil.distributed.training.process_group import ProcessGroupConfig
from mtil.library.samples import fits_in_memory
from mtil.process import supervisor
from mtil.process.memory import CPU_MALLOC_SETTINGS
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train
from mtil.run.priors import PriorMaps
from mtil.run.relay import GuardedListener, ProgressListener, relay_progress
from mtil.run.threads import settle_num_threads

_ABORT_S = 10.0
"""Longest wait for the controller to stop an interrupted training."""
_RESIZE_S = 10.0
"""Seconds between two checks for room to add workers to an elastic group."""


def train_action(run: Run, training: Train, num_parallel: int) -> FoldResult:
    """Run one training of a circle with Ray Train, or return the existing result.

    Args:
        run: holds configuration, checkpoints and results.
        training: the training of the circle.
        num_parallel: trainings that run side by side and share the CPUs of the cluster.

    Raises:
        UserError: if the data set or run is unusable, or the cluster lacks the resources.
        MapError: if an input map is missing or damaged.
        RunError: if the workers fail more than `train.max_failures` times.
    """
    cpus = resources.plan_reserved_cpus(run.config)
    result = run.result(training)
    if result is not None:
        return result
    manifest = run.manifest()
    priors = find_prior_maps(run, manifest, training)
    tables = load_if_resident(run.data_uri, manifest, run.config, priors)
    job = FoldJob(run.uri, run.data_uri, training, tables, priors)
    return run_training_job(run, job, cpus, lambda line: None, num_parallel)


def run_training_job(
    run: Run, job: FoldJob, cpus: float, listen: ProgressListener, num_parallel: int = 1
) -> FoldResult:
    """Run one training with Ray Train, or return the existing result.

    Args:
        run: holds configuration, checkpoints and results.
        job: the training and its inputs.
        cpus: CPUs reserved by each worker.
        listen: called with `step`, `epoch` and `done` lines of the progress.
        num_parallel: trainings that run side by side and share the CPUs of the cluster.

    Raises:
        UserError: if the data set or run is unusable, or the cluster lacks the resources.
        MapError: if an input map is missing or damaged.
        RunError: if the workers fail more than `train.max_failures` times.
    """
    if run.result(job.train) is None:
        _fit(run, job, cpus, listen, num_parallel)
    result = run.result(job.train)
    assert result is not None
    return result


def train_in_process(run: Run, job: FoldJob) -> FoldResult:
    """Run one training in this process, or return the existing result.

    Trains on a GPU unless `train.gpus_per_worker` is 0.

    Raises:
        UserError: if the data set or run is unusable.
        MapError: if an input map is missing or damaged.
    """
    if run.result(job.train) is None:
        # Imported late: processes that only wait for workers need no PyTorch.
        from mtil.distributed.training import worker

        worker.train_single_process(job, run.config.train.gpus_per_worker)
    result = run.result(job.train)
    assert result is not None
    return result


def load_if_resident(
    data_uri: str, manifest: Manifest, config: Config, priors: PriorMaps | None = None
) -> list[ray.ObjectRef[Any]] | None:
    """Load the data set, with prior maps, into the object store if `data.mode` says resident.

    Returns:
        references to the tables in manifest order; None if the rows are to be streamed.

    Raises:
        DataError: if a shard is missing or differs from the manifest.
        MapError: if a map shard is missing or damaged.
    """
    if not fits_in_memory(manifest, config.data):
        return None
    with unwrap_errors():
        return load_resident_tables(data_uri, manifest, priors)


class _FailurePolicy(DefaultFailurePolicy):
    """Ray's failure policy, without restarts that would fail again."""

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Return whether to restart the workers or to raise the error."""
        if would_fail_again(training_failed_error):
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


class _Trainer(DataParallelTrainer):
    """Ray's trainer, without callbacks and signal handlers that mtil does not need."""

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        # Ray passes the same argument to its own policy, with the same type error.
        policy = _FailurePolicy(self.run_config.failure_config)  # type: ignore[arg-type]
        return super()._initialize_and_run_controller(**options | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        # Starts an actor to hand out shards of Ray data sets, but this trainer gets no data set.
        # Every training would wait for the actor.
        unused: list[type] = [DatasetsCallback]
        # Starts an actor to ask the dashboard about the controller. Without a dashboard, the actor
        # learns nothing and takes twelve seconds to end.
        if not cluster.has_dashboard():
            unused.append(PlacementGroupCleanerCallback)
        return [callback for callback in callbacks if not isinstance(callback, tuple(unused))]

    _controller: Any = None

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the controller for `abort`, and leave signals to mtil."""
        # Ray's handler exits with code 0 and stays installed after the training.
        self._controller = controller

    def abort(self) -> None:
        """Stop the training and free its resources, on a cluster that outlives this process."""
        if self._controller is not None:
            with suppress(RayError):
                ray.get(self._controller.abort.remote(), timeout=_ABORT_S)


def _train_in_group(job: FoldJob) -> None:
    """Train a fold as one worker of a Ray Train group."""
    # Imported late: Ray Train's controller unpickles this function and needs no PyTorch.
    from mtil.distributed.training import worker

    worker.train_in_group(job)


def _fit(run: Run, job: FoldJob, cpus: float, listen: ProgressListener, num_parallel: int) -> None:
    """Run Ray Train until the training has a result, and relay progress to the listener."""
    workers = run.config.train
    if job.num_threads is None and not workers.gpus_per_worker:
        proposed = resources.propose_num_threads(run.config, cpus, num_parallel)
        job = replace(job, num_threads=settle_num_threads(run, proposed))
    reserved = {"CPU": cpus} | ({"GPU": workers.gpus_per_worker} if workers.gpus_per_worker else {})
    with (
        relay_progress(run, job.train, listen),
        tempfile.TemporaryDirectory(
            prefix="mtil-train-", dir=cluster.find_session_folder()
        ) as scratch,
    ):
        supervisor.remove_at_end(Path(scratch))
        trainer = _Trainer(
            # Bound to the function: Ray's controller would unpickle `train_loop_config` as well.
            partial(_train_in_group, job),
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
                # Only for Ray's own files: checkpoints go to the storage of the run.
                storage_path=scratch,
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
            # A cluster started by this command ends with it; a shared cluster would train on.
            if cluster.uses_shared_cluster():
                trainer.abort()
            raise
    GuardedListener(listen)({"kind": "done", "fold": job.train.fold})
