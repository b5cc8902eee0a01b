"""A folder of phantoms in BUSI's layout, written by one process or many to the same bytes."""

import csv
import io
import multiprocessing
import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from pathlib import Path

import numpy as np
from PIL import Image

from mtil.data.images import Gray, encode_mask_png
from mtil.data.phantom.drawing import BENIGN, MALIGNANT, NORMAL, PATTERN, draw, label_of
from mtil.data.phantom.duplicates import KINDS, duplicate
from mtil.data.shards import LABELS
from mtil.errors import DataError, RunError, StorageError

MIN_IMAGE_SIZE = 64
DUPLICATES = "duplicates.csv"
"""Lists the planted near-duplicates, beside the class folders."""

_IMAGES_A_TASK = 32
_TASKS_A_WORKER = 3
"""Tasks that wait or run, per worker; more are made as these end."""
_ACROSS_EVERY = 20
"""One in so many near-duplicates is filed under the other tumour class."""


@dataclass(frozen=True, slots=True)
class _Job:
    """One image to be drawn and written."""

    sample_id: str
    label: int
    """The class that it is filed under."""
    index: int
    """The original that is drawn."""
    number: int = -1
    """Which near-duplicate it is, or -1 for an original."""
    original: str = ""
    kind: str = ""


def write(
    out: Path,
    *,
    num_images: int,
    seed: int,
    image_size: int = 256,
    num_duplicates: int = 0,
    workers: int = 1,
) -> None:
    """Write images and masks in BUSI's layout, all of them or none.

    Near-duplicates are numbered after the originals of their class and listed in
    `duplicates.csv` (`sample_id`, `original`, `kind`); the kinds come in turn, and a few lie in
    the other tumour class.

    Args:
        out: a folder that is empty or does not exist.
        num_images: how many originals.
        seed: the same seed gives the same bytes, and more originals only add to fewer as long as
            there are no near-duplicates.
        image_size: typical side of an image; sizes vary around it.
        num_duplicates: how many near-duplicates to add to the originals.
        workers: how many processes draw; the bytes do not depend on it. With more than one, a
            script must call this below `if __name__ == "__main__"`.

    Raises:
        DataError: if the folder holds something, or a number makes no sense.
        StorageError: if the folder cannot be written.
        RunError: if a worker process dies.
    """
    _check(num_images, seed, image_size, num_duplicates, workers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} must be an empty or new folder; empty it or choose another.")
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        tasks = _tasks(_jobs(num_images, seed, num_duplicates))
        if workers == 1:
            for jobs in tasks:
                _draw_into(partial, seed, image_size, jobs)
        else:
            _draw_parallel(partial, seed, image_size, tasks, workers)
        if num_duplicates:
            _list_duplicates(partial, num_images, seed, num_duplicates)
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(num_images: int, seed: int, image_size: int, num_duplicates: int, workers: int) -> None:
    if num_images < 1:
        raise DataError(f"There must be at least one image, but num_images is {num_images}.")
    if seed < 0:
        raise DataError(f"A seed must not be negative, but got {seed}.")
    if image_size < MIN_IMAGE_SIZE:
        raise DataError(f"Images must be at least {MIN_IMAGE_SIZE} wide, but got {image_size}.")
    if num_duplicates < 0:
        raise DataError(f"The number of near-duplicates must be 0 or more; got {num_duplicates}.")
    if workers < 1:
        raise DataError(f"There must be at least one worker, but got {workers}.")


def _jobs(num_images: int, seed: int, num_duplicates: int) -> Iterator[_Job]:
    """Yield the originals, then the near-duplicates, with their names."""
    numbers: Counter[int] = Counter()
    for index in range(num_images):
        label = label_of(index)
        numbers[label] += 1
        yield _Job(_sample_id(label, numbers[label]), label, index)
    for number in range(num_duplicates):
        rng = np.random.default_rng((seed, number, 1))
        across = number % _ACROSS_EVERY == _ACROSS_EVERY // 2
        index = int(rng.integers(num_images))
        while across and label_of(index) == NORMAL:
            index = int(rng.integers(num_images))
        label = label_of(index)
        original = _sample_id(label, _number_in_class(index))
        if across:
            label = MALIGNANT if label == BENIGN else BENIGN
        numbers[label] += 1
        kind = KINDS[number % len(KINDS)]
        yield _Job(_sample_id(label, numbers[label]), label, index, number, original, kind)


def _tasks(jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    while task := list(islice(jobs, _IMAGES_A_TASK)):
        yield task


def _sample_id(label: int, number: int) -> str:
    return f"{LABELS[label]} ({number})"


def _number_in_class(index: int) -> int:
    """Return which of its class an original is, from 1."""
    label = label_of(index)
    tens, rest = divmod(index, len(PATTERN))
    return tens * PATTERN.count(label) + PATTERN[: rest + 1].count(label)


def _draw_into(folder: Path, seed: int, image_size: int, jobs: Sequence[_Job]) -> None:
    for label in {job.label for job in jobs}:
        (folder / LABELS[label]).mkdir(exist_ok=True)
    for job in jobs:
        phantom = draw(seed, job.index, image_size)
        if job.kind:
            rng = np.random.default_rng((seed, job.number, 2))
            phantom = duplicate(rng, phantom, job.kind)
        stem = f"{LABELS[job.label]}/{job.sample_id}"
        (folder / f"{stem}.png").write_bytes(_png(phantom.gray))
        for number, mask in enumerate(phantom.masks):
            end = f"_{number}" if number else ""
            (folder / f"{stem}_mask{end}.png").write_bytes(encode_mask_png(mask))


def _draw_parallel(
    folder: Path, seed: int, image_size: int, tasks: Iterable[Sequence[_Job]], workers: int
) -> None:
    """Draw in processes that are given a few tasks ahead, however many there are in all."""
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=_follow_parent,
    )
    try:
        running: set[Future[None]] = set()
        for jobs in tasks:
            if len(running) >= workers * _TASKS_A_WORKER:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                _raise_first(done)
            running.add(pool.submit(_draw_into, folder, seed, image_size, jobs))
        _raise_first(wait(running).done)
    except BrokenProcessPool:
        raise RunError(
            f"A worker process died while {workers} drew phantoms; "
            "ask for fewer workers if memory is short."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _raise_first(done: Iterable[Future[None]]) -> None:
    for future in done:
        future.result()


def _follow_parent() -> None:
    """Leave interrupts to the parent process, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _list_duplicates(folder: Path, num_images: int, seed: int, num_duplicates: int) -> None:
    with (folder / DUPLICATES).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("sample_id", "original", "kind"))
        for job in _jobs(num_images, seed, num_duplicates):
            if job.kind:
                rows.writerow((job.sample_id, job.original, job.kind))


def _png(gray: Gray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
