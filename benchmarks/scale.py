"""Speed and memory of streaming, for a large data set against a small data set.

    python -m benchmarks.scale [--num-rows 2000 100000] [--num-images 100000] [--repeats 3]

The data sets repeat rows under new ids at 256 px, in shards of 64 MiB on a real S3 server on the
loopback. Each measurement is a separate process. The process streams batches of 32 like a training
worker until `--num-images` images are seen, without further work. The first tenth of the images
does not count for speed: files and connections are opened, and processes start. Every half second
the process records its unshared memory and the used part of Ray's object store.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import images, multiplied, prepared, show, spread
from cluster import object_store
from mtil.config import DataConfig
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.batches import EpochPlan
from mtil.data.dataset.selection import RowSelection
from mtil.storage import open_store

BATCH, SIDE = 32, 256
BUCKET = "benchmark"
_SAMPLE_EVERY_S = 0.5
_WARM = 0.1
"""Share of the images streamed before the clock starts."""


def stream(uri: str, num_images: int) -> dict[str, float]:
    """Stream epochs of a data set until `num_images` images are seen. Return speed and memory."""
    import ray

    from mtil.distributed.data import ingest
    from mtil.distributed.runtime import cluster

    manifest = manifests.load_manifest(open_store(uri))
    everything = RowSelection(fold=0, role="test", num_parts=1)
    plan = EpochPlan(
        manifest=manifest,
        selection=everything,
        seed=0,
        rank=0,
        num_workers=1,
        batch_size=BATCH,
        streams=DataConfig().streams,
        shuffle_shards=DataConfig().shuffle_shards,
    )
    epochs = range(num_images // manifest.num_rows + 100)  # read-ahead never reaches the end
    batches = ingest.iterate_streaming_epochs(uri, plan, epochs)
    worker, store = [], []
    over = threading.Event()
    with cluster.connect_ray():
        room = _object_store(ray.cluster_resources())  # type: ignore[no-untyped-call]

        def watch() -> None:
            while not over.wait(_SAMPLE_EVERY_S):
                held = psutil.Process().memory_info()
                worker.append((held.rss - held.shared) / 2**30)
                free = _object_store(ray.available_resources())  # type: ignore[no-untyped-call]
                store.append((room - free) / 2**30)

        watcher = threading.Thread(target=watch)
        with closing(batches):  # stop reading before Ray shuts down
            watcher.start()
            seen, first, start = 0, 0, 0.0
            for batch in itertools.chain.from_iterable(batches):
                seen += len(batch)
                if not first and seen >= _WARM * num_images:
                    first, start = seen, time.monotonic()
                if seen >= num_images:
                    break
            seconds = time.monotonic() - start
            over.set()
            watcher.join()
    third = len(worker) // 3
    return {
        "images_per_second": (seen - first) / seconds,
        "worker_gib": max(worker),
        "worker_growth_gib": max(worker[-third:]) - max(worker[third : 2 * third]),
        "object_store_gib": max(store),
        "object_store_growth_gib": max(store[-third:]) - max(store[third : 2 * third]),
    }


def _object_store(resources: dict[str, float]) -> float:
    return resources.get("object_store_memory", 0.0)


def main() -> None:
    """Measure a single stream, or all streams in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-rows", type=int, nargs=2, default=[2000, 100_000])
    parser.add_argument("--num-images", type=int, default=100_000, help="images of a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(stream(options.only, options.num_images)))
        return
    found: dict[int, list[dict[str, float]]] = {number: [] for number in options.num_rows}
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        with object_store.run_object_store(scratch / "s3", BUCKET) as environment:
            os.environ.update(environment)
            source, groups = images(scratch)
            prepared(source, groups, f"s3://{BUCKET}/base", SIDE)
            for number in options.num_rows:
                multiplied(f"s3://{BUCKET}/base", _uri(number), number)
            for _, number in itertools.product(range(options.repeats), options.num_rows):
                found[number].append(_in_a_process(number, options.num_images))
    show(_summary(found, options.num_images, source.name))


def _uri(num_rows: int) -> str:
    return f"s3://{BUCKET}/rows-{num_rows}"


def _in_a_process(num_rows: int, num_images: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scale", "--only", _uri(num_rows)]
    command += ["--num-images", str(num_images)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{num_rows} rows: {json.dumps(result)}", file=sys.stderr, flush=True)
    return result


def _summary(
    found: dict[int, list[dict[str, float]]], num_images: int, source: str
) -> dict[str, Any]:
    by_rows = {
        number: {name: spread([one[name] for one in several]) for name in several[0]}
        for number, several in found.items()
    }
    small, large = by_rows.values()

    def ratio(name: str) -> float:
        return large[name]["median"] / small[name]["median"]

    return {
        "benchmark": "scale",
        "images": source,
        "images_streamed": num_images,
        "batch_size": BATCH,
        "image_size": SIDE,
        "by_rows": by_rows,
        "goals": {
            "images_per_second_large_over_small": {
                "value": ratio("images_per_second"),
                "goal": 0.9,
            },
            "worker_memory_large_over_small": {"value": ratio("worker_gib"), "goal": 1.1},
            "object_store_large_over_small": {"value": ratio("object_store_gib"), "goal": 1.1},
        },
    }


if __name__ == "__main__":
    main()
