"""Write a folder of phantoms in BUSI's layout, with equal bytes for any number of processes."""

import csv
import io
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from mtil.data.dataset.shards import LABELS
from mtil.data.images.read import Gray, encode_mask_png
from mtil.data.parallel import exit_with_parent
from mtil.errors import DataError, RunError, StorageError
from mtil.phantom.cohort import Cohort, draw_cohort
from mtil.phantom.drawing import BENIGN, MALIGNANT, NORMAL, draw_phantom
from mtil.phantom.duplicates import NEAR_COPY_KINDS, make_near_copy
from mtil.process import interrupts

MAX_NUM_IMAGES = 10_000_000
"""Maximum images of a folder. The cohort needs up to 60 bytes of memory per image."""
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 64, 4096
"""Limits of the image size in pixels. Drawing a largest image needs one to two gigabytes."""
MAX_VIEWS = 1000
DUPLICATES_FILE = "duplicates.csv"
"""File with the near-copies, beside the class folders."""
PATIENTS_FILE = "patients.csv"
"""File with the patient of every image, beside the class folders; for `mtil prepare --groups`."""

_IMAGES_PER_TASK = 32
_TASKS_PER_WORKER = 3
"""Waiting and running tasks per worker process."""
_CROSS_CLASS_EVERY = 20
"""Every 20th near-copy is filed under the opposite tumour class."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An image to draw and write."""

    sample_id: str
    label: int
    """Class of the folder for the image."""
    patient: int
    view: int | None
    """View of the original image to draw."""
    number: int = -1
    """Index of the near-copy; -1 for an original."""
    original: str = ""
    """Sample id of a near-copy's original."""
    kind: str = ""
    """Kind of a near-copy; empty for an original."""


def write_phantoms(
    out: Path,
    *,
    num_images: int,
    seed: int,
    image_size: int = 256,
    num_duplicates: int = 0,
    max_views: int = 1,
    workers: int = 1,
) -> None:
    """Write images and masks in BUSI's layout. A failure leaves nothing behind.

    Near-copies are numbered after the originals of a class and listed in `duplicates.csv`
    (`sample_id`, `original`, `kind`). The kinds rotate, and every 20th near-copy lies in the
    opposite tumour class. `patients.csv` (`image_id`, `group`) lists the patient of every image; a
    near-copy belongs to the original's patient.

    Args:
        out: an empty or new folder.
        num_images: number of originals.
        seed: equal seeds give equal bytes. Without near-copies, more originals extend a folder and
            change no image.
        image_size: typical side of an image in pixels; sizes vary around `image_size`.
        num_duplicates: number of near-copies, at most `num_images`.
        max_views: largest number of images of a patient; the last patient has the remaining images.
            All views of a patient have one class.
        workers: number of drawing processes; no effect on the bytes. With more than one, a script
            must call `write_phantoms` below `if __name__ == "__main__"`.

    Raises:
        DataError: if the folder is not empty or a number is out of range.
        StorageError: if the folder cannot be written.
        RunError: if a worker process dies.
    """
    _check(num_images, seed, image_size, num_duplicates, max_views, workers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} must be an empty or new folder; empty it or choose another.")
    out = out.absolute()
    # The images are drawn beside the target, so that a rename publishes all of them at once.
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        originals = draw_cohort(num_images, seed, max_views)
        tasks = _tasks(_jobs(originals, seed, num_duplicates))
        if workers == 1:
            for jobs in tasks:
                _draw_into(partial, seed, image_size, jobs)
        else:
            _draw_parallel(partial, seed, image_size, tasks, workers)
        _list_patients(partial, _jobs(originals, seed, num_duplicates))
        if num_duplicates:
            _list_duplicates(partial, _jobs(originals, seed, num_duplicates))
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(
    num_images: int,
    seed: int,
    image_size: int,
    num_duplicates: int,
    max_views: int,
    workers: int,
) -> None:
    if not 1 <= num_images <= MAX_NUM_IMAGES:
        raise DataError(
            f"The number of images must be 1 to {MAX_NUM_IMAGES:,}, but got {num_images}."
        )
    if seed < 0:
        raise DataError(f"A seed must not be negative, but got {seed}.")
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise DataError(
            f"The size of images must be {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, but got "
            f"{image_size}."
        )
    if not 0 <= num_duplicates <= num_images:
        raise DataError(
            f"The number of near-copies must be 0 to {num_images}, the number of images, but got "
            f"{num_duplicates}."
        )
    if not 1 <= max_views <= MAX_VIEWS:
        raise DataError(f"Patients must have 1 to {MAX_VIEWS} views, but got {max_views}.")
    if workers < 1:
        raise DataError(f"The number of workers must be at least 1, but got {workers}.")


def _jobs(originals: Cohort, seed: int, num_duplicates: int) -> Iterator[_Job]:
    """Yield a job per original, then a job per near-copy."""
    num_images = len(originals.labels)
    for index in range(num_images):
        yield _original_job(originals, index)
    numbers = Counter(originals.labels.tolist())
    for number in range(num_duplicates):
        rng = np.random.default_rng((seed, number, 1))
        is_cross_class = number % _CROSS_CLASS_EVERY == _CROSS_CLASS_EVERY // 2
        index = int(rng.integers(num_images))
        # A normal image has no opposite tumour class.
        while is_cross_class and originals.labels[index] == NORMAL:
            index = int(rng.integers(num_images))
        job = _original_job(originals, index)
        label = job.label
        if is_cross_class:
            label = MALIGNANT if label == BENIGN else BENIGN
        numbers[label] += 1
        yield replace(
            job,
            sample_id=_sample_id(label, numbers[label]),
            label=label,
            number=number,
            original=job.sample_id,
            kind=NEAR_COPY_KINDS[number % len(NEAR_COPY_KINDS)],
        )


def _original_job(originals: Cohort, index: int) -> _Job:
    label = int(originals.labels[index])
    sample_id = _sample_id(label, int(originals.numbers[index]))
    view = None if originals.views is None else int(originals.views[index])
    return _Job(sample_id, label, int(originals.patients[index]), view)


def _tasks(jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    while task := list(islice(jobs, _IMAGES_PER_TASK)):
        yield task


def _sample_id(label: int, number: int) -> str:
    return f"{LABELS[label]} ({number})"


def _draw_into(folder: Path, seed: int, image_size: int, jobs: Sequence[_Job]) -> None:
    """Draw images and write them with their masks into the class folders."""
    for label in {job.label for job in jobs}:
        (folder / LABELS[label]).mkdir(exist_ok=True)
    for job in jobs:
        phantom = draw_phantom(seed, job.patient, image_size, job.view)
        # Random numbers depend on the image alone, not on the worker or the order.
        if job.kind:
            rng = np.random.default_rng((seed, job.number, 2))
            phantom = make_near_copy(rng, phantom, job.kind)
        stem = f"{LABELS[job.label]}/{job.sample_id}"
        (folder / f"{stem}.png").write_bytes(_png(phantom.gray))
        # BUSI's names: `_mask`, `_mask_1`, `_mask_2`.
        for index, mask in enumerate(phantom.masks):
            suffix = f"_{index}" if index else ""
            (folder / f"{stem}_mask{suffix}.png").write_bytes(encode_mask_png(mask))


def _draw_parallel(
    folder: Path, seed: int, image_size: int, tasks: Iterable[Sequence[_Job]], workers: int
) -> None:
    """Draw in worker processes with `_TASKS_PER_WORKER` tasks in flight per worker.

    Memory therefore does not grow with the number of tasks.
    """
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("forkserver"),
        initializer=exit_with_parent,
    )
    try:
        running: set[Future[None]] = set()
        for jobs in tasks:
            if len(running) >= workers * _TASKS_PER_WORKER:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                _raise_first(done)
            with interrupts.block_sigint_in_children():
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
    """Raise the error of the first failed task, if any."""
    for future in done:
        future.result()


def _list_patients(folder: Path, jobs: Iterable[_Job]) -> None:
    rows = ((job.sample_id, f"patient {job.patient + 1}") for job in jobs)
    _write_csv(folder / PATIENTS_FILE, ("image_id", "group"), rows)


def _list_duplicates(folder: Path, jobs: Iterable[_Job]) -> None:
    rows = ((job.sample_id, job.original, job.kind) for job in jobs if job.kind)
    _write_csv(folder / DUPLICATES_FILE, ("sample_id", "original", "kind"), rows)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _png(gray: Gray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
