"""One collection or several: where they are and how their ids stay apart."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtil.data import groups
from mtil.data.layouts import scan
from mtil.data.layouts.record import Collection, Record
from mtil.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a collection is and how to read it."""

    uri: str
    """A folder, a table, or an `s3://` URI of either."""
    layout: str
    """One of `mtil.data.layouts.LAYOUTS`."""
    groups: str | None = None
    """A CSV file with the images' published groups."""
    official_folds: int | None = None
    """How many folds the collection's own fold file has, to take them."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """A table's column by the role that it plays."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """A class by the table's word for it."""


def gather(sources: Sequence[Source]) -> list[Collection]:
    """Scan collections; where there are several, put a collection's name before its ids.

    Raises:
        DataError: if a collection is not laid out as it should be, or only some of several give
            folds.
    """
    found = [_scan(source) for source in sources]
    if len(found) > 1:
        names = _names(found)
        found = [_prefixed(*pair) for pair in zip(found, names, strict=True)]
    given = [collection for collection in found if collection.records[0].fold is not None]
    if given and len(given) < len(found):
        missing = next(collection for collection in found if collection not in given)
        raise DataError(
            f"All sources must give folds or none, but {given[0].name} does and {missing.name} "
            "does not; prepare them apart or without official folds."
        )
    return found


def _scan(source: Source) -> Collection:
    collection = scan(
        source.uri,
        source.layout,
        official_folds=source.official_folds,
        columns=source.columns or None,
        classes=source.classes or None,
    )
    if source.groups is None:
        return collection
    published = groups.read_file(source.groups, collection.records)
    records = [
        replace(record, published=published[record.sample_id]) for record in collection.records
    ]
    return replace(collection, records=records)


def _names(collections: Sequence[Collection]) -> list[str]:
    """Return a short name for each, numbered where two are alike."""
    slugs = [
        re.sub(r"[^a-z0-9]+", "-", collection.name.lower()).strip("-") or "source"
        for collection in collections
    ]
    uses, seen = Counter(slugs), Counter[str]()
    names = []
    for slug in slugs:
        seen[slug] += 1
        names.append(f"{slug}-{seen[slug]}" if uses[slug] > 1 else slug)
    return names


def _prefixed(collection: Collection, name: str) -> Collection:
    def place(record: Record) -> Record:
        return replace(
            record,
            sample_id=f"{name}/{record.sample_id}",
            source=name,
            patient=None if record.patient is None else f"{name}/{record.patient}",
            published=None if record.published is None else f"{name}/{record.published}",
        )

    return replace(collection, records=[place(record) for record in collection.records])
