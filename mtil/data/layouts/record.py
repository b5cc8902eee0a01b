"""One image of a collection, before its pixels are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from mtil.errors import DataError


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
