"""A table of any kind: `image,masks,label` and, if there are any, patient, fold, pixel size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import Listing, count, look
from mtil.data.layouts.matching import Tree
from mtil.data.layouts.patients import is_unknown, warn
from mtil.data.layouts.record import Found, Record, refused
from mtil.data.layouts.tables import Row, label, meta, number, read_each, read_rows
from mtil.data.names import canonical, composed, is_text
from mtil.errors import DataError, StorageError
from mtil.storage import Store

REQUIRED = ("image", "masks", "label")
OPTIONAL = ("patient", "fold", "pixel_size")
LICENCE = "not stated"
CITATION = "not stated"

_MAX_NAME_BYTES = 255
"""Of a file's or a folder's name, on every common file system."""


def scan(
    store: Store,
    name: str,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
    *,
    apart: str = "",
    tables: Collection[str] = (),
) -> Found:
    """Read the table of that name; its paths are relative to the store, or below it if absolute.

    Several masks are joined by `|`; normal images may have none. Rows of one image that agree are
    joined, a row a lesion being common. Columns without a role become the records' meta.

    Args:
        store: what the paths are relative to.
        name: the table, Parquet or Excel by its suffix or else CSV.
        columns: the table's column by role, for roles that have another name there.
        classes: class by the table's word for it; case does not matter.
        apart: see `files.look`.
        tables: more tables of the collection, for its account.

    Raises:
        DataError: if it is no such table, or a line of it is wrong.
    """
    column_of = _column_of(columns or {})
    words = _words(classes or {})
    required = [column_of[role] for role in REQUIRED]
    required += [column_of[role] for role in OPTIONAL if role in (columns or {})]
    notes: list[str] = []
    rows = read_rows(store, name, required, notes, tuple(column_of.values()), one_sheet=True)
    listing = _look(store, apart, notes)
    tree = Tree(store.uri, None if listing is None else [*listing.names, *listing.ignored])
    asked = "patient" in (role.strip().lower() for role in columns or {})
    warnings = warn(rows, column_of["patient"], asked=asked)
    records = read_each(
        rows,
        lambda row: _record(row, column_of, words, tree),
        lambda row: _sample_id(tree, row.values[column_of["image"]]),
        lambda row: _files(row, column_of, tree),
    )
    records = _joined(records, [row.where for row in rows], notes)

    def files(found: Sequence[Record]) -> FilesSeen | None:
        if listing is None:
            return None
        return count(listing, found, (name, *tables), lambda _: "not named by the table")

    return Found(
        records=_with_all_folds(records, name), files=files, notes=notes, warnings=warnings
    )


def _look(store: Store, apart: str, notes: list[str]) -> Listing | None:
    """List what lies below the table's folder, or note why that cannot be done."""
    try:
        return look(store, apart)
    except StorageError as error:  # images are read one by one all the same
        notes.append(f"Files that no row names are not counted: {error}")
        return None


def _column_of(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the table's lower-case column by role."""
    roles = (*REQUIRED, *OPTIONAL)
    given = {role.strip().lower(): column.strip().lower() for role, column in columns.items()}
    for role, column in given.items():
        if role not in roles or not column:
            raise DataError(
                f"Columns must be given as ROLE=COLUMN, the role one of {', '.join(roles)}, but "
                f"got {role}={column}."
            )
    return {role: given.get(role, role) for role in roles}


def _words(classes: Mapping[str, str]) -> dict[str, str]:
    """Return the class by lower-case word for it."""
    words: dict[str, str] = {}
    for word, name in classes.items():
        known = name.strip().lower()
        if known not in LABELS or words.setdefault(word.strip().lower(), known) != known:
            raise DataError(
                f"Classes must be given once each as WORD=CLASS, the class one of "
                f"{', '.join(LABELS)}, but got {word}={name}."
            )
    return words


def _record(row: Row, column_of: Mapping[str, str], words: Mapping[str, str], tree: Tree) -> Record:
    where = row.where
    given = {role: row.values.get(column, "") for role, column in column_of.items()}
    sample_id = _sample_id(tree, given["image"])
    if not sample_id:
        raise DataError(
            f"{where} must name an image, but its `{column_of['image']}` is empty; fill it in or "
            "remove the row."
        )
    index = label(given["label"], where, words)
    masks = _mask_names(given["masks"])
    if not masks and LABELS[index] != "normal":
        raise DataError(
            f"{where} must name a mask, since {sample_id!r} is {LABELS[index]}; add it or correct "
            "the label."
        )
    image, *files = (_file(tree, text, where) for text in (given["image"], *masks))
    size, patient = given["pixel_size"], given["patient"]
    return Record(
        sample_id=sample_id,
        label=index,
        image=image,
        masks=tuple(files),
        patient=None if is_unknown(patient) else patient,
        fold=_fold(given["fold"], where),
        pixel_size=number(size, where, column_of["pixel_size"]) if size else None,
        meta=meta(row.values, without=tuple(column_of.values())),
    )


def _sample_id(tree: Tree, image: str) -> str:
    """Return an image's id: its path as the table has it, in Unicode's composed form."""
    return composed(tree.written(image)) if image else ""


def _mask_names(text: str) -> list[str]:
    return [name.strip() for name in text.split("|") if name.strip()]


def _files(row: Row, column_of: Mapping[str, str], tree: Tree) -> tuple[str, tuple[str, ...]]:
    """Return the files that a row names, as far as they are there."""
    masks = _mask_names(row.values[column_of["masks"]])
    found = [file for mask in masks if (file := tree.find(mask)) is not None]
    return tree.find(row.values[column_of["image"]]) or "", tuple(found)


def _file(tree: Tree, text: str, where: str) -> str:
    """Return the file that a path means, or the path itself if none is known.

    Raises:
        DataError: if the path cannot name a file below the table's folder, or another is likely.
    """
    found = tree.find(text)
    if found is not None:
        return found
    path, hint = tree.written(text), tree.hint(text)
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive
    if absolute or "://" in path or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        way = f"{hint}; write that" if hint else "move the table above its images"
        raise DataError(
            f"{where} must name files below the table's folder, but names {path!r}; {way}."
        )
    if not is_text(path) or any(len(p.encode()) > _MAX_NAME_BYTES for p in path.split("/")):
        raise DataError(
            f"{where} must name files by at most {_MAX_NAME_BYTES} bytes of text, but names "
            f"{path[:60]!r}…; correct it."
        )
    if hint:
        raise DataError(
            f"{where} must name files that are there, but names {path!r}; {hint}; correct the "
            "table."
        )
    return path


def _joined(records: Sequence[Record], where: Sequence[str], notes: list[str]) -> list[Record]:
    """Join the rows of one image, whose masks add up; refuse those that contradict each other."""
    found: dict[str, tuple[Record, str]] = {}
    rows: dict[str, int] = {}
    for record, here in zip(records, where, strict=True):
        key = str(PurePosixPath(record.image)) if record.image else record.sample_id
        rows[key] = rows.get(key, 0) + 1
        if key not in found:
            found[key] = record, here
        else:
            found[key] = _join(*found[key], record, here), found[key][1]
    several = {key: times for key, times in rows.items() if times > 1}
    num_joined = sum(found[key][0].refused is None for key in several)
    if num_joined:
        joined = sum(times for key, times in several.items() if found[key][0].refused is None)
        notes.append(f"{joined} rows of {num_joined} images are joined, with all their masks.")
    return [record for record, _ in found.values()]


def _join(one: Record, first: str, other: Record, second: str) -> Record:
    masks = tuple(dict.fromkeys((*one.masks, *other.masks)))
    for record in (one, other):
        if record.refused is not None:
            return refused(one.sample_id, record.refused, one.image, masks)
    for what, a, b in (
        ("label", LABELS[one.label], LABELS[other.label]),
        ("patient", one.patient, other.patient),
        ("fold", one.fold, other.fold),
        ("pixel size", one.pixel_size, other.pixel_size),
    ):
        same = a == b or (what == "patient" and canonical(str(a)) == canonical(str(b)))
        if not same:
            why = (
                f"Rows of one image must have one {what}, but {one.sample_id!r} has {a} in {first} "
                f"and {b} in {second}; correct or remove one."
            )
            return refused(one.sample_id, why, one.image, masks)
    said = dict(one.meta)
    for key, text in other.meta.items():
        values = said.get(key, text).split(" | ")
        said[key] = " | ".join(dict.fromkeys((*values, text)))
    return replace(one, masks=masks, meta=said)


def _fold(text: str, where: str) -> int | None:
    if not text:
        return None
    number = text.removesuffix(".0")
    if not (number.isascii() and number.isdigit()):
        raise DataError(
            f"{where} must have a fold number, counted from 0, but has {text!r}; correct it or "
            "leave the column away."
        )
    return int(number)


def _with_all_folds(records: list[Record], name: str) -> list[Record]:
    """Return the records, refused where only others are given a fold."""
    if all(record.fold is None for record in records):
        return records
    return [
        refused(
            record.sample_id,
            f"{name} must give a fold for every image or for none, but gives none for "
            f"{record.sample_id!r}; fill it in or leave the column away.",
            record.image,
            record.masks,
        )
        if record.fold is None and record.refused is None
        else record
        for record in records
    ]
