"""Images per second and memory of `mtil prepare`, by the number of images.

    python -m benchmarks.prepare [--num-images 1000 10000 100000] [--image-size 128]
                                 [--on-ray 10000] [--append 1000] [--crowd 100000]

The images are phantoms. One image in twenty is a near-copy; all further images are separate
drawings. Each preparation runs in a separate process. Memory is the proportional set size of the
process and all descendants, sampled from outside. The options add measurements: `--on-ray` prepares
the set of the given size on a local Ray, too, and compares the bytes of the shards; `--append`
appends the given number of new images to the largest set; `--crowd` searches the given number of
noisy frames of a dark image for near-copies, the hardest case.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mtil import phantom
from mtil.data import parallel
from mtil.data.append.pipeline import append_images
from mtil.data.audit import findings
from mtil.data.audit.duplicates import describe_image, find_near_copies
from mtil.data.dataset import manifest as manifests
from mtil.data.folds import groups
from mtil.data.inspection import inspect_dataset
from mtil.data.parallel import ImagesListener, JobFunction, JobRunner
from mtil.data.prepare import pipeline
from mtil.data.prepare.sources import CollectionSource
from mtil.phantom.drawing import draw_phantom
from mtil.storage import open_store

_SAMPLE_EVERY_S = 0.5
_COPIES = 20
"""One image in `_COPIES` is a near-copy."""
_PHASES = ("reading", "audit", "writing")


def measured(options: Sequence[str]) -> dict[str, Any]:
    """Run a part of the benchmark as a process. Return the printed result and the memory."""
    command = [sys.executable, "-m", "benchmarks.prepare", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    samples: list[tuple[float, int]] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_SAMPLE_EVERY_S):
            samples.append((time.time(), memory(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    stdout, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    found: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    times: dict[str, list[float]] = found.pop("phases", {})
    return found | {
        "peak_memory_gib": max(size for _, size in samples) / 2**30,
        "seconds_of": {name: end - start for name, (start, end) in times.items()},
        "peak_memory_gib_of": {
            name: max((size for at, size in samples if start <= at <= end), default=0) / 2**30
            for name, (start, end) in times.items()
        },
    }


def memory(pid: int) -> int:
    """Return the proportional set size in bytes of a process and all descendants."""
    total = 0
    try:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            total += process.memory_full_info().pss
    except psutil.NoSuchProcess:
        pass  # the process has just ended
    return total


def prepared(source: str, to: str, *, image_size: int, on_ray: bool) -> dict[str, Any]:
    """Prepare a set. Return speed, counts, and the times of the phases."""
    marks: list[tuple[float, float]] = []
    start = time.perf_counter()
    with ExitStack() as stack:
        runner: JobRunner = parallel.run_in_processes
        if on_ray:
            from mtil.distributed.data.job_tasks import run_ray_tasks
            from mtil.distributed.runtime import cluster

            stack.enter_context(cluster.connect_ray())
            runner = run_ray_tasks

        made = pipeline.prepare(
            [CollectionSource(uri=source, layout="busi")],
            to,
            pipeline.Settings(image_size=image_size),
            runner=timed(runner, marks),
        )
    seconds = time.perf_counter() - start
    return phases(marks) | {
        "seconds": seconds,
        "images_per_second": made.read / seconds,
        "kept": made.num_rows,
        "shards": len(made.shards),
        "duplicate_groups": inspect_dataset(open_store(to)).duplicate_groups,
    }


def appended(source: str, to: str) -> dict[str, Any]:
    """Append the images of a table to a set. Return counts and the times of the phases."""
    marks: list[tuple[float, float]] = []
    start = time.perf_counter()
    made = append_images(
        [CollectionSource(uri=source, layout="table")],
        to,
        runner=timed(parallel.run_in_processes, marks),
    )
    seconds = time.perf_counter() - start
    return phases(marks) | {
        "seconds": seconds,
        "added": made.num_added,
        "dropped": len(made.dropped),
        "kept": made.manifest.num_rows,
    }


def timed(runner: JobRunner, marks: list[tuple[float, float]]) -> JobRunner:
    """Return a runner. Append wall time and CPU time to `marks` before and after each call."""

    def run(
        function: JobFunction[Any, Any],
        jobs: Sequence[Any],
        sizes: Sequence[int],
        listen: ImagesListener,
    ) -> list[Any]:
        marks.append((time.time(), cpu_seconds()))
        done = runner(function, jobs, sizes, listen)
        marks.append((time.time(), cpu_seconds()))
        return done

    return run


def phases(marks: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return start, end and CPU time of reading, audit and writing."""
    return {
        "cpu_seconds_of": {
            name: marks[at + 1][1] - marks[at][1] for at, name in enumerate(_PHASES)
        },
        "phases": {name: [marks[at][0], marks[at + 1][0]] for at, name in enumerate(_PHASES)},
    }


def cpu_seconds() -> float:
    """Return the CPU time of the process and all finished children."""
    return sum(os.times()[:4])


def crowded(num_images: int) -> dict[str, Any]:
    """Search noisy frames of a dark image with few gray levels for near-copies."""
    dark = draw_phantom(0, 0, 128).gray / 10.0
    hashes, thumbs = [], []
    for index in range(num_images):
        noise = np.random.default_rng(index).normal(0, 1, dark.shape)
        found = describe_image((dark + noise).round().clip(0, 255).astype(np.uint8))
        hashes.append(found.hashes)
        thumbs.append(found.thumb)
    stacked = np.stack(hashes), np.stack(thumbs)
    del hashes, thumbs
    began, cpu_began = time.time(), cpu_seconds()
    pairs = find_near_copies(*stacked)
    ended, cpu_ended = time.time(), cpu_seconds()
    members = groups.find_components(
        ((str(index), []) for index in range(num_images)),
        [(str(pair.i), str(pair.j)) for pair in pairs],
    )
    return {
        "cpu_seconds_of": {"search": cpu_ended - cpu_began},
        "pairs": len(pairs),
        "share_in_largest_group": max(len(group) for group in members) / num_images,
        "phases": {"search": [began, ended]},
    }


def planted(source: Path, to: Path) -> dict[str, Any]:
    """Compare the pairs found by the audit with the planted near-copies."""
    with (source / phantom.DUPLICATES_FILE).open(encoding="utf-8") as file:
        original = {row["sample_id"]: row["original"] for row in csv.DictReader(file)}
    store = open_store(str(to))
    made = manifests.load_manifest(store)
    images = findings.read_audit_table(store, made, findings.IMAGES_FILE).select(
        ["sample_id", "twins"]
    )
    twins = dict(zip(*(column.to_pylist() for column in images.columns), strict=True))
    pairs = findings.read_audit_table(store, made, findings.PAIRS_FILE)
    found = zip(*(pairs.column(f"sample_id_{which}").to_pylist() for which in "ab"), strict=True)
    return {
        "planted": len(original),
        "joined": sum(twins[copy] == twins[of] for copy, of in original.items()),
        "pairs": pairs.num_rows,
        "wrong_pairs": sum(
            original.get(one, one) != original.get(other, other) for one, other in found
        ),
    }


def digests(to: Path) -> dict[str, str]:
    """Return the sha256 of every shard by file name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((to / "shards").iterdir())
    }


def main() -> None:
    """Measure a single preparation, or all preparations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--image-size", type=int, default=128, help="of phantoms and data set")
    parser.add_argument("--on-ray", type=int, default=0, help="one of the sizes, on Ray as well")
    parser.add_argument("--append", type=int, default=0, help="new images, for the largest set")
    parser.add_argument("--crowd", type=int, default=0, help="noisy frames of a dark image")
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        what, *values = options.only
        if what == "crowd":
            done = crowded(int(values[0]))
        elif what == "append":
            done = appended(*values)
        else:
            done = prepared(*values, image_size=options.image_size, on_ray=what == "on-ray")
        print(json.dumps(done))
        return
    from benchmarks.common import show  # here, to keep torch out of the measured processes

    results: dict[str, Any] = {}
    crowd = measured(["--only", "crowd", str(options.crowd)]) if options.crowd else None
    sizes = sorted(options.num_images)
    if options.on_ray and options.on_ray not in sizes:
        parser.error(f"--on-ray must be one of --num-images, but got {options.on_ray}")
    with tempfile.TemporaryDirectory(prefix="mtil-benchmark-") as folder:
        for number in sizes:
            results[str(number)] = _one(Path(folder), number, options.image_size)
        on_ray = (
            _on_ray(Path(folder), options.on_ray, options.image_size) if options.on_ray else None
        )
        more = (
            _append(Path(folder), sizes[-1], options.append, options.image_size)
            if options.append
            else None
        )
    largest, smallest = results[str(sizes[-1])], results[str(sizes[0])]
    speed = largest["images_per_second"] / smallest["images_per_second"]
    peak = max(found["peak_memory_gib"] for found in results.values())
    show(
        {
            "benchmark": "prepare",
            "image_size": options.image_size,
            "cpus": os.cpu_count(),
            "by_number": results,
            "on_ray": on_ray,
            "append": more,
            "crowd": crowd,
            "goals": {
                "largest_over_smallest_images_per_second": {"value": speed, "goal": 0.9},
                "peak_memory_gib": {"value": peak, "goal": 1.5},
                "audit_seconds": {"value": largest["seconds_of"]["audit"], "goal": 600},
            },
        }
    )


def _one(scratch: Path, number: int, image_size: int) -> dict[str, Any]:
    source, to = scratch / f"phantoms-{number}", scratch / f"data-{number}"
    copies = number // _COPIES
    phantom.write_phantoms(
        source,
        num_images=number - copies,
        seed=0,
        image_size=image_size,
        num_duplicates=copies,
        workers=os.cpu_count() or 1,
    )
    only = ["--image-size", str(image_size), "--only", "prepare", str(source), str(to)]
    found = measured(only) | planted(source, to)
    print(f"{number}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _on_ray(scratch: Path, number: int, image_size: int) -> dict[str, Any]:
    source, to = scratch / f"phantoms-{number}", scratch / "data-ray"
    only = ["--image-size", str(image_size), "--only", "on-ray", str(source), str(to)]
    found = measured(only)
    return found | {"same_bytes": digests(to) == digests(scratch / f"data-{number}")}


def _append(scratch: Path, number: int, more: int, image_size: int) -> dict[str, Any]:
    source, copies = scratch / "more", more // _COPIES
    phantom.write_phantoms(
        source,
        num_images=more - copies,
        seed=1,
        image_size=image_size,
        num_duplicates=copies,
    )
    with (source / "more.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "masks", "label"])
        for image in sorted(source.glob("*/*).png")):
            masks = sorted(image.parent.glob(f"{image.stem}_mask*.png"))
            label = image.parent.name
            names = [] if label == "normal" else [f"{label}/{mask.name}" for mask in masks]
            table.writerow([f"{label}/{image.name}", "|".join(names), label])
    return measured(["--only", "append", str(source / "more.csv"), str(scratch / f"data-{number}")])


if __name__ == "__main__":
    main()
