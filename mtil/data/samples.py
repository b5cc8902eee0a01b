"""Records to samples: decode, check and resize images, several at a time, in order."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from mtil.data.images import (
    Mask,
    encode_mask_png,
    pack_mask,
    read_gray,
    read_mask,
    resize_image,
    resize_mask,
)
from mtil.data.layouts.record import Record
from mtil.data.shards import LABELS
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

MIN_THREADS = 8
"""Decoding frees the interpreter, and reading from a bucket waits."""


@dataclass(frozen=True)
class Place:
    """Where an image belongs."""

    group: str
    fold: int
    part: int


@dataclass(frozen=True)
class Sample:
    """A row of a shard, and what identifies it."""

    sample_id: str
    image: bytes
    mask: bytes
    label: int
    place: Place
    height: int
    width: int
    mask_png: bytes
    sha256: bytes
    """Of the source's gray pixels and their size."""
    mask_sha256: bytes
    """Of the source's mask, free of how PNG files are compressed here."""
    image_size: int

    def digest(self) -> bytes:
        """Return what goes into the data set's fingerprint."""
        values = [
            self.sample_id,
            self.sha256.hex(),
            self.mask_sha256.hex(),
            self.label,
            self.place.group,
            self.place.fold,
            self.place.part,
            self.image_size,
        ]
        return hashlib.sha256(json.dumps(values).encode()).digest()


def read_all(
    store: Store, records: Sequence[Record], places: Sequence[Place], image_size: int
) -> Iterator[Sample]:
    """Yield the samples of records in order, holding only a few at a time.

    Raises:
        DataError: for the first record whose image or masks are wrong.
    """
    num_threads = max(MIN_THREADS, 2 * (os.cpu_count() or 1))
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
    ahead: deque[Future[Sample]] = deque()
    try:
        for record, place in zip(records, places, strict=True):
            ahead.append(pool.submit(read_sample, store, record, place, image_size))
            if len(ahead) >= 2 * num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def read_sample(store: Store, record: Record, place: Place, image_size: int) -> Sample:
    """Decode a record's image and masks, check that they fit, and resize them.

    Raises:
        DataError: if a file is missing or damaged, or the masks fit neither image nor class.
    """
    gray = read_gray(_bytes(store, record.image, record), record.image)
    mask = _joined_mask(store, record, gray.shape)
    height, width = gray.shape
    size = f"{height}x{width}:".encode()
    return Sample(
        sample_id=record.sample_id,
        image=resize_image(gray, image_size).tobytes(),
        mask=pack_mask(resize_mask(mask, image_size)),
        label=record.label,
        place=place,
        height=height,
        width=width,
        mask_png=encode_mask_png(mask),
        sha256=hashlib.sha256(size + gray.tobytes()).digest(),
        mask_sha256=hashlib.sha256(size + pack_mask(mask)).digest(),
        image_size=image_size,
    )


def _joined_mask(store: Store, record: Record, shape: tuple[int, ...]) -> Mask:
    joined = np.zeros(shape, np.bool_)
    for name in record.masks:
        mask = read_mask(_bytes(store, name, record), name)
        if mask.shape != shape:
            raise DataError(
                f"A mask must have its image's size, but {name} has {_size(mask.shape)} and "
                f"{record.image} has {_size(shape)} (width x height)."
            )
        joined |= mask
    normal = LABELS[record.label] == "normal"
    if normal and joined.any():
        raise DataError(
            f"A normal image must have no lesion, but {record.masks[0]} is not black; "
            "correct the mask or the label."
        )
    if not normal and not joined.any():
        raise DataError(
            f"A {LABELS[record.label]} image must have a lesion, but {record.masks[0]} is black; "
            "correct the mask or the label."
        )
    return joined


def _bytes(store: Store, name: str, record: Record) -> bytes:
    try:
        return store.read(name)
    except NotFoundError:
        kind = "image" if name == record.image else "mask"
        raise DataError(
            f"The {kind} {name} of {record.sample_id!r} does not exist in {store.uri}."
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
