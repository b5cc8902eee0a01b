"""Speed of one training on 1, 2, 4, … workers: efficiency, communication and waiting for data.

    python -m benchmarks.scaling [--image-size 160] [--batch-size 16] [--rounds 3]

A worker is a process with one CPU thread or one GPU; the number of workers goes up to the number of
CPUs or GPUs. The engine trains fold 0 of BUSI, or of phantoms, from rows in memory, without Ray.

* Strong scaling: all workers share a batch of fixed size. Weak scaling: the batch grows with the
  number of workers.
* Efficiency: images per second per worker, divided by the images per second of a single worker.
* Communication: the processes alternate between training together and training side by side
  without exchange, with equal batches per worker. Communication is the share of a step added by
  the exchange, including the time of waiting for slower workers.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.spawn import spawn

from benchmarks.common import images, prepared, show, spread
from mtil.config import Config, config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.batches import Batch, EpochPlan, TableRows
from mtil.data.dataset.epochs import iterate_resident_epoch
from mtil.data.dataset.selection import select_rows
from mtil.data.dataset.shards import read_shard
from mtil.process.memory import CPU_MALLOC_SETTINGS
from mtil.storage import open_store
from mtil.training.engine import TrainingEngine
from mtil.training.group import Group

MALIGNANT_SHARE = 0.3
WARM_UP_STEPS = 2
ON_GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Job:
    """A measurement with a fixed number of workers."""

    data_uri: str
    config: Config
    num_workers: int
    num_steps: int
    rounds: int


def plan_rows(job: Job, rank: int) -> EpochPlan:
    """Return the epoch plan of a worker."""
    manifest = manifests.load_manifest(open_store(job.data_uri))
    return EpochPlan(
        manifest=manifest,
        selection=select_rows(manifest, 0, "train"),
        seed=0,
        rank=rank,
        num_workers=job.num_workers,
        batch_size=job.config.train.batch_size,
        streams=job.config.data.streams,
        shuffle_shards=job.config.data.shuffle_shards,
    )


def endless_batches(rows: TableRows, plan: EpochPlan) -> Iterator[Batch]:
    """Yield the batches of a worker, epoch after epoch."""
    epoch = 0
    while True:
        yield from iterate_resident_epoch(rows, plan, epoch)
        epoch += 1


class Waiting:
    """Iterator over batches. Sums up the seconds of waiting for a batch."""

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self._batches, self._count = batches, count
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._count):
            start = time.perf_counter()
            batch = next(self._batches)
            self.seconds += time.perf_counter() - start
            yield batch


def measure_steps(
    engine: TrainingEngine, batches: Iterator[Batch], num_steps: int, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of a step, and the share of the time spent waiting for data."""
    waiting = Waiting(batches, num_steps)
    torch.distributed.barrier()
    start = time.perf_counter()
    for _ in engine.train_epoch(waiting, epoch=0):
        pass
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return seconds / num_steps, waiting.seconds / seconds


def run_worker(rank: int, job: Job, url: str, folder: str) -> None:
    """Measure as a worker: in turn with exchange and without exchange between the workers."""
    torch.set_num_threads(1)
    device = torch.device("cuda", rank) if ON_GPU else torch.device("cpu")
    if ON_GPU:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if ON_GPU else "gloo", init_method=url, rank=rank, world_size=job.num_workers
    )
    store = open_store(job.data_uri)
    plan = plan_rows(job, rank)
    rows = TableRows([read_shard(store, shard) for shard in plan.manifest.shards], plan.selection)
    batches = endless_batches(rows, plan)
    engines = {
        name: TrainingEngine(
            job.config,
            steps_per_epoch=job.num_steps,
            malignant_share=MALIGNANT_SHARE,
            device=device,
            group=group,
        )
        for name, group in (("together", Group(rank, job.num_workers)), ("alone", Group()))
    }
    for engine in engines.values():
        measure_steps(engine, batches, WARM_UP_STEPS, device)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for _ in range(job.rounds):
        for name, engine in engines.items():
            times[name].append(measure_steps(engine, batches, job.num_steps, device))
    if rank == 0:
        np.save(Path(folder) / "times.npy", np.array([times["together"], times["alone"]]))
    torch.distributed.destroy_process_group()


def measure(job: Job) -> dict[str, Any]:
    """Return images per second, and the shares of communication and of waiting for data."""
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        url = f"file://{folder}/group"
        spawn(run_worker, (job, url, folder), nprocs=job.num_workers)  # type: ignore[no-untyped-call]
        (together, waits), (alone, _) = np.load(Path(folder) / "times.npy").transpose(0, 2, 1)
    return {
        "workers": job.num_workers,
        "batch_size": job.config.train.batch_size,
        "images_per_second": spread((job.config.train.batch_size / together).tolist()),
        "communication_share": spread((1 - alone / together).tolist()),
        "data_wait_share": spread(waits.tolist()),
    }


def with_efficiency(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the efficiency relative to the first result, with a single worker."""
    single = results[0]["images_per_second"]["median"]
    return [
        result | {"efficiency": result["images_per_second"]["median"] / result["workers"] / single}
        for result in results
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each number of workers")
    parser.add_argument("--weak", action="store_true", help="also measure weak scaling")
    options = parser.parse_args()
    if not ON_GPU:
        os.environ.update(CPU_MALLOC_SETTINGS)
    places = torch.cuda.device_count() if ON_GPU else (os.cpu_count() or 1)
    counts = [number for number in (1, 2, 4, 8, 16, 32, 64) if number <= places]
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        data_uri = str(scratch / "data")
        prepared(*images(scratch), data_uri, image_size=options.image_size)

        def scale(batch_sizes: Sequence[int]) -> list[dict[str, Any]]:
            results = []
            for num_workers, batch_size in zip(counts, batch_sizes, strict=True):
                train = {"num_workers": num_workers, "batch_size": batch_size}
                if ON_GPU:
                    train["gpus_per_worker"] = 1
                config = config_from_dict(
                    {"data": {"image_size": options.image_size}, "train": train}
                )
                job = Job(data_uri, config, num_workers, options.steps, options.rounds)
                results.append(measure(job))
            return with_efficiency(results)

        result = {"strong": scale([options.batch_size for _ in counts])}
        if options.weak:
            result["weak"] = scale([options.batch_size * number for number in counts])
    show({"image_size": options.image_size, **result})


if __name__ == "__main__":
    main()
