"""What a collection holds, before a pixel is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mtil.storage import Store

MAX_REASONS = 100
"""Images that are named before the rest is only counted."""


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
    colour: str | None = None
    """What its lesion is in masks of red and green, if they tell classes apart so."""
    inverted: bool = False
    """Whether lesions are the darker part of its masks."""
    pixel_size: float | None = None
    """Millimetres a pixel of the original, where the collection says so."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """What else the collection says, by column: BI-RADS, device, histology, age."""
    refused: str | None = None
    """Why it cannot be used, if table and files say so; its id is all that counts then."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The images of one source."""

    name: str
    licence: str
    citation: str
    store: Store
    """What the records' names are relative to."""
    records: Sequence[Record]
    """In the order of the table or the files; sample ids are unique, as are image names."""


def refused(sample_id: str, why: str) -> Record:
    """Return the record of an image that cannot be used."""
    return Record(sample_id=sample_id, label=0, image="", masks=(), refused=why)


def reasons(found: Sequence[str], of: int) -> str:
    """Return one sentence for one image that cannot be used, or a list for several.

    Args:
        found: why each cannot be used.
        of: how many images there are, with those that can be used.
    """
    if len(found) == 1:
        return found[0]
    shown = "\n".join(f"- {why}" for why in found[:MAX_REASONS])
    more = f"\n- and {len(found) - MAX_REASONS} more" if len(found) > MAX_REASONS else ""
    return (
        f"{len(found)} of {of} images cannot be used; correct them or add "
        f"--skip-invalid:\n{shown}{more}"
    )


def unique(records: Sequence[Record]) -> list[Record]:
    """Return the records with one for each id and each image file.

    An id that is given twice is refused, since nobody can say which is right; of an image that is
    given twice the second is.
    """
    found: dict[str, Record] = {}
    images: dict[str, str] = {}
    for record in records:
        name, path = record.sample_id, str(PurePosixPath(record.image))
        if name in found:
            found[name] = _given_twice(found[name], record)
        elif record.refused is None and images.setdefault(path, name) != name:
            found[name] = refused(
                name,
                f"An image must be given once, but {path} is given as {images[path]!r} and as "
                f"{name!r}; remove one.",
            )
        else:
            found[name] = record
    return list(found.values())


def _given_twice(one: Record, other: Record) -> Record:
    if one.refused is not None:
        return one
    files = sorted({one.image, other.image} - {""})
    by = f", by {' and '.join(files)}" if len(files) > 1 else ""
    why = f"Sample ids must be unique, but {one.sample_id!r} is given twice{by}; rename or remove"
    return refused(one.sample_id, f"{why} one.")
