"""Train folds in the calling process, without Ray."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mtil import presets
from mtil.circle.request import TrainingRequest, request_trainings
from mtil.config import Config
from mtil.errors import ResourceError
from mtil.library.fold import FoldTraining
from mtil.library.samples import ResidentSamples, Samples, StoredSamples, fits_in_memory
from mtil.process.limits import num_cpus
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Train
from mtil.run.priors import read_training_table
from mtil.run.relay import GuardedListener, ProgressListener, relay_progress
from mtil.run.threads import choose_num_threads, settle_num_threads

if TYPE_CHECKING:
    from collections.abc import Iterator


def train_fold(
    config: Config | str,
    data: str,
    run: str,
    fold: int = 0,
    *,
    data_version: int | None = None,
    listen: Callable[[dict[str, Any]], None] = lambda line: None,
) -> FoldResult:
    """Train one fold in this process, without Ray, or resume an interrupted training.

    A fold with a result is not trained again. Training with one Ray worker writes equal files and,
    with the same number of CPU threads, equal weights.

    Args:
        config: a configuration, the name of a preset (`demo`, `cpu`, `best`, `base`) or the path of
            a YAML file. `train.num_workers` is set to 1.
        data: path or URI of a prepared data set.
        run: path or URI of the run; created if missing.
        fold: the fold to hold out for testing, from 0.
        data_version: version of the data set; by default the version used by the run, or the newest
            version for a new run.
        listen: called with a dictionary for each `step`, `epoch` and `done` line of the progress
            (key `kind`), mostly from a background thread.

    Returns:
        the committed result: best epoch, figures on the inner validation rows, model digest.

    Raises:
        ConfigError: if the configuration is invalid, or differs from the configuration of the run.
        DataError: if the data set is missing or damaged, lacks the fold, or differs from the data
            set of the run.
        CheckpointError: if the latest checkpoint is damaged.
        ResourceError: if the configuration requests a GPU, but PyTorch finds no GPU.

    Example:
        >>> import mtil
        >>> result = mtil.train_fold(config, data, run, fold=0)
        >>> result.fold, sorted(result.metrics)
        (0, ['auc', 'dice', 'f1', 'score'])
    """
    if isinstance(config, str):
        config = presets.load_config(config)
    request = request_trainings(
        data, run, with_one_worker(config), [fold], data_version=data_version
    )
    (result,) = train_folds(request, listen)
    return result


def with_one_worker(config: Config) -> Config:
    """Return a copy of a configuration with one worker."""
    return replace(config, train=replace(config.train, num_workers=1, min_workers=None))


def train_folds(request: TrainingRequest, listen: ProgressListener) -> list[FoldResult]:
    """Train folds one after the other in this process. Folds with a result are skipped.

    Args:
        request: the folds, from `request_trainings`, with a configuration for one worker.
        listen: called with `step`, `epoch` and `done` lines of the progress.

    Returns:
        the results of all folds, in the order of the request.

    Raises:
        DataError: if a shard is missing or damaged.
        CheckpointError: if the latest checkpoint of a fold is damaged.
        ResourceError: if the configuration requests a GPU, but PyTorch finds no GPU.
    """
    # Before the run is created: a request without a GPU leaves no run behind.
    device = choose_device(request.config.train.gpus_per_worker)
    run = request.create()
    results = []
    samples: Samples | None = None
    for training in (Train(0, fold) for fold in request.folds):
        if run.result(training) is None:
            # Loaded once for all folds, and only if a fold needs training.
            samples = samples or _open_samples(request)
            with _use_run_threads(run, device), relay_progress(run, training, listen):
                FoldTraining(run, training, request.manifest, samples, device).finish()
            GuardedListener(listen)({"kind": "done", "fold": training.fold})
        result = run.result(training)
        assert result is not None
        results.append(result)
    return results


def choose_device(gpus: float) -> torch.device:
    """Return the CPU device if `gpus` is 0, otherwise the GPU.

    Raises:
        ResourceError: if `gpus` is not 0, but PyTorch finds no GPU.
    """
    if not gpus:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(
            f"`train.gpus_per_worker` is {gpus:g}, but PyTorch sees no GPU on this machine; add "
            "`--train.gpus-per-worker 0`, or train with the preset `cpu`."
        )
    return torch.device("cuda")


def _open_samples(request: TrainingRequest) -> Samples:
    manifest = request.manifest
    if not fits_in_memory(manifest, request.config.data):
        return StoredSamples(request.data_uri)
    tables = [read_training_table(request.data_uri, shard, None) for shard in manifest.shards]
    return ResidentSamples(tables)


@contextmanager
def _use_run_threads(run: Run, device: torch.device) -> "Iterator[None]":
    """Set the CPU threads of the run during the block, then restore the caller's number."""
    if device.type != "cpu":
        yield
        return
    proposed = choose_num_threads(run.config, num_cpus)
    previous = torch.get_num_threads()
    torch.set_num_threads(settle_num_threads(run, proposed))
    try:
        yield
    finally:
        torch.set_num_threads(previous)
