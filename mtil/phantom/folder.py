"""A folder of phantoms in BUSI's layout, written by one process or many to the same bytes."""

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
from mtil.data.parallel import follow_parent
from mtil.errors import DataError, RunError, StorageError
from mtil.phantom.cohort import Cohort, cohort
from mtil.phantom.drawing import BENIGN, MALIGNANT, NORMAL, draw
from mtil.phantom.duplicates import KINDS, duplicate
from mtil.process import interrupts

MAX_NUM_IMAGES = 10_000_000
"""Whose they are is held in memory, at up to 60 bytes an image."""
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 64, 4096
"""In pixels; one of the largest takes a gigabyte or two to draw."""
MAX_VIEWS = 1000
DUPLICATES = "duplicates.csv"
"""Lists the planted near-duplicates, beside the class folders."""
PATIENTS = "patients.csv"
"""Lists whose image each is, beside the class folders, as `mtil prepare --groups` takes it."""

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
    patient: int
    view: int | None
    """Of the original that is drawn."""
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
    max_views: int = 1,
    workers: int = 1,
) -> None:
    """Write images and masks in BUSI's layout, all of them or none.

    Near-duplicates are numbered after the originals of their class and listed in
    `duplicates.csv` (`sample_id`, `original`, `kind`); the kinds come in turn, and a few lie in
    the other tumour class. `patients.csv` (`image_id`, `group`) says whose image each is; a
    near-duplicate is its original's patient's.

    Args:
        out: a folder that is empty or does not exist.
        num_images: how many originals.
        seed: the same seed gives the same bytes, and more originals only add to fewer as long as
            there are no near-duplicates.
        image_size: typical side of an image; sizes vary around it.
        num_duplicates: how many near-duplicates to add to the originals, as many at most.
        max_views: patients have 1 to so many images, the last as many as are left; all views of a
            patient have one class.
        workers: how many processes draw; the bytes do not depend on it. With more than one, a
            script must call this below `if __name__ == "__main__"`.

    Raises:
        DataError: if the folder holds something, or a number makes no sense.
        StorageError: if the folder cannot be written.
        RunError: if a worker process dies.
    """
    _check(num_images, seed, image_size, num_duplicates, max_views, workers)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} must be an empty or new folder; empty it or choose another.")
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        originals = cohort(num_images, seed, max_views)
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
        raise DataError(f"There must be 1 to {MAX_NUM_IMAGES:,} images, but got {num_images}.")
    if seed < 0:
        raise DataError(f"A seed must not be negative, but got {seed}.")
    if not MIN_IMAGE_SIZE <= image_size <= MAX_IMAGE_SIZE:
        raise DataError(
            f"The size of images must be {MIN_IMAGE_SIZE} to {MAX_IMAGE_SIZE} pixels, but got "
            f"{image_size}."
        )
    if not 0 <= num_duplicates <= num_images:
        raise DataError(
            f"There must be 0 to {num_images} near-duplicates of {num_images} images, but got "
            f"{num_duplicates}."
        )
    if not 1 <= max_views <= MAX_VIEWS:
        raise DataError(f"Patients must have 1 to {MAX_VIEWS} views, but got {max_views}.")
    if workers < 1:
        raise DataError(f"There must be at least one worker, but got {workers}.")


def _jobs(originals: Cohort, seed: int, num_duplicates: int) -> Iterator[_Job]:
    """Yield the originals, then the near-duplicates, with their names."""
    num_images = len(originals.labels)
    for index in range(num_images):
        yield _original(originals, index)
    numbers = Counter(originals.labels.tolist())
    for number in range(num_duplicates):
        rng = np.random.default_rng((seed, number, 1))
        across = number % _ACROSS_EVERY == _ACROSS_EVERY // 2
        index = int(rng.integers(num_images))
        while across and originals.labels[index] == NORMAL:
            index = int(rng.integers(num_images))
        job = _original(originals, index)
        label = job.label
        if across:
            label = MALIGNANT if label == BENIGN else BENIGN
        numbers[label] += 1
        yield replace(
            job,
            sample_id=_sample_id(label, numbers[label]),
            label=label,
            number=number,
            original=job.sample_id,
            kind=KINDS[number % len(KINDS)],
        )


def _original(originals: Cohort, index: int) -> _Job:
    label = int(originals.labels[index])
    sample_id = _sample_id(label, int(originals.numbers[index]))
    view = None if originals.views is None else int(originals.views[index])
    return _Job(sample_id, label, int(originals.patients[index]), view)


def _tasks(jobs: Iterator[_Job]) -> Iterator[list[_Job]]:
    while task := list(islice(jobs, _IMAGES_A_TASK)):
        yield task


def _sample_id(label: int, number: int) -> str:
    return f"{LABELS[label]} ({number})"


def _draw_into(folder: Path, seed: int, image_size: int, jobs: Sequence[_Job]) -> None:
    for label in {job.label for job in jobs}:
        (folder / LABELS[label]).mkdir(exist_ok=True)
    for job in jobs:
        phantom = draw(seed, job.patient, image_size, job.view)
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
        initializer=follow_parent,
    )
    try:
        running: set[Future[None]] = set()
        for jobs in tasks:
            if len(running) >= workers * _TASKS_A_WORKER:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                _raise_first(done)
            with interrupts.kept_from_children():
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


def _list_patients(folder: Path, jobs: Iterable[_Job]) -> None:
    rows = ((job.sample_id, f"patient {job.patient + 1}") for job in jobs)
    _write_csv(folder / PATIENTS, ("image_id", "group"), rows)


def _list_duplicates(folder: Path, jobs: Iterable[_Job]) -> None:
    rows = ((job.sample_id, job.original, job.kind) for job in jobs if job.kind)
    _write_csv(folder / DUPLICATES, ("sample_id", "original", "kind"), rows)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _png(gray: Gray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()
