"""Group images by patient, by published group, and by pairs of near-copies."""

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mtil.data.dataset.manifest import DroppedImage
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import TableRow, read_rows
from mtil.data.names import escape_unprintable, normalise_identifier, normalise_path
from mtil.errors import DataError
from mtil.storage import open_store, split_uri


@dataclass(frozen=True)
class Grouping:
    """The group of every kept image, and the dropped images."""

    group: Mapping[str, str]
    """Group by sample id of the kept images. A group is named after the first image."""
    dropped: tuple[DroppedImage, ...]
    family: Mapping[str, str]
    """Group by sample id of all images, kept and dropped."""


@dataclass(frozen=True)
class PublishedRow:
    """What a published group file says of an image."""

    group: str
    objection: str = ""
    """Why a review of the collection objects to the image; empty without an objection."""


def read_group_file(
    uri: str, records: Sequence[Record], optional: Container[str] = ()
) -> dict[str, PublishedRow]:
    """Read a published group file: a table with a row an image.

    The columns are `image_id`, `group` and, if the file has it, `objection`.

    Args:
        uri: the file; CSV, Excel or Parquet by suffix.
        records: images of the collection.
        optional: sample ids the file may lack.

    Returns:
        Row by sample id, for the images of the collection. Rows of unknown images are ignored.

    Raises:
        DataError: if the file is unreadable, lacks an image, or gives an image two groups.
    """
    _, name = split_uri(uri)
    # Keys are plain paths: the file may spell an id differently, like `./img//a.png`.
    row_of: dict[str, PublishedRow] = {}
    for row in read_table_rows(uri, ("image_id", "group")):
        sample_id, group = row.values["image_id"], row.values["group"]
        if not sample_id or not group:
            raise DataError(
                f"{row.where} must give an image_id and a group, but lacks a value; fill the row "
                "in or remove the row."
            )
        published = PublishedRow(group, row.values.get("objection", ""))
        first = row_of.setdefault(normalise_path(sample_id), published)
        if normalise_identifier(first.group) != normalise_identifier(group):
            raise DataError(
                f"An image must have one group, but {name} gives {sample_id!r} the groups "
                f"{first.group!r} and {group!r}; correct the file."
            )
        if first.objection != published.objection:
            raise DataError(
                f"An image must have one objection, but {name} gives {sample_id!r} "
                f"{first.objection!r} and {published.objection!r}; correct the file."
            )
    missing = [
        record.sample_id
        for record in records
        if normalise_path(record.sample_id) not in row_of and record.sample_id not in optional
    ]
    if missing:
        raise DataError(
            f"{name} must give every image a group, but lacks {len(missing)} of {len(records)}, "
            f"such as {missing[0]!r}; use sample ids as image_id."
        )
    return {
        record.sample_id: row_of[normalise_path(record.sample_id)]
        for record in records
        if normalise_path(record.sample_id) in row_of
    }


def read_table_rows(uri: str, required: tuple[str, ...]) -> list[TableRow]:
    """Read a CSV, Excel or Parquet file about the images of a collection.

    Args:
        uri: path or URI of the file.
        required: lower-case names of the required columns.

    Raises:
        DataError: if the file is missing, lacks a column, or has a formula without a result.
    """
    parent, name = split_uri(uri)
    try:
        rows = read_rows(open_store(parent), name, required, one_sheet=True)
    except DataError as error:
        raise DataError(escape_unprintable(str(error))) from None
    for row in rows:
        if row.wrong is not None:
            raise DataError(escape_unprintable(row.wrong))
    return rows


def group_images(records: Sequence[Record], pairs: Sequence[tuple[str, str]] = ()) -> Grouping:
    """Group images connected by patient, published group or pair, directly or indirectly.

    Images of the same tissue (by pairs or published group) are dropped if labelled with two
    classes. Images of one patient may have several classes and stay in a group.

    Args:
        records: all images.
        pairs: pairs of sample ids of near-copies.
    """
    members = find_components(
        ((record.sample_id, list_group_keys(record)) for record in records), pairs
    )
    family = {name: names[0] for names in members for name in names}
    # Patients are left out: a patient may have a benign and a malignant lesion.
    same_tissue = ((record.sample_id, list_published_keys(record)) for record in records)
    labels = {record.sample_id: record.label for record in records}
    why = find_contradictions(find_components(same_tissue, pairs), labels)
    return Grouping(
        {name: group for name, group in family.items() if name not in why},
        tuple(DroppedImage(sample_id=name, why=why[name]) for name in sorted(why)),
        family,
    )


def find_contradictions(same: Iterable[Sequence[str]], labels: Mapping[str, int]) -> dict[str, str]:
    """Return the reason for dropping, by sample id, of images with contradictory labels.

    Args:
        same: sample ids of images of the same tissue, tissue by tissue.
        labels: class by sample id.
    """
    # A lesion cannot be of two classes, and nothing tells which label is wrong: drop all images.
    why: dict[str, str] = {}
    for names in same:
        classes = sorted({labels[name] for name in names})
        if len(classes) > 1:
            why |= dict.fromkeys(names, _describe_classes(names, classes))
    return why


def _describe_classes(sample_ids: Sequence[str], classes: Sequence[int]) -> str:
    # The account shortens this sentence by a pattern (`mtil.data.dataset.account`).
    return (
        f"its group of {len(sample_ids)} images holds two classes, "
        f"{' and '.join(LABELS[label] for label in classes)}: {', '.join(sample_ids[:8])}"
    )


def list_group_keys(record: Record) -> list[tuple[str, str]]:
    """Return the grouping keys of an image: kind of key and canonical name."""
    patient_keys = (
        [] if record.patient is None else [("patient", normalise_identifier(record.patient))]
    )
    return patient_keys + list_published_keys(record)


def list_published_keys(record: Record) -> list[tuple[str, str]]:
    """Return the grouping key of an image's published group, or an empty list."""
    return [] if record.published is None else [("group", normalise_identifier(record.published))]


def find_components(
    items: Iterable[tuple[str, Iterable[tuple[str, str]]]], pairs: Iterable[tuple[str, str]]
) -> Iterator[list[str]]:
    """Yield the connected components of items linked by shared keys or by pairs.

    Components are sorted by first name; the names of a component are sorted.

    Args:
        items: name and keys of every item; items with a common key are connected.
        pairs: pairs of names of connected items.
    """
    # Union-find over indices: a dictionary of millions of names would take too much memory.
    names: list[str] = []
    links: list[tuple[int, int]] = []
    first_with_key: dict[tuple[str, str], int] = {}
    for index, (name, item_keys) in enumerate(items):
        names.append(name)
        links += [(index, first_with_key.setdefault(key, index)) for key in item_keys]
    order = sorted(range(len(names)), key=names.__getitem__)
    names = [names[index] for index in order]
    rank = [0] * len(order)
    for position, index in enumerate(order):
        rank[index] = position
    parent = list(range(len(names)))

    def find_root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def unite(first: int, second: int) -> None:
        # The smaller index becomes the root: the first item names the component.
        a, b = find_root(first), find_root(second)
        parent[max(a, b)] = min(a, b)

    for a, b in links:
        unite(rank[a], rank[b])
    for first, second in pairs:
        unite(bisect_left(names, first), bisect_left(names, second))
    for node in range(len(parent)):
        parent[node] = find_root(node)
    by_root = sorted(range(len(parent)), key=parent.__getitem__)
    for _, members in groupby(by_root, parent.__getitem__):
        yield [names[node] for node in members]
