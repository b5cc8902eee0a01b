"""Train the folds of a request with Ray, side by side where the cluster has room."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtil.circle.request import TrainingRequest
from mtil.config import TrainConfig
from mtil.distributed.runtime import resources
from mtil.distributed.runtime.failures import unwrap_errors
from mtil.distributed.training import trainer
from mtil.distributed.training.job import FoldJob
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train
from mtil.run.relay import GuardedListener, ProgressListener, relay_progress

_CANCEL_S = 20.0
"""Longest wait for the end of cancelled trainings."""


def run_trainings(request: TrainingRequest, listen: ProgressListener) -> list[FoldResult]:
    """Train folds. Folds with a result are skipped.

    If the configuration gives the GPUs or the CPUs of a worker, folds train side by side as far as
    the cluster has room. Otherwise each fold computes on all CPUs, after the fold before.

    Args:
        request: the folds, from `request_trainings`.
        listen: called with `step`, `epoch` and `done` lines of the progress.

    Returns:
        the results of all folds, in the order of the request.

    Raises:
        UserError: if the data set or run is unusable, or the cluster lacks the resources.
        RunError: if the workers fail more than `train.max_failures` times.
    """
    config, data_uri = request.config, request.data_uri
    # Before the run is created: a request too large for the cluster leaves no run behind.
    cpus = resources.plan_reserved_cpus(config)
    resources.report_missing_resources(config)
    run = request.create()
    trainings = [Train(0, fold) for fold in request.folds]
    pending = [training for training in trainings if run.result(training) is None]
    # All folds read the same rows, so the tables are loaded once.
    tables = trainer.load_if_resident(data_uri, request.manifest, config) if pending else None
    jobs = [FoldJob(run.uri, data_uri, training, tables) for training in pending]
    room = resources.count_parallel_trainings(config, cpus) if _may_share(config.train) else 1
    if min(room, len(jobs)) > 1:
        _run_side_by_side(run, jobs, cpus, room, listen)
    else:
        for job in jobs:
            trainer.run_training_job(run, job, cpus, listen)
    results = [run.result(training) for training in trainings]
    return [result for result in results if result is not None]


def _may_share(train: TrainConfig) -> bool:
    """Return True if a training leaves CPUs or GPUs of the cluster to other trainings."""
    return bool(train.gpus_per_worker) or train.cpus_per_worker is not None


def _run_side_by_side(
    run: Run, jobs: Sequence[FoldJob], cpus: float, room: int, listen: ProgressListener
) -> None:
    """Run each training in a Ray task, at most `room` at once. An error ends all trainings."""
    # The tasks only wait, on the node of this command; their workers hold the resources.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, max_retries=0)(_run_job)
    remote = remote.options(scheduling_strategy=here)
    lock = threading.Lock()

    def listen_in_turn(line: dict[str, Any]) -> None:
        with lock:
            listen(line)

    waiting = list(reversed(jobs))
    running: dict[ray.ObjectRef[Any], tuple[FoldJob, ExitStack]] = {}
    """Trainings in flight, with the relay of their progress."""
    try:
        while waiting or running:
            while waiting and len(running) < room:
                job, stack = waiting.pop(), ExitStack()
                stack.enter_context(relay_progress(run, job.train, listen_in_turn))
                running[remote.remote(run.uri, job, cpus)] = job, stack
            (ref,), _ = ray.wait(list(running), num_returns=1)
            job, stack = running.pop(ref)
            stack.close()
            with unwrap_errors():
                ray.get(ref)
            GuardedListener(listen_in_turn)({"kind": "done", "fold": job.train.fold})
    finally:
        _cancel(list(running))
        for _, stack in running.values():
            stack.close()


def _run_job(run_uri: str, job: FoldJob, cpus: float) -> None:
    trainer.run_training_job(Run.open(run_uri), job, cpus, lambda line: None)


def _cancel(refs: "Sequence[ray.ObjectRef[Any]]") -> None:
    """Cancel tasks with their workers, and wait for their end."""
    with suppress(RayError):
        for ref in refs:
            ray.cancel(ref, force=True, recursive=True)
        if refs:
            ray.wait(list(refs), num_returns=len(refs), timeout=_CANCEL_S)
