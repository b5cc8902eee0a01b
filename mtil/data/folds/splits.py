"""Read and write `splits.json`, the editable file with the fold and inner part of every image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds.assign import MAX_FOLDS, NUM_PARTS, FoldAssignment
from mtil.data.folds.groups import read_table_rows
from mtil.data.layouts.record import Record
from mtil.data.names import normalise_path
from mtil.documents import MIB, Document, format_value
from mtil.errors import DataError, NotFoundError
from mtil.storage import open_store, split_uri

SPLITS_FILE = "splits.json"
SPLITS_RULE = "splits file"
_MAX_BYTES = 128 * MIB


def serialize_splits(assignment: FoldAssignment, group: Mapping[str, str]) -> bytes:
    """Return the bytes of `splits.json`, one line per image."""
    head = {
        "rule": assignment.rule,
        "num_folds": assignment.num_folds,
        "num_parts": assignment.num_parts,
    }
    # `json.dumps` with an indent would write several lines per image, hard to edit and compare.
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: "
        + json.dumps({"fold": fold, "part": part, "group": group[name]}, ensure_ascii=False)
        for name, (fold, part) in sorted(assignment.place.items())
    ]
    opening = json.dumps(head, indent=1)[:-2]
    return (opening + ',\n "images": {\n' + ",\n".join(lines) + "\n }\n}\n").encode()


def read_splits_file(uri: str) -> FoldAssignment:
    """Read a splits file into an assignment with the rule `SPLITS_RULE`.

    Raises:
        DataError: if the file is missing or malformed, or a fold or part is out of range.
    """
    parent, name = split_uri(uri)
    document = Document(uri, "write it as `mtil prepare` does", max_bytes=_MAX_BYTES)
    try:
        values = document.object(document.read(open_store(parent), name))
    except NotFoundError:
        raise DataError(f"The splits file {uri} does not exist; check the name.") from None
    images = values.get("images")
    if not isinstance(images, dict):
        raise DataError(
            f"{uri} must have `images`, a fold and a part by sample id; write the file as "
            "`mtil prepare` does."
        )
    num_folds = _check_integer(values.get("num_folds"), 2, MAX_FOLDS, f"`num_folds` of {uri}")
    num_parts = _check_integer(values.get("num_parts"), 2, NUM_PARTS, f"`num_parts` of {uri}")
    place: dict[str, tuple[int, int]] = {}
    for name, entry in images.items():
        where, fields = f"{format_value(name)} in {uri}", entry if isinstance(entry, dict) else {}
        fold = _check_integer(fields.get("fold"), HOLDOUT, num_folds - 1, f"The fold of {where}")
        part = _check_integer(fields.get("part"), 0, num_parts - 1, f"The part of {where}")
        place[name] = (fold, part)
    return FoldAssignment(SPLITS_RULE, num_folds, num_parts, place)


def select_kept(
    given: FoldAssignment,
    records: Sequence[Record],
    group: Mapping[str, str],
    *,
    whole_groups: bool,
) -> FoldAssignment:
    """Return the assignment of a splits file, reduced to the kept images.

    Args:
        given: assignment of the splits file.
        records: the kept images.
        group: group by sample id.
        whole_groups: whether a group must lie in one fold and one part.

    Raises:
        DataError: if the file lacks an image or divides a group.
    """
    place: dict[str, tuple[int, int]] = {}
    first_of_group: dict[str, str] = {}
    for record in records:
        own_place = given.place.get(record.sample_id)
        if own_place is None:
            raise DataError(
                f"A splits file must place every image, but lacks {record.sample_id!r}; add the "
                "image."
            )
        place[record.sample_id] = own_place
        first = first_of_group.setdefault(group[record.sample_id], record.sample_id)
        for what, a, b in zip(("fold", "part"), place[first], own_place, strict=True):
            if whole_groups and a != b:
                raise DataError(
                    f"A group must lie in one {what}, but the splits file has {first!r} in {what} "
                    f"{a} and {record.sample_id!r} in {what} {b}; use one {what} for both."
                )
    return replace(given, place=place)


def read_holdout_file(
    uri: str, read: Sequence[Record], kept: Sequence[Record], group: Mapping[str, str]
) -> set[str]:
    """Read a table of images for a final test (column `image_id`) and return the groups.

    Args:
        uri: path or URI of the table.
        read: all images, kept and dropped; the table may name any.
        kept: the kept images.
        group: group by sample id of the kept images.

    Raises:
        DataError: if the table is unreadable, names an unknown image, or names no kept image.
    """
    names = {normalise_path(row.values["image_id"]) for row in read_table_rows(uri, ("image_id",))}
    unknown = sorted(names - {normalise_path(record.sample_id) for record in read})
    if unknown:
        raise DataError(
            f"A holdout file must name images of the sources, but {uri} names {len(unknown)} "
            f"unknown images, such as {unknown[0]!r}; use sample ids as image_id."
        )
    chosen = {
        group[record.sample_id] for record in kept if normalise_path(record.sample_id) in names
    }
    if not chosen:
        raise DataError(
            f"A holdout file must name kept images, but {uri} names none; use sample ids as "
            "image_id."
        )
    return chosen


def _check_integer(value: object, low: int, high: int, what: str) -> int:
    # In Python, `True` is an integer too.
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise DataError(
            f"{what} must be a number from {low} to {high}, but is {format_value(value)}; correct "
            "the file."
        )
    return value
