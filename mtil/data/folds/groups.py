"""Images that belong together: a patient's, or those that a published file calls duplicates."""

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mtil.data.dataset.manifest import Dropped
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, read_rows
from mtil.data.names import canonical, plain, shown
from mtil.errors import DataError
from mtil.storage import open_store, split_uri


@dataclass(frozen=True)
class Grouping:
    """The group of every image that is kept, and the images that are not."""

    group: Mapping[str, str]
    """Group by sample id; a group is called after its first image."""
    dropped: tuple[Dropped, ...]
    family: Mapping[str, str]
    """Group by sample id, also of those that are dropped."""


def read_file(uri: str, records: Sequence[Record], optional: Container[str] = ()) -> dict[str, str]:
    """Read a published group file: a table with `image_id` and `group`, one row an image.

    Args:
        uri: the file, CSV, Excel or Parquet by its suffix.
        records: the collection's images.
        optional: sample ids that it may lack.

    Returns:
        Group by sample id, for the images of the collection; other lines are ignored.

    Raises:
        DataError: if an image is missing from it or has two groups.
    """
    _, name = split_uri(uri)
    found: dict[str, str] = {}
    for row in read_table(uri, ("image_id", "group")):
        sample_id, group = row.values["image_id"], row.values["group"]
        if not sample_id or not group:
            raise DataError(f"{row.where} must give an image_id and a group.")
        if canonical(found.setdefault(plain(sample_id), group)) != canonical(group):
            raise DataError(
                f"An image must have one group, but {name} gives {sample_id!r} the groups "
                f"{found[plain(sample_id)]!r} and {group!r}."
            )
    missing = [
        record.sample_id
        for record in records
        if plain(record.sample_id) not in found and record.sample_id not in optional
    ]
    if missing:
        raise DataError(
            f"{name} must give every image a group, but lacks {len(missing)} of {len(records)}, "
            f"such as {missing[0]!r}; its image_id must be the sample id."
        )
    return {
        record.sample_id: found[plain(record.sample_id)]
        for record in records
        if plain(record.sample_id) in found
    }


def read_table(uri: str, required: tuple[str, ...]) -> list[Row]:
    """Read a CSV, Excel or Parquet file about the images of a collection.

    Raises:
        DataError: if it is missing, or lacks a column or a value.
    """
    parent, name = split_uri(uri)
    try:
        rows = read_rows(open_store(parent), name, required, one_sheet=True)
    except DataError as error:
        raise DataError(shown(str(error))) from None
    for row in rows:
        if row.wrong is not None:
            raise DataError(shown(row.wrong))
    return rows


def group(records: Sequence[Record], pairs: Sequence[tuple[str, str]] = ()) -> Grouping:
    """Join images that share a patient or a published group or are a pair, directly or not.

    Images that show the same, by pairs or by a published file, are dropped if they have two
    classes: one lesion cannot be both, and nobody can say which label is wrong. A patient's images
    may be of several classes, and share a group all the same.

    Args:
        records: the collection's images.
        pairs: sample ids of images that show the same.
    """
    members = join(((record.sample_id, keys(record)) for record in records), pairs)
    family = {name: names[0] for names in members for name in names}
    same = ((record.sample_id, published(record)) for record in records)
    labels = {record.sample_id: record.label for record in records}
    why = contradictions(join(same, pairs), labels)
    return Grouping(
        {name: group for name, group in family.items() if name not in why},
        tuple(Dropped(sample_id=name, why=why[name]) for name in sorted(why)),
        family,
    )


def contradictions(same: Iterable[Sequence[str]], labels: Mapping[str, int]) -> dict[str, str]:
    """Return why images are dropped that show the same as one of another class, by sample id.

    Args:
        same: the sample ids of images that show the same, together.
        labels: class by sample id.
    """
    why: dict[str, str] = {}
    for names in same:
        classes = sorted({labels[name] for name in names})
        if len(classes) > 1:
            why |= dict.fromkeys(names, _two_classes(names, classes))
    return why


def _two_classes(sample_ids: Sequence[str], classes: Sequence[int]) -> str:
    return (
        f"its group of {len(sample_ids)} images holds two classes, "
        f"{' and '.join(LABELS[label] for label in classes)}: {', '.join(sample_ids[:8])}"
    )


def keys(record: Record) -> list[tuple[str, str]]:
    """Return what an image shares with those that it belongs with, however it is written."""
    of_patient = [] if record.patient is None else [("patient", canonical(record.patient))]
    return of_patient + published(record)


def published(record: Record) -> list[tuple[str, str]]:
    """Return what an image shares with those that a published file says show the same."""
    return [] if record.published is None else [("group", canonical(record.published))]


def join(
    items: Iterable[tuple[str, Iterable[tuple[str, str]]]], pairs: Iterable[tuple[str, str]]
) -> Iterator[list[str]]:
    """Yield the connected components, by union-find over shared keys and over pairs.

    Components and their items are in the order of their names. Items are known by their number,
    since a mapping of millions of names takes memory.

    Args:
        items: names, and keys that they share with others.
        pairs: names that belong together.
    """
    names: list[str] = []
    links: list[tuple[int, int]] = []
    first: dict[tuple[str, str], int] = {}
    for number, (name, shared) in enumerate(items):
        names.append(name)
        links += [(number, first.setdefault(key, number)) for key in shared]
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[number] for number in order]
    rank = [0] * len(order)
    for at, number in enumerate(order):
        rank[number] = at
    parent = list(range(len(names)))

    def root(at: int) -> int:
        while parent[at] != at:
            parent[at] = parent[parent[at]]
            at = parent[at]
        return at

    def unite(one: int, other: int) -> None:
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)

    for a, b in links:
        unite(rank[a], rank[b])
    for one, other in pairs:
        unite(bisect_left(names, one), bisect_left(names, other))
    for at in range(len(parent)):
        parent[at] = root(at)
    together = sorted(range(len(parent)), key=parent.__getitem__)
    for _, members in groupby(together, parent.__getitem__):
        yield [names[at] for at in members]
