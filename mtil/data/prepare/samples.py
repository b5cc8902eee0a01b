"""Records to samples: decode, check and resize images, and note what the audit wants to know."""

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mtil.data.audit.duplicates import Description, describe
from mtil.data.audit.marks import (
    NUMBERED_MASK,
    SOFT_MASK,
    STRAY_REGIONS,
    Marks,
    MaskFlags,
    flag_image,
    flag_mask,
)
from mtil.data.dataset.shards import LABELS
from mtil.data.images.budget import PIXELS
from mtil.data.images.image_bytes import read_image_bytes, room_for
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
from mtil.data.names import shown
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

READING = 2
"""How files become pixels; chunks that were staged by another way are not taken up."""
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
    notes: tuple[str, ...] = ()
    """What was odd about the files, keys of `mtil.data.audit.marks.NOTES`."""


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
    with room_for(store, (record.image, *record.masks)):
        image, *masks = [
            open_image(_bytes(store, name, record), name) for name in (record.image, *record.masks)
        ]
        with PIXELS.hold(max(file.num_pixels for file in (image, *masks))):
            return _sample(record, image, masks, image_size)


def _sample(
    record: Record, image: ImageFile, masks: Sequence[ImageFile], image_size: int
) -> Sample:
    gray = image.gray()
    height, width = gray.shape
    mask, notes = _joined_mask(record, masks, (height, width))
    if image.stray_regions:
        notes.add(STRAY_REGIONS)
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
        pixel_size=image.pixel_size if record.pixel_size is None else record.pixel_size,
        description=describe(gray),
        marks=flag_image(gray),
        mask_flags=flag_mask(mask),
        notes=tuple(sorted(notes)),
    )


def _joined_mask(
    record: Record, masks: Sequence[ImageFile], shape: tuple[int, int]
) -> tuple[Mask, set[str]]:
    """Return the lesion of all masks, and notes on them."""
    joined = np.zeros(shape, np.bool_)
    notes = set()
    for name, file in zip(record.masks, masks, strict=True):
        found = decode_mask(file, name, colour=record.colour, inverted=record.inverted)
        if found.kind != "plain":
            notes.add(SOFT_MASK if found.kind == "soft" else NUMBERED_MASK)
        mask = found.mask
        if mask.shape != shape:
            _check_shape(record, name, mask.shape, shape)
            fitted = Image.fromarray(mask).resize(shape[::-1], Image.Resampling.NEAREST)
            mask = np.asarray(fitted, np.bool_)
        joined |= mask
    _check_lesion(record, joined)
    return joined, notes


def _check_shape(
    record: Record, name: str, found: tuple[int, ...], expected: tuple[int, int]
) -> None:
    if found == expected[::-1]:
        raise DataError(
            f"A mask must lie as its image does, but {name} has {_size(found)} and {record.image} "
            f"has {_size(expected)} (width x height); turn one of them, or correct its orientation."
        )
    if not record.masks_may_differ:
        raise DataError(
            f"A mask must have its image's size, but {name} has {_size(found)} and "
            f"{record.image} has {_size(expected)} (width x height); correct the mask."
        )


def _check_lesion(record: Record, mask: Mask) -> None:
    normal = LABELS[record.label] == "normal"
    if normal and mask.any():
        inverted = mask.all() and not record.inverted
        hint = ", or add --invert-masks if lesions are black in this source" if inverted else ""
        raise DataError(
            f"A normal image must have no lesion, but {record.masks[0]} is not black; "
            f"correct the mask or the label{hint}."
        )
    if not normal and not mask.any():
        black = "white" if record.inverted else "black"
        raise DataError(
            f"A {LABELS[record.label]} image must have a lesion, but {record.masks[0]} is {black}; "
            "correct the mask or the label."
        )


def _bytes(store: Store, name: str, record: Record) -> bytes:
    try:
        return read_image_bytes(store, name, name)
    except NotFoundError:
        kind = "image" if name == record.image else "mask"
        raise DataError(
            f"The {kind} {name} of {record.sample_id!r} does not exist in {store.uri}; add it or "
            "leave the image out."
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
