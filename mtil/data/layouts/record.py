"""What a collection holds, before a pixel is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mtil.errors import DataError
from mtil.storage import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An image, its masks, and what its collection says about it."""

    sample_id: str
    label: int
    """Index into `mtil.data.shards.LABELS`."""
    image: str
    """Name in the collection's store."""
    masks: tuple[str, ...]
    """Names of the masks, to be joined; none means no lesion."""
    patient: str | None = None
    fold: int | None = None
    """The fold that the collection gives it, from 0."""
    source: str = ""
    """Which of a data set's collections it comes from; empty if there is only one."""
    published: str | None = None
    """The group that a published file gives it."""
    masks_may_differ: bool = False
    """Whether masks of another size are resized to the image's instead of refused."""
    pixel_size: float | None = None
    """Millimetres a pixel of the original, where the collection says so."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """What else the collection says, by column: BI-RADS, device, histology, age."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The images of one source."""

    name: str
    licence: str
    citation: str
    store: Store
    """What the records' names are relative to."""
    records: Sequence[Record]
    """Sorted by sample id, which is unique, as are image names."""


def check_unique(records: Sequence[Record]) -> None:
    """Refuse two records with one id or one image file.

    Raises:
        DataError: naming the first such pair.
    """
    ids: dict[str, str] = {}
    images: dict[str, str] = {}
    for record in records:
        path = str(PurePosixPath(record.image))
        if record.sample_id in ids:
            raise DataError(
                f"Sample ids must be unique, but {record.sample_id!r} is given twice, by "
                f"{ids[record.sample_id]} and {record.image}; rename or remove one."
            )
        if path in images:
            raise DataError(
                f"An image must be given once, but {path} is given as {images[path]!r} and as "
                f"{record.sample_id!r}; remove one."
            )
        ids[record.sample_id] = record.image
        images[path] = record.sample_id
