"""Images per second and memory of `mtil prepare`, by the number of images.

    python -m benchmarks.prepare [--num-images 1000 10000 100000] [--image-size 128] [--on-ray]

Phantoms are drawn once; each preparation is a process of its own, whose memory is read from the
outside: proportional set size, of it and all its children together. With `--on-ray` the smallest
collection is prepared on a local Ray as well, and its shards must be the same bytes.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.common import show
from mtil.data import manifest as manifests
from mtil.data import phantom, shards
from mtil.data.duplicates import describe, find_pairs
from mtil.data.inspection import inspect
from mtil.storage import open_store

_SAMPLE_EVERY_S = 0.5


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds and the most memory that it and its children had."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    most = [0]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_EVERY_S):
            most[0] = max(most[0], memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    over.set()
    watcher.join()
    if code:
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return {"seconds": time.perf_counter() - start, "peak_memory_gib": most[0] / 2**30}


def memory(pid: int) -> int:
    """Return the proportional set size in bytes of a process and its children."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass  # it has just ended
    return total


def prepared(source: Path, to: Path, image_size: int, *options: str) -> dict[str, Any]:
    """Prepare a collection and say how that went."""
    command = [
        sys.executable, "-m", "mtil", "prepare", str(source), "--layout", "busi", "--to", str(to),
        "--image-size", str(image_size), *options,
    ]  # fmt: skip
    found = measured(command)
    made = inspect(open_store(str(to)))
    return {
        **found,
        "images_per_second": made.manifest.read / found["seconds"],
        "kept": made.manifest.num_rows,
        "duplicate_groups": made.duplicate_groups,
    }


def audited(to: Path) -> float:
    """Return the seconds that the search for near-copies takes, on what a data set holds."""
    store = open_store(str(to))
    made = manifests.load(store)
    hashes, thumbs = [], []
    for shard in made.shards:
        rows = shards.pixels(shards.read(store, shard, ["image"]).column("image"))
        for pixels in rows:
            found = describe(pixels.reshape(made.image_size, made.image_size))
            hashes.append(found.hashes)
            thumbs.append(found.thumb)
    start = time.perf_counter()
    find_pairs(np.stack(hashes), np.stack(thumbs))
    return time.perf_counter() - start


def digests(to: Path) -> dict[str, str]:
    """Return the sha256 of every shard."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((to / "shards").iterdir())
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--image-size", type=int, default=128, help="of phantoms and data set")
    parser.add_argument("--on-ray", action="store_true", help="the smallest on Ray as well")
    options = parser.parse_args()
    sizes = sorted(options.num_images)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        scratch = Path(folder)
        for number in sizes:
            source = scratch / f"phantoms-{number}"
            phantom.write(source, num_images=number, seed=0, image_size=options.image_size)
            to = scratch / f"data-{number}"
            results[str(number)] = prepared(source, to, options.image_size)
            results[str(number)]["search_seconds"] = audited(to)
        on_ray = None
        if options.on_ray:
            to = scratch / "data-ray"
            on_ray = prepared(scratch / f"phantoms-{sizes[0]}", to, options.image_size, "--on-ray")
            on_ray["same_bytes"] = digests(to) == digests(scratch / f"data-{sizes[0]}")
    slowest, quickest = (results[str(n)]["images_per_second"] for n in (sizes[-1], sizes[0]))
    show(
        {
            "benchmark": "prepare",
            "image_size": options.image_size,
            "cpus": os.cpu_count(),
            "by_number": results,
            "on_ray": on_ray,
            "goals": {
                "largest_over_smallest_images_per_second": {
                    "value": slowest / quickest, "goal": 0.9
                },
                "peak_memory_gib": {
                    "value": max(found["peak_memory_gib"] for found in results.values()),
                    "goal": 1.5,
                },
                "search_seconds": {"value": results[str(sizes[-1])]["search_seconds"], "goal": 600},
            },
        }
    )  # fmt: skip


if __name__ == "__main__":
    main()
