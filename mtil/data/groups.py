"""Images that belong together: a patient's, or those that a published file calls duplicates."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
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


def read_file(uri: str, records: Sequence[Record]) -> dict[str, str]:
    """Read a published group file: a CSV with `image_id` and `group`, one line an image.

    Returns:
        Group by sample id, for the images of the collection; other lines are ignored.

    Raises:
        DataError: if an image is missing from it or has two groups.
    """
    parent, name = split_uri(uri)
    found: dict[str, str] = {}
    for line, row in read_csv(open_store(parent), name, ("image_id", "group")):
        sample_id, group = row["image_id"], row["group"]
        if not sample_id or not group:
            raise DataError(f"Line {line} of {name} must give an image_id and a group.")
        if found.setdefault(sample_id, group) != group:
            raise DataError(
                f"An image must have one group, but {name} gives {sample_id!r} the groups "
                f"{found[sample_id]!r} and {group!r}."
            )
    missing = [record.sample_id for record in records if record.sample_id not in found]
    if missing:
        raise DataError(
            f"{name} must give every image a group, but lacks {len(missing)} of {len(records)}, "
            f"such as {missing[0]!r}; its image_id must be the sample id."
        )
    return {record.sample_id: found[record.sample_id] for record in records}


def group(records: Sequence[Record], published: Mapping[str, str] | None = None) -> Grouping:
    """Join images that share a patient or a published group, directly or through others.

    Groups that hold two classes are dropped with all of their images: one lesion cannot be both,
    and nobody can say which label is wrong.

    Args:
        records: the collection's images.
        published: group by sample id, from `read_file`.
    """
    members = _joined(
        (record.sample_id, _keys(record, published))
        for record in sorted(records, key=lambda record: record.sample_id)
    )
    labels = {record.sample_id: record.label for record in records}
    kept: dict[str, str] = {}
    dropped: list[Dropped] = []
    for sample_ids in members:
        classes = sorted({labels[sample_id] for sample_id in sample_ids})
        if len(classes) == 1:
            kept.update(dict.fromkeys(sample_ids, sample_ids[0]))
            continue
        why = (
            f"its group of {len(sample_ids)} images holds two classes, "
            f"{' and '.join(LABELS[label] for label in classes)}: {', '.join(sample_ids[:8])}"
        )
        dropped += [Dropped(sample_id=sample_id, why=why) for sample_id in sample_ids]
    return Grouping(kept, tuple(sorted(dropped, key=lambda item: item.sample_id)))


def _keys(record: Record, published: Mapping[str, str] | None) -> list[tuple[str, str]]:
    keys = []
    if record.patient is not None:
        keys.append(("patient", record.patient))
    if published is not None:
        keys.append(("group", published[record.sample_id]))
    return keys


def _joined(items: Iterable[tuple[str, list[tuple[str, str]]]]) -> list[list[str]]:
    """Return the items of each connected component, by union-find over shared keys."""
    parent: dict[str, str] = {}
    first: dict[tuple[str, str], str] = {}

    def root(item: str) -> str:
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    for item, keys in items:
        parent[item] = item
        for key in keys:
            a, b = root(item), root(first.setdefault(key, item))
            parent[max(a, b)] = min(a, b)
    components: dict[str, list[str]] = defaultdict(list)
    for item in parent:
        components[root(item)].append(item)
    return list(components.values())
