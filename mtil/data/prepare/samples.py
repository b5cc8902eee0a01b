"""Records to samples: decode, check and resize images, and collect facts for the audit."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mtil.data.audit.duplicates import Description, describe_image
from mtil.data.audit.marks import (
    NUMBERED_MASK,
    SOFT_MASK,
    STRAY_REGIONS,
    Marks,
    MaskFlags,
    flag_marks,
    flag_mask,
)
from mtil.data.dataset.shards import LABELS
from mtil.data.images.budget import PIXEL_BUDGET
from mtil.data.images.image_bytes import read_image_bytes, reserve_file_bytes
from mtil.data.images.read import (
    ImageFile,
    Mask,
    decode_mask,
    encode_mask_png,
    open_image,
    pack_mask,
    resize_image,
    resize_mask,
)
from mtil.data.layouts.record import Record
from mtil.data.names import escape_unprintable
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

READING_VERSION = 2
"""Version of the decoding; chunks staged with a different version are decoded again."""
# Threads of a process: decoding releases the interpreter lock, and reading from a bucket waits.
_NUM_THREADS = 8


@dataclass(frozen=True)
class Sample:
    """An image as stored in a shard, with the facts collected while decoding."""

    record: Record
    image: bytes
    """Gray pixels at the working size."""
    mask: bytes
    """Bits of the mask at the working size; see `pack_mask`."""
    height: int
    """Rows of the original image."""
    width: int
    """Columns of the original image."""
    mask_png: bytes
    """1-bit PNG of the mask at the original size."""
    sha256: bytes
    """Digest of the original gray pixels and size."""
    mask_sha256: bytes
    """Digest of the original mask's bits and size, which does not depend on PNG compression."""
    pixel_size: float | None
    """Side of a pixel of the original in millimetres; None if unknown."""
    description: Description
    marks: Marks
    mask_flags: MaskFlags
    notes: tuple[str, ...] = ()
    """Oddities of the files; keys of `mtil.data.audit.marks.NOTE_TEXTS`."""


@dataclass(frozen=True)
class RefusedImage:
    """An unusable image and the reason, as a sentence."""

    sample_id: str
    why: str


def read_samples(
    stores: Mapping[str, Store], records: Sequence[Record], image_size: int
) -> Iterator[Sample | RefusedImage]:
    """Yield the samples of records in order, with only a few samples in memory.

    Args:
        stores: store of the files, by source.
        records: records to read.
        image_size: side of the stored images in pixels.
    """
    pool = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="prepare")
    pending: deque[Future[Sample | RefusedImage]] = deque()
    try:
        for record in records:
            pending.append(pool.submit(_read_or_refuse, stores[record.source], record, image_size))
            # Two samples a thread: enough to keep all threads busy, and a bound on memory.
            if len(pending) >= 2 * _NUM_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read_or_refuse(store: Store, record: Record, image_size: int) -> Sample | RefusedImage:
    if record.refused is not None:
        return RefusedImage(record.sample_id, record.refused)
    try:
        return read_sample(store, record, image_size)
    except DataError as error:
        return RefusedImage(record.sample_id, escape_unprintable(str(error)))


def read_sample(store: Store, record: Record, image_size: int) -> Sample:
    """Decode, check and resize the image and the masks of a record.

    Raises:
        DataError: if a file is missing or damaged, or a mask contradicts the image or the class.
    """
    # Files before pixels: the fixed order of the two budgets prevents deadlock.
    with reserve_file_bytes(store, (record.image, *record.masks)):
        image, *masks = [
            open_image(_read_bytes(store, name, record), name)
            for name in (record.image, *record.masks)
        ]
        with PIXEL_BUDGET.hold(max(file.num_pixels for file in (image, *masks))):
            return _make_sample(record, image, masks, image_size)


def _make_sample(
    record: Record, image: ImageFile, masks: Sequence[ImageFile], image_size: int
) -> Sample:
    gray = image.gray()
    height, width = gray.shape
    mask, notes = _join_masks(record, masks, (height, width))
    if image.stray_regions:
        notes.add(STRAY_REGIONS)
    # The size is hashed too: equal bytes in a different shape are a different image.
    size_prefix = f"{height}x{width}:".encode()
    return Sample(
        record=record,
        image=resize_image(gray, image_size).tobytes(),
        mask=pack_mask(resize_mask(mask, image_size)),
        height=height,
        width=width,
        mask_png=encode_mask_png(mask),
        sha256=hashlib.sha256(size_prefix + gray.tobytes()).digest(),
        mask_sha256=hashlib.sha256(size_prefix + pack_mask(mask)).digest(),
        pixel_size=image.pixel_size if record.pixel_size is None else record.pixel_size,
        description=describe_image(gray),
        marks=flag_marks(gray),
        mask_flags=flag_mask(mask),
        notes=tuple(sorted(notes)),
    )


def _join_masks(
    record: Record, masks: Sequence[ImageFile], shape: tuple[int, int]
) -> tuple[Mask, set[str]]:
    """Return the union of all masks, (h, w), and notes on the mask files."""
    joined = np.zeros(shape, np.bool_)
    notes = set()
    for name, file in zip(record.masks, masks, strict=True):
        reading = decode_mask(file, name, colour=record.colour, inverted=record.inverted)
        if reading.kind != "plain":
            notes.add(SOFT_MASK if reading.kind == "soft" else NUMBERED_MASK)
        mask = reading.mask
        if mask.shape != shape:
            _check_shape(record, name, mask.shape, shape)
            fitted = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(fitted, np.bool_)
        joined |= mask
    _check_lesion(record, joined)
    return joined, notes


def _check_shape(
    record: Record, name: str, mask_shape: tuple[int, ...], image_shape: tuple[int, int]
) -> None:
    if mask_shape == image_shape[::-1]:
        raise DataError(
            f"A mask must lie as its image does, but {name} has {_format_size(mask_shape)} and "
            f"{record.image} has {_format_size(image_shape)} (width x height); turn the mask or "
            "the image, or correct the orientation in the file."
        )
    if not record.masks_may_differ:
        raise DataError(
            f"A mask must have its image's size, but {name} has {_format_size(mask_shape)} and "
            f"{record.image} has {_format_size(image_shape)} (width x height); correct the mask."
        )


def _check_lesion(record: Record, mask: Mask) -> None:
    normal = LABELS[record.label] == "normal"
    if normal and mask.any():
        # An inverted mask without a lesion is white everywhere.
        inverted = mask.all() and not record.inverted
        hint = ", or add --invert-masks if lesions are black in this source" if inverted else ""
        raise DataError(
            f"A normal image must have no lesion, but {record.masks[0]} is not black; "
            f"correct the mask or the label{hint}."
        )
    if not normal and not mask.any():
        shade = "white" if record.inverted else "black"
        raise DataError(
            f"A {LABELS[record.label]} image must have a lesion, but {record.masks[0]} is {shade}; "
            "correct the mask or the label."
        )


def _read_bytes(store: Store, name: str, record: Record) -> bytes:
    try:
        return read_image_bytes(store, name, name)
    except NotFoundError:
        kind = "image" if name == record.image else "mask"
        raise DataError(
            f"The {kind} {name} of {record.sample_id!r} does not exist in {store.uri}; add the "
            "file or remove the image from the collection."
        ) from None


def _format_size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
