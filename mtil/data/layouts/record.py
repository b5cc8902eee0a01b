"""Records: the images of a collection before any pixel is decoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.names import escape_unprintable
from mtil.storage import Store

MAX_LISTED_REFUSALS = 100
"""Most unusable images listed in an error; the rest are only counted."""


# Field names are part of the staging keys (`mtil.data.prepare.chunks`): after a renaming, an
# interrupted preparation would decode all images again.
@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """An image, the masks and all facts given by the collection."""

    sample_id: str
    label: int
    """Index into `mtil.data.dataset.shards.LABELS`."""
    image: str
    """File name in the collection's store."""
    masks: tuple[str, ...]
    """File names of masks, combined by union; empty means no lesion."""
    patient: str | None = None
    fold: int | None = None
    """Fold given by the collection, from 0."""
    source: str = ""
    """Name of the collection in a data set of several; empty in a data set of one collection."""
    published: str | None = None
    """Group given by a published group file."""
    masks_may_differ: bool = False
    """Whether masks of a different size are resized to the image's size instead of refused."""
    colour: str | None = None
    """Colour of the lesion, if masks mark the class by red or green."""
    inverted: bool = False
    """Whether lesions are the darker part of the masks."""
    pixel_size: float | None = None
    """Millimetres per pixel of the original image, if the collection gives a size."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Further facts by column: BI-RADS, device, histology, age."""
    refused: str | None = None
    """Why the image is unusable, as far as table and file names show; None if usable.

    Of a refused record only the sample id is meaningful.
    """
    others: tuple[str, ...] = ()
    """Further image files with this sample id; only set in refused records."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """The images of a source."""

    name: str
    licence: str
    citation: str
    store: Store
    """Store of the files named in the records."""
    records: Sequence[Record]
    """Records in the order of the table or the files. Sample ids and image names are unique."""
    files: FilesSeen | None = None
    """Account of all files in the store; None if the store cannot be listed."""
    notes: Sequence[str] = ()
    """Sentences about interpreted values, for example filled cells."""
    warnings: Sequence[str] = ()
    """Sentences about likely mistakes in the collection."""


@dataclass(frozen=True, kw_only=True)
class ScanResult:
    """The result of scanning a store for a layout."""

    records: list[Record]
    files: Callable[[Sequence[Record]], FilesSeen | None]
    """Accounts for every file, given the records after ids were made unique."""
    notes: Sequence[str] = ()
    """See `Collection`."""
    warnings: Sequence[str] = ()
    """See `Collection`."""


def make_refused_record(
    sample_id: str,
    why: str,
    image: str = "",
    masks: tuple[str, ...] = (),
    others: tuple[str, ...] = (),
) -> Record:
    """Return the record of an unusable image.

    Args:
        sample_id: id of the image.
        why: sentence with the reason.
        image: image file, empty if missing.
        masks: mask files, as far as known.
        others: further image files with this id.
    """
    # The file account counts files of refused records as images, not as unused.
    return Record(
        sample_id=sample_id,
        label=0,
        image=image,
        masks=masks,
        refused=escape_unprintable(why),
        others=others,
    )


def format_refusals(found: Sequence[str], of: int) -> str:
    """Return an error message about unusable images: a sentence or, for several, a list.

    Args:
        found: the reason for each unusable image.
        of: number of all images, usable and unusable.
    """
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"- {why}" for why in found[:MAX_LISTED_REFUSALS])
    more = (
        f"\n- and {len(found) - MAX_LISTED_REFUSALS} more"
        if len(found) > MAX_LISTED_REFUSALS
        else ""
    )
    return (
        f"{len(found)} of {of} images cannot be used; correct them or add "
        f"--skip-invalid:\n{listed}{more}"
    )


def merge_repeated_records(records: Sequence[Record]) -> list[Record]:
    """Return the records without repetitions: every sample id and every image file occurs once.

    A repeated id refuses the image, since no rule tells which record is right. If an image file
    has several ids, the first id keeps the file and later ids are refused.
    """
    by_id: dict[str, Record] = {}
    id_of_image: dict[str, str] = {}
    for record in records:
        sample_id, path = record.sample_id, str(PurePosixPath(record.image))
        if sample_id in by_id:
            by_id[sample_id] = _refuse_repeated_id(by_id[sample_id], record)
        elif record.refused is None and id_of_image.setdefault(path, sample_id) != sample_id:
            by_id[sample_id] = make_refused_record(
                sample_id,
                f"An image must be given once, but {path} is given as {id_of_image[path]!r} and as "
                f"{sample_id!r}; remove one.",
                record.image,
                record.masks,
            )
        else:
            by_id[sample_id] = record
    return list(by_id.values())


def _refuse_repeated_id(first: Record, second: Record) -> Record:
    files = sorted({first.image, second.image} - {""})
    by = f", by {' and '.join(files)}" if len(files) > 1 else ""
    why = f"Sample ids must be unique, but {first.sample_id!r} is given twice{by}; rename or remove"
    # After a third record of the id, `first` is refused already; keep the first message.
    return make_refused_record(
        first.sample_id,
        f"{why} one." if first.refused is None else first.refused,
        first.image or second.image,
        tuple(dict.fromkeys((*first.masks, *second.masks))),
        tuple(dict.fromkeys((*first.others, *second.others, *files))),
    )
