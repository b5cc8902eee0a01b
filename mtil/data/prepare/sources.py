"""Sources of a data set: scan collections and keep the ids of several collections distinct."""

import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtil.data.dataset.manifest import SourceInfo
from mtil.data.dataset.shards import OBJECTION
from mtil.data.folds import groups
from mtil.data.layouts import scan_collection
from mtil.data.layouts.patients import note_merged_spellings
from mtil.data.layouts.record import Collection, Record
from mtil.errors import DataError


@dataclass(frozen=True, kw_only=True)
class CollectionSource:
    """Location and layout of a collection."""

    uri: str
    """Path or `s3://` URI of a folder or a table."""
    layout: str
    """Key of `mtil.data.layouts.LAYOUTS`."""
    groups: str | None = None
    """Path or URI of a CSV, Excel or Parquet table with the published groups of the images."""
    official_folds: int | None = None
    """Number of folds in the fold file of the collection, to use the file; None to ignore the file.
    A table gives folds in a column instead."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Column of a table, by role."""
    classes: Mapping[str, str] = field(default_factory=dict)
    """Class, by the word used in a table."""
    invert_masks: bool = False
    """Whether lesions are black on white in the masks."""


def scan_sources(sources: Sequence[CollectionSource], apart: str = "") -> list[Collection]:
    """Scan collections; prefix ids with the collection's name if there are several collections.

    Unusable images are included as refused records.

    Args:
        sources: the collections.
        apart: URI of files outside the collections, for example the target data set.

    Raises:
        DataError: if a collection does not match the layout, or if only a part of the collections
            gives folds.
    """
    collections = [_scan_source(source, apart) for source in sources]
    if len(collections) > 1:
        names = _make_names(collections)
        collections = [
            _add_prefix(collection, name)
            for collection, name in zip(collections, names, strict=True)
        ]
    _check_folds_given(collections)
    return collections


def _check_folds_given(collections: Sequence[Collection]) -> None:
    with_folds = [
        collection
        for collection in collections
        if any(record.fold is not None for record in collection.records)
    ]
    if with_folds and len(with_folds) < len(collections):
        without = next(collection for collection in collections if collection not in with_folds)
        raise DataError(
            f"All sources must give folds or none, but {with_folds[0].name} does and "
            f"{without.name} does not; prepare them separately or without official folds."
        )


def scan_appended_sources(
    sources: Sequence[CollectionSource],
    held: Sequence[SourceInfo],
    known: Container[str],
    apart: str = "",
) -> list[Collection]:
    """Scan collections to append to a data set.

    A collection with the name of a source of the data set extends the source. Unusable images are
    included as refused records.

    Args:
        sources: the collections.
        held: sources of the data set.
        known: sample ids of the data set's images, which group files may omit.
        apart: see `scan_sources`.

    Raises:
        DataError: if a collection does not match the layout, if names are ambiguous, or if only a
            part of the collections gives folds.
    """
    scanned = [_scan_source(source, apart, with_groups=False) for source in sources]
    prefixes = _choose_prefixes(scanned, held)
    collections = []
    for source, collection, prefix in zip(sources, scanned, prefixes, strict=True):
        # Groups are added before the prefix: a group file has the ids of the collection.
        if source.groups is not None:
            start = f"{prefix}/" if prefix else ""
            ids = (record.sample_id for record in collection.records)
            known_ids = {name for name in ids if start + name in known}
            collection = _add_groups(collection, source.groups, known_ids)
        collections.append(_add_prefix(collection, prefix) if prefix else collection)
    _check_folds_given(collections)
    return collections


def _choose_prefixes(collections: Sequence[Collection], held: Sequence[SourceInfo]) -> list[str]:
    """Return the prefixes of the collections: the prefix in the data set, else an unused prefix."""
    used = {source.prefix for source in held}
    prefixes = []
    for collection in collections:
        if sum(c.name == collection.name for c in collections) > 1:
            raise DataError(
                "Collections appended together must have different names, but several are called "
                f"{collection.name}; append the collections in separate commands."
            )
        own = [source.prefix for source in held if source.name == collection.name]
        if len(own) > 1:
            raise DataError(
                f"The data set has {len(own)} sources called {collection.name}, so the source of "
                "the appended images is ambiguous; prepare all images again."
            )
        slug = _slug(collection)
        candidates = (slug, *(f"{slug}-{number}" for number in range(2, len(used) + 3)))
        prefix = own[0] if own else next(name for name in candidates if name not in used)
        used.add(prefix)
        prefixes.append(prefix)
    return prefixes


def _scan_source(source: CollectionSource, apart: str, *, with_groups: bool = True) -> Collection:
    collection = scan_collection(
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
        collection = _invert_masks(collection)
    if source.groups is None or not with_groups:
        return collection
    return _add_groups(collection, source.groups)


def _invert_masks(collection: Collection) -> Collection:
    if any(record.colour is not None for record in collection.records):
        raise DataError(
            "Masks whose colours give the class cannot be inverted, but the masks of "
            f"{collection.name} are coloured; remove --invert-masks."
        )
    records = [replace(record, inverted=True) for record in collection.records]
    return replace(collection, records=records)


def _add_groups(collection: Collection, uri: str, optional: Container[str] = ()) -> Collection:
    usable = [record for record in collection.records if record.refused is None]
    published = groups.read_group_file(uri, usable, optional)
    records = []
    for record in collection.records:
        row = published.get(record.sample_id)
        if row is not None:
            objection = {OBJECTION: row.objection} if row.objection else {}
            record = replace(record, published=row.group, meta={**record.meta, **objection})
        records.append(record)
    notes = note_merged_spellings({row.group for row in published.values()}, "published groups")
    return replace(collection, records=records, notes=(*collection.notes, *notes))


def _make_names(collections: Sequence[Collection]) -> list[str]:
    """Return short names of the collections; equal names are numbered."""
    slugs = [_slug(collection) for collection in collections]
    uses, counts = Counter(slugs), Counter[str]()
    names = []
    for slug in slugs:
        counts[slug] += 1
        names.append(f"{slug}-{counts[slug]}" if uses[slug] > 1 else slug)
    return names


def _slug(collection: Collection) -> str:
    return re.sub(r"[^a-z0-9]+", "-", collection.name.lower()).strip("-") or "source"


def _add_prefix(collection: Collection, name: str) -> Collection:
    def prefix_record(record: Record) -> Record:
        return replace(
            record,
            sample_id=f"{name}/{record.sample_id}",
            source=name,
            patient=None if record.patient is None else f"{name}/{record.patient}",
            published=None if record.published is None else f"{name}/{record.published}",
        )

    return replace(collection, records=[prefix_record(record) for record in collection.records])
