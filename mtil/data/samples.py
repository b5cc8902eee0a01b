"""Records to samples: decode, check and resize images, and note what the audit wants to know."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mtil.data import dicom
from mtil.data.duplicates import Description, describe
from mtil.data.flags import Marks, MaskFlags, flag_image, flag_mask
from mtil.data.images import (
    Mask,
    encode_mask_png,
    pack_mask,
    read_coloured_mask,
    read_gray,
    read_mask,
    resize_image,
    resize_mask,
)
from mtil.data.layouts.record import Record
from mtil.data.names import shown
from mtil.data.shards import LABELS
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

_THREADS = 8
"""Of a process: decoding frees the interpreter, and reading from a bucket waits."""


@dataclass(frozen=True)
class Sample:
    """An image as it is stored, and what was seen of it on the way."""

    record: Record
    image: bytes
    mask: bytes
    height: int
    width: int
    mask_png: bytes
    sha256: bytes
    """Of the source's gray pixels and their size."""
    mask_sha256: bytes
    """Of the source's mask, free of how PNG files are compressed here."""
    pixel_size: float | None
    description: Description
    marks: Marks
    mask_flags: MaskFlags


@dataclass(frozen=True)
class Refused:
    """An image that cannot be used, and the sentence that says why."""

    sample_id: str
    why: str


def read_all(
    stores: Mapping[str, Store], records: Sequence[Record], image_size: int
) -> Iterator[Sample | Refused]:
    """Yield the samples of records in order, holding only a few at a time.

    Args:
        stores: where each source's files are.
        records: what to read.
        image_size: side of the stored images.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="prepare")
    ahead: deque[Future[Sample | Refused]] = deque()
    try:
        for record in records:
            ahead.append(pool.submit(_read_or_refuse, stores[record.source], record, image_size))
            if len(ahead) >= 2 * _THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_or_refuse(store: Store, record: Record, image_size: int) -> Sample | Refused:
    if record.refused is not None:
        return Refused(record.sample_id, record.refused)
    try:
        return read_sample(store, record, image_size)
    except DataError as error:
        return Refused(record.sample_id, shown(str(error)))


def read_sample(store: Store, record: Record, image_size: int) -> Sample:
    """Decode a record's image and masks, check that they fit, and resize them.

    Raises:
        DataError: if a file is missing or damaged, or the masks fit neither image nor class.
    """
    data = _bytes(store, record.image, record)
    gray = read_gray(data, record.image)
    height, width = gray.shape
    mask = _joined_mask(store, record, (height, width))
    size = f"{height}x{width}:".encode()
    return Sample(
        record=record,
        image=resize_image(gray, image_size).tobytes(),
        mask=pack_mask(resize_mask(mask, image_size)),
        height=height,
        width=width,
        mask_png=encode_mask_png(mask),
        sha256=hashlib.sha256(size + gray.tobytes()).digest(),
        mask_sha256=hashlib.sha256(size + pack_mask(mask)).digest(),
        pixel_size=_pixel_size(record, data),
        description=describe(gray),
        marks=flag_image(gray),
        mask_flags=flag_mask(mask),
    )


def _joined_mask(store: Store, record: Record, shape: tuple[int, int]) -> Mask:
    joined = np.zeros(shape, np.bool_)
    for name in record.masks:
        data = _bytes(store, name, record)
        mask = (
            read_mask(data, name)
            if record.colour is None
            else read_coloured_mask(data, name, record.colour)
        )
        if mask.shape != shape:
            if not record.masks_may_differ:
                raise DataError(
                    f"A mask must have its image's size, but {name} has {_size(mask.shape)} and "
                    f"{record.image} has {_size(shape)} (width x height); correct the mask."
                )
            fitted = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(fitted, np.bool_)
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


def _pixel_size(record: Record, data: bytes) -> float | None:
    if record.pixel_size is not None:
        return record.pixel_size
    return dicom.pixel_size(data, record.image)


def _bytes(store: Store, name: str, record: Record) -> bytes:
    try:
        return store.read(name)
    except NotFoundError:
        kind = "image" if name == record.image else "mask"
        raise DataError(
            f"The {kind} {name} of {record.sample_id!r} does not exist in {store.uri}; add it or "
            "leave the image out."
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
