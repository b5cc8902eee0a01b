"""Train one fold in a Ray process: connect the loop to Ray's data, GPUs and reports."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict

import ray
import ray.train
import torch

from mtil.data.dataset.batches import Batch, EpochPlan
from mtil.distributed.data.ingest import (
    get_resident_tables,
    iterate_streaming_batches,
    iterate_streaming_epochs,
)
from mtil.distributed.runtime.cluster import set_normal_scheduling
from mtil.distributed.runtime.gauges import TRAINING_GAUGES, Gauges
from mtil.distributed.training.job import FoldJob
from mtil.library.fold import FoldTraining
from mtil.library.samples import Epochs, ResidentSamples, Samples
from mtil.models.memory import limit_gpu_memory
from mtil.process.logs import log_json_to_stderr
from mtil.run.folder import Run
from mtil.run.priors import PriorMaps
from mtil.training.group import Group

PREEMPTION_WATCHER_VARIABLE = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
"""Environment variable of Ray Train; '0' turns off preemption warnings. Workers inherit it."""


def train_in_group(job: FoldJob) -> None:
    """Train a fold as one worker of a Ray Train group."""
    context = ray.train.get_context()
    group = Group(
        context.get_world_rank(),
        context.get_world_size(),
        ray.util.get_node_ip_address(),  # type: ignore[no-untyped-call]
        ray.train.report,
        _is_preempted if os.environ.get(PREEMPTION_WATCHER_VARIABLE) != "0" else None,
    )
    _run_training(job, group, _use_reserved_device())


def train_single_process(job: FoldJob, gpus: float) -> None:
    """Train a fold in the calling process alone.

    Args:
        job: the training.
        gpus: GPUs of the process, whole or a fraction; 0 for the CPU.
    """
    _run_training(job, Group(), torch.device("cuda" if gpus else "cpu"))


class StreamedSamples:
    """Stream the shards from storage through Ray Data, anew in each epoch."""

    def __init__(self, data_uri: str, priors: PriorMaps | None) -> None:
        self._data_uri, self._priors = data_uri, priors

    def epochs(self, plan: EpochPlan, epochs: range, first: int = 0) -> Epochs:
        """See `Samples.epochs`."""
        stream = iterate_streaming_epochs(
            self._data_uri, plan, epochs, first=first, priors=self._priors
        )
        with closing(stream):
            yield from zip(epochs, stream, strict=True)

    def validation(self, plan: EpochPlan, batch_size: int) -> Callable[[], Iterator[Batch]]:
        """See `Samples.validation`."""
        return lambda: iterate_streaming_batches(self._data_uri, plan, batch_size)


def _run_training(job: FoldJob, group: Group, device: torch.device) -> None:
    set_normal_scheduling()
    run = Run.open(job.run_uri)
    if device.type == "cuda":
        limit_gpu_memory(run.config.train.gpus_per_worker)
    elif job.num_threads is not None:
        torch.set_num_threads(job.num_threads)
    manifest = run.manifest(job.data_uri)
    labels = {"run": job.run_uri, **asdict(job.train)}
    log_json_to_stderr(**labels, rank=group.rank)
    samples: Samples
    if job.resident_tables is None:
        samples = StreamedSamples(job.data_uri, job.priors)
    else:
        samples = ResidentSamples(get_resident_tables(job.resident_tables, manifest))
    FoldTraining(
        run,
        job.train,
        manifest,
        samples,
        device,
        group=group,
        should_continue=job.should_continue,
        set_gauges=Gauges(TRAINING_GAUGES, **labels).set if group.is_first else None,
    ).finish()


def _use_reserved_device() -> torch.device:
    """Return the GPU reserved by Ray for this process, or the CPU. Makes the GPU current."""
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    # Imported late: the import takes a second and much memory, which CPU workers save.
    from ray.train.torch import get_device

    device = get_device()
    torch.cuda.set_device(device)
    return device


def _is_preempted() -> bool:
    return ray.train.get_preemption_info() is not None
