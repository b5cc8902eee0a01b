"""What a collection holds, before a pixel is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.names import shown
from mtil.storage import Store

MAX_REASONS = 100
"""Images that are named before the rest is only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An image, its masks, and what its collection says about it."""

    sample_id: str
    label: int
    """Index into `mtil.data.dataset.shards.LABELS`."""
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
    others: tuple[str, ...] = ()
    """More image files that its id could mean; only an image that cannot be used has some."""


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
    files: FilesSeen | None = None
    """What each file below the store is; None if the store cannot be listed."""
    notes: Sequence[str] = ()
    """Sentences about what was read otherwise than it is written."""
    warnings: Sequence[str] = ()
    """Sentences about what may be wrong in the collection."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a layout has found in a store."""

    records: list[Record]
    files: Callable[[Sequence[Record]], FilesSeen | None]
    """Says what each file is, given the records with unique ids."""
    notes: Sequence[str] = ()
    """See `Collection`."""
    warnings: Sequence[str] = ()
    """See `Collection`."""


def refused(
    sample_id: str,
    why: str,
    image: str = "",
    masks: tuple[str, ...] = (),
    others: tuple[str, ...] = (),
) -> Record:
    """Return the record of an image that cannot be used.

    Args:
        sample_id: its id.
        why: a sentence.
        image: its file, if there is one.
        masks: its masks, as far as they are known.
        others: more image files of this id.
    """
    return Record(
        sample_id=sample_id, label=0, image=image, masks=masks, refused=shown(why), others=others
    )


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
                record.image,
                record.masks,
            )
        else:
            found[name] = record
    return list(found.values())


def _given_twice(one: Record, other: Record) -> Record:
    files = sorted({one.image, other.image} - {""})
    by = f", by {' and '.join(files)}" if len(files) > 1 else ""
    why = f"Sample ids must be unique, but {one.sample_id!r} is given twice{by}; rename or remove"
    return refused(
        one.sample_id,
        f"{why} one." if one.refused is None else one.refused,
        one.image or other.image,
        tuple(dict.fromkeys((*one.masks, *other.masks))),
        tuple(dict.fromkeys((*one.others, *other.others, *files))),
    )
