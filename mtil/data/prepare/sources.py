"""One collection or several: where they are and how their ids stay apart."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtil.data.dataset.manifest import SourceInfo
from mtil.data.folds import groups
from mtil.data.layouts import scan
from mtil.data.layouts.patients import same_names
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
    """A table with the images' published groups: CSV, Excel or Parquet."""
    official_folds: int | None = None
    """How many folds the collection's own fold file has, to take them; a table's are a column."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """A table's column by the role that it plays."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """A class by the table's word for it."""
    invert_masks: bool = False
    """Whether lesions are black on white in the masks."""


def gather(sources: Sequence[Source], apart: str = "") -> list[Collection]:
    """Scan collections; where there are several, put a collection's name before its ids.

    Images that cannot be used are among them, as refused records.

    Args:
        sources: the collections.
        apart: a URI whose files are no part of them, such as the data set that is made.

    Raises:
        DataError: if a collection is not laid out as it should be, or only some of several
            collections give folds.
    """
    found = [_scan(source, apart) for source in sources]
    if len(found) > 1:
        names = _names(found)
        found = [_prefixed(*pair) for pair in zip(found, names, strict=True)]
    _check_given(found)
    return found


def _check_given(found: Sequence[Collection]) -> None:
    given = [
        collection
        for collection in found
        if any(record.fold is not None for record in collection.records)
    ]
    if given and len(given) < len(found):
        missing = next(collection for collection in found if collection not in given)
        raise DataError(
            f"All sources must give folds or none, but {given[0].name} does and {missing.name} "
            "does not; prepare them apart or without official folds."
        )


def gather_more(
    sources: Sequence[Source],
    held: Sequence[SourceInfo],
    known: Container[str],
    apart: str = "",
) -> list[Collection]:
    """Scan collections whose images are added to those of a data set.

    A collection of the same name as one that the data set was made from is taken for more of it.
    Images that cannot be used are among them, as refused records.

    Args:
        sources: the collections.
        held: what the data set was made from.
        known: sample ids of images that it was made from, which group files may leave out.
        apart: see `gather`.

    Raises:
        DataError: if a collection is not laid out as it should be, names do not tell collections
            apart, or only some of several collections give folds.
    """
    found = [_scan(source, apart, with_groups=False) for source in sources]
    prefixes = _prefixes(found, held)
    whole = []
    for source, collection, prefix in zip(sources, found, prefixes, strict=True):
        if source.groups is not None:
            start = f"{prefix}/" if prefix else ""
            ids = (record.sample_id for record in collection.records)
            seen = {name for name in ids if start + name in known}
            collection = _with_groups(collection, source.groups, seen)
        whole.append(_prefixed(collection, prefix) if prefix else collection)
    _check_given(whole)
    return whole


def _prefixes(collections: Sequence[Collection], held: Sequence[SourceInfo]) -> list[str]:
    """Return each collection's prefix: its own if the data set has it, else one not used yet."""
    used = {source.prefix for source in held}
    prefixes = []
    for collection in collections:
        if sum(other.name == collection.name for other in collections) > 1:
            raise DataError(
                "Collections that are appended together must have names of their own, but several "
                f"are called {collection.name}; append one after the other."
            )
        own = [source.prefix for source in held if source.name == collection.name]
        if len(own) > 1:
            raise DataError(
                f"The data set has {len(own)} sources called {collection.name}, so that nobody can "
                "tell whose images these are; prepare all images again."
            )
        slug = _slug(collection)
        free = (slug, *(f"{slug}-{number}" for number in range(2, len(used) + 3)))
        prefix = own[0] if own else next(name for name in free if name not in used)
        used.add(prefix)
        prefixes.append(prefix)
    return prefixes


def _scan(source: Source, apart: str, *, with_groups: bool = True) -> Collection:
    collection = scan(
        source.uri,
        source.layout,
        official_folds=source.official_folds,
        columns=source.columns or None,
        classes=source.classes or None,
        skip_invalid=True,
        apart=apart,
        beside=() if source.groups is None else (source.groups,),
    )
    if source.invert_masks:
        collection = _inverted(collection)
    if source.groups is None or not with_groups:
        return collection
    return _with_groups(collection, source.groups)


def _inverted(collection: Collection) -> Collection:
    if any(record.colour is not None for record in collection.records):
        raise DataError(
            "Masks whose colours name the class cannot be inverted, but those of "
            f"{collection.name} are such; leave --invert-masks away."
        )
    records = [replace(record, inverted=True) for record in collection.records]
    return replace(collection, records=records)


def _with_groups(collection: Collection, uri: str, optional: Container[str] = ()) -> Collection:
    usable = [record for record in collection.records if record.refused is None]
    published = groups.read_file(uri, usable, optional)
    records = [
        replace(record, published=published.get(record.sample_id)) for record in collection.records
    ]
    notes = same_names(set(published.values()), "published groups")
    return replace(collection, records=records, notes=(*collection.notes, *notes))


def _names(collections: Sequence[Collection]) -> list[str]:
    """Return a short name for each, numbered where two are alike."""
    slugs = [_slug(collection) for collection in collections]
    uses, seen = Counter(slugs), Counter[str]()
    names = []
    for slug in slugs:
        seen[slug] += 1
        names.append(f"{slug}-{seen[slug]}" if uses[slug] > 1 else slug)
    return names


def _slug(collection: Collection) -> str:
    return re.sub(r"[^a-z0-9]+", "-", collection.name.lower()).strip("-") or "source"


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
