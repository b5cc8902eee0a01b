"""Training speed of a fold on a GPU, by precision, `torch.compile` and CUDA graphs.

    python -m benchmarks.gpu [--data URI] [--epochs 4] [--ways bare resident streaming side_by_side]

All variants train with the preset `base`: first the engine alone on batches in memory, then a
single Ray worker with rows resident or streamed, all of fold 0; then folds 0 to 2 side by side,
each with a third of the GPU. Results are images per second without the first epoch (compilation),
summed over folds; the share of a step spent waiting for data (with Ray); the GPU utilisation
sampled by the driver; and the seconds of the first epoch. Needs an NVIDIA GPU.
"""

import argparse
import json
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.common import images, prepared, show, spread
from benchmarks.step import memory_batches
from mtil.circle.request import request_trainings
from mtil.config import Config
from mtil.presets import base
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.training.engine import TrainingEngine

WAYS = ("bare", "resident", "streaming", "side_by_side")
NUM_SIDE_BY_SIDE = 3
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp32_cuda_graphs": {"precision": "fp32", "cuda_graphs": True},
    "bf16_cuda_graphs": {"precision": "bf16", "cuda_graphs": True},
    "fp32_compiled": {"precision": "fp32", "compile": True},
    "bf16_compiled": {"precision": "bf16", "compile": True},
    "bf16_compiled_cuda_graphs": {"precision": "bf16", "compile": True, "cuda_graphs": True},
}
_SAMPLE_MS = 100


class Utilisation:
    """Samples of the GPU utilisation with their times."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def between(self, start: float, stop: float) -> float | None:
        """Return the mean utilisation between two times of `time.time`; None without samples."""
        found = [share for moment, share in self.samples if start <= moment <= stop]
        return mean(found) if found else None

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """Sample while the block runs."""
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        with subprocess.Popen(
            ["nvidia-smi", *query, f"--loop-ms={_SAMPLE_MS}"], stdout=subprocess.PIPE, text=True
        ) as process:
            reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)
            reader.start()
            try:
                yield
            finally:
                process.terminate()
                reader.join()

    def _read(self, lines: Any) -> None:
        for line in lines:
            self.samples.append((time.time(), float(line) / 100))


def configured(variant: str, way: str, num_epochs: int, batch_size: int) -> Config:
    """Return the preset `base` with the switches of a variant."""
    config = base()
    return replace(
        config,
        data=replace(config.data, mode="streaming" if way == "streaming" else "resident"),
        train=replace(
            config.train,
            num_epochs=num_epochs,
            batch_size=batch_size,
            gpus_per_worker=1 / NUM_SIDE_BY_SIDE if way == "side_by_side" else 1.0,
            **VARIANTS[variant],
        ),
    )


def bare(data_uri: str, config: Config, utilisation: Utilisation) -> dict[str, Any]:
    """Train by the engine alone on batches in memory."""
    torch.compiler.reset()
    torch.cuda.reset_peak_memory_stats()
    epochs = range(config.train.num_epochs)
    batches = [memory_batches(data_uri, config, epoch) for epoch in epochs]
    engine = TrainingEngine(
        config,
        steps_per_epoch=len(batches[0]),
        malignant_share=0.3,
        device=torch.device("cuda"),
    )
    moments, loss = [time.time()], 0.0
    for epoch in epochs:
        for step in engine.train_epoch(batches[epoch], epoch=epoch):
            last = step
        loss = sum(float(term) for term in last.terms.values())  # waits for the GPU
        moments.append(time.time())
    seconds = [after - before for before, after in pairwise(moments[1:])]
    num_images = len(batches[0]) * config.train.batch_size
    return {
        "images_per_second": spread([num_images / second for second in seconds]),
        "first_epoch_seconds": moments[1] - moments[0],
        "utilisation": utilisation.between(moments[1], moments[-1]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "last_loss": loss,
    }


def through_ray(
    data_uri: str, run_uri: str, config: Config, folds: Sequence[int], utilisation: Utilisation
) -> dict[str, Any]:
    """Train folds through Ray, each in a worker process."""
    from mtil.distributed.training.folds import run_trainings

    moments: list[float] = []

    def listen(line: dict[str, Any]) -> None:
        if line["kind"] == "epoch":
            moments.append(time.time())

    start = time.time()
    run_trainings(request_trainings(data_uri, run_uri, config, folds), listen)
    stop = time.time()
    run = Run.open(run_uri)
    histories = [run.history(Train(0, fold)) for fold in folds]
    # Each element holds the same epoch of all folds.
    first, *epochs = zip(*histories, strict=True)
    began = len(folds) - 1
    return {
        "images_per_second": spread(
            [sum(fold["images_per_second"] for fold in epoch) for epoch in epochs]
        ),
        "data_wait_share": spread([fold["data_wait_share"] for epoch in epochs for fold in epoch]),
        "first_epoch_seconds": max(fold["seconds"] for fold in first),
        "utilisation": utilisation.between(moments[began], moments[-1]) if moments else None,
        "seconds": stop - start,
        "last_loss": mean(
            fold["loss_segmentation"] + fold["loss_classification"] for fold in epochs[-1]
        ),
    }


def measure(
    data_uri: str, scratch: Path, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure every variant in every way."""
    utilisation = Utilisation()
    found: dict[str, dict[str, dict[str, Any]]] = {variant: {} for variant in options.variants}
    with utilisation.sampled():
        for variant in options.variants if "bare" in options.ways else ():
            config = configured(variant, "bare", options.epochs, options.batch_size)
            found[variant]["bare"] = bare(data_uri, config, utilisation)
            print(variant, "bare", json.dumps(found[variant]["bare"]), flush=True)
        torch.cuda.empty_cache()
        ways: Sequence[str] = [way for way in options.ways if way != "bare"]
        if ways:
            from mtil.distributed.runtime import cluster

            with cluster.connect_ray():
                for variant in options.variants:
                    for way in ways:
                        config = configured(variant, way, options.epochs, options.batch_size)
                        run_uri = str(scratch / f"run-{variant}-{way}")
                        folds = range(NUM_SIDE_BY_SIDE if way == "side_by_side" else 1)
                        found[variant][way] = through_ray(
                            data_uri, run_uri, config, folds, utilisation
                        )
                        print(variant, way, json.dumps(found[variant][way]), flush=True)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a prepared data set; by default BUSI or phantoms")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of a training")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error("the first epoch is left out, so there must be two or more")
    if not torch.cuda.is_available():
        parser.error("there is no GPU here that PyTorch can use")
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        data_uri = options.data
        if data_uri is None:
            data_uri = str(scratch / "data")
            prepared(*images(scratch), data_uri, 256)
        found = measure(data_uri, scratch, options)
    show({"benchmark": "gpu", "epochs": options.epochs, "batch_size": options.batch_size,
          "variants": found})  # fmt: skip


if __name__ == "__main__":
    main()
