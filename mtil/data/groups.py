"""Images that belong together: a patient's, or those that a published file calls duplicates."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtil.data.layouts.record import Record
from mtil.data.layouts.table import read_csv
from mtil.data.manifest import Dropped
from mtil.data.shards import LABELS
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
    """Read a published group file: a CSV with `image_id` and `group`, one line an image.

    Args:
        uri: the file.
        records: the collection's images.
        optional: sample ids that it may lack.

    Returns:
        Group by sample id, for the images of the collection; other lines are ignored.

    Raises:
        DataError: if an image is missing from it or has two groups.
    """
    _, name = split_uri(uri)
    found: dict[str, str] = {}
    for line, row in read_table(uri, ("image_id", "group")):
        sample_id, group = row["image_id"], row["group"]
        if not sample_id or not group:
            raise DataError(f"Line {line} of {name} must give an image_id and a group.")
        if found.setdefault(sample_id, group) != group:
            raise DataError(
                f"An image must have one group, but {name} gives {sample_id!r} the groups "
                f"{found[sample_id]!r} and {group!r}."
            )
    missing = [
        record.sample_id
        for record in records
        if record.sample_id not in found and record.sample_id not in optional
    ]
    if missing:
        raise DataError(
            f"{name} must give every image a group, but lacks {len(missing)} of {len(records)}, "
            f"such as {missing[0]!r}; its image_id must be the sample id."
        )
    return {
        record.sample_id: found[record.sample_id] for record in records if record.sample_id in found
    }


def read_table(uri: str, required: tuple[str, ...]) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file that lies beside a collection into (line number, values by column).

    Raises:
        DataError: if it is missing, or lacks a column or a value.
    """
    parent, name = split_uri(uri)
    return read_csv(open_store(parent), name, required)


def group(records: Sequence[Record], pairs: Sequence[tuple[str, str]] = ()) -> Grouping:
    """Join images that share a patient or a published group or are a pair, directly or not.

    Groups that hold two classes are dropped with all of their images: one lesion cannot be both,
    and nobody can say which label is wrong.

    Args:
        records: the collection's images.
        pairs: sample ids of images that show the same.
    """
    members = join(((record.sample_id, keys(record)) for record in records), pairs)
    labels = {record.sample_id: record.label for record in records}
    kept: dict[str, str] = {}
    family: dict[str, str] = {}
    dropped: list[Dropped] = []
    for sample_ids in members:
        family.update(dict.fromkeys(sample_ids, sample_ids[0]))
        classes = sorted({labels[sample_id] for sample_id in sample_ids})
        if len(classes) == 1:
            kept.update(dict.fromkeys(sample_ids, sample_ids[0]))
            continue
        why = two_classes(sample_ids, classes)
        dropped += [Dropped(sample_id=sample_id, why=why) for sample_id in sample_ids]
    return Grouping(kept, tuple(sorted(dropped, key=lambda item: item.sample_id)), family)


def two_classes(sample_ids: Sequence[str], classes: Sequence[int]) -> str:
    """Say why the images of a group are dropped."""
    return (
        f"its group of {len(sample_ids)} images holds two classes, "
        f"{' and '.join(LABELS[label] for label in classes)}: {', '.join(sample_ids[:8])}"
    )


def keys(record: Record) -> list[tuple[str, str]]:
    """Return what an image shares with those that it belongs with."""
    found = []
    if record.patient is not None:
        found.append(("patient", record.patient))
    if record.published is not None:
        found.append(("group", record.published))
    return found


def join(
    items: Iterable[tuple[str, list[tuple[str, str]]]], pairs: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """Return the connected components, by union-find over shared keys and over pairs.

    Components and their items are in the order of their names.
    """
    parent: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def unite(one: str, other: str) -> None:
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)

    for item, keys in sorted(items):
        parent[item] = item
        for key in keys:
            unite(item, first.setdefault(key, item))
    for one, other in pairs:
        unite(one, other)
    components: dict[str, list[str]] = defaultdict(list)
    for item in parent:
        components[root(item)].append(item)
    return list(components.values())
