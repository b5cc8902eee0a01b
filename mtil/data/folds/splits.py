"""`splits.json`: which fold and inner part every image is in, to be read, edited and given back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds.assign import MAX_FOLDS, NUM_PARTS, Assignment
from mtil.data.folds.groups import read_table
from mtil.data.layouts.record import Record
from mtil.data.names import plain
from mtil.documents import MIB, Document, shown
from mtil.errors import DataError, NotFoundError
from mtil.storage import open_store, split_uri

FILE_NAME = "splits.json"
RULE = "splits file"
_MAX_BYTES = 128 * MIB


def to_json(assignment: Assignment, group: Mapping[str, str]) -> bytes:
    """Return the text of `splits.json`, a line an image."""
    head = {
        "rule": assignment.rule,
        "num_folds": assignment.num_folds,
        "num_parts": assignment.num_parts,
    }
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: "
        + json.dumps({"fold": fold, "part": part, "group": group[name]}, ensure_ascii=False)
        for name, (fold, part) in sorted(assignment.place.items())
    ]
    opening = json.dumps(head, indent=1)[:-2]
    return (opening + ',\n "images": {\n' + ",\n".join(lines) + "\n }\n}\n").encode()


def read_file(uri: str) -> Assignment:
    """Read a splits file; its rule is that it says so.

    Raises:
        DataError: if it is no such file, or places an image where none can be.
    """
    parent, name = split_uri(uri)
    document = Document(uri, "write it as `mtil prepare` does", max_bytes=_MAX_BYTES)
    try:
        values = document.object(document.read(open_store(parent), name))
    except NotFoundError:
        raise DataError(f"The splits file {uri} does not exist.") from None
    images = values.get("images")
    if not isinstance(images, dict):
        raise DataError(
            f"{uri} must have `images`, a fold and a part by sample id; write it as `mtil prepare` "
            "does."
        )
    num_folds = _number(values.get("num_folds"), 2, MAX_FOLDS, f"`num_folds` of {uri}")
    num_parts = _number(values.get("num_parts"), 2, NUM_PARTS, f"`num_parts` of {uri}")
    place: dict[str, tuple[int, int]] = {}
    for name, entry in images.items():
        where, found = f"{shown(name)} in {uri}", entry if isinstance(entry, dict) else {}
        fold = _number(found.get("fold"), HOLDOUT, num_folds - 1, f"The fold of {where}")
        part = _number(found.get("part"), 0, num_parts - 1, f"The part of {where}")
        place[name] = (fold, part)
    return Assignment(RULE, num_folds, num_parts, place)


def of_kept(
    given: Assignment, records: Sequence[Record], group: Mapping[str, str], *, whole_groups: bool
) -> Assignment:
    """Return what a splits file says of the images that are kept; others are ignored.

    Args:
        given: what it says.
        records: the images that are kept.
        group: group by sample id.
        whole_groups: whether a group must lie in one fold.

    Raises:
        DataError: if it lacks an image or parts a group.
    """
    place: dict[str, tuple[int, int]] = {}
    seen: dict[str, str] = {}
    for record in records:
        here = given.place.get(record.sample_id)
        if here is None:
            raise DataError(
                f"A splits file must place every image, but it lacks {record.sample_id!r}; add it."
            )
        place[record.sample_id] = here
        other = seen.setdefault(group[record.sample_id], record.sample_id)
        for what, one, two in zip(("fold", "part"), place[other], here, strict=True):
            if whole_groups and one != two:
                raise DataError(
                    f"A group must lie in one {what}, but the splits file has {other!r} in {what} "
                    f"{one} and {record.sample_id!r} in {what} {two}; give them the same."
                )
    return replace(given, place=place)


def read_holdout(
    uri: str, read: Sequence[Record], kept: Sequence[Record], group: Mapping[str, str]
) -> set[str]:
    """Read a table with the `image_id` of images for a final test, and return their groups.

    Args:
        uri: the file.
        read: all images, of which it may name any.
        kept: those that are kept.
        group: group by sample id of those that are kept.

    Raises:
        DataError: if it is no such file, names an image that is not there, or none that is kept.
    """
    names = {plain(row.values["image_id"]) for row in read_table(uri, ("image_id",))}
    unknown = sorted(names - {plain(record.sample_id) for record in read})
    if unknown:
        raise DataError(
            f"A holdout file must name images of the sources, but {uri} names {len(unknown)} that "
            f"none has, such as {unknown[0]!r}; its image_id must be the sample id."
        )
    chosen = {group[record.sample_id] for record in kept if plain(record.sample_id) in names}
    if not chosen:
        raise DataError(
            f"A holdout file must name images that are kept, but {uri} names none; its image_id "
            "must be the sample id."
        )
    return chosen


def _number(value: object, low: int, high: int, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(f"{what} must be a number from {low} to {high}, but is {shown(value)}.")
    return value
