"""A CSV or Parquet table: `image,masks,label` and, if there are any, patient, fold, pixel size."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from mtil.data.layouts.record import Record, refused
from mtil.data.layouts.tables import Row, label, meta, number, read_csv, read_each, read_rows
from mtil.data.shards import LABELS
from mtil.errors import DataError
from mtil.storage import Store

REQUIRED = ("image", "masks", "label")
OPTIONAL = ("patient", "fold", "pixel_size")
LICENCE = "not stated"
CITATION = "not stated"

__all__ = ["CITATION", "LICENCE", "OPTIONAL", "REQUIRED", "read_csv", "scan"]


def scan(
    store: Store,
    name: str,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
) -> list[Record]:
    """Read the table of that name; its paths are relative to the store, or below it if absolute.

    Several masks are joined by `|`; normal images may have none. Columns without a role become
    the records' meta.

    Args:
        store: what the paths are relative to.
        name: the table, Parquet by its suffix or else CSV.
        columns: the table's column by role, for roles that have another name there.
        classes: class by the table's word for it; case does not matter.

    Raises:
        DataError: if it is no such table, or a line of it is wrong.
    """
    column_of = _column_of(columns or {})
    words = _words(classes or {})
    required = [column_of[role] for role in REQUIRED]
    required += [column_of[role] for role in OPTIONAL if role in (columns or {})]
    rows = read_rows(store, name, required)
    records = read_each(
        rows,
        lambda row: _record(row, column_of, words, store.uri),
        lambda row: _below(store.uri, row.values[column_of["image"]]),
    )
    return _with_all_folds(records, name)


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


def _record(row: Row, column_of: Mapping[str, str], words: Mapping[str, str], root: str) -> Record:
    where = row.where
    given = {role: row.values.get(column, "") for role, column in column_of.items()}
    image = _below(root, given["image"])
    if not image:
        raise DataError(
            f"{where} must name an image, but its `{column_of['image']}` is empty; fill it in or "
            "remove the row."
        )
    index = label(given["label"], where, words)
    masks = tuple(_below(root, name.strip()) for name in given["masks"].split("|") if name.strip())
    if not masks and LABELS[index] != "normal":
        raise DataError(
            f"{where} must name a mask, since {image!r} is {LABELS[index]}; add it or correct the "
            "label."
        )
    for path in (image, *masks):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DataError(
                f"{where} must name files below the table's folder, but names {path!r}; "
                "move the table above its images."
            )
    size = given["pixel_size"]
    return Record(
        sample_id=image,
        label=index,
        image=image,
        masks=masks,
        patient=given["patient"] or None,
        fold=_fold(given["fold"], where),
        pixel_size=number(size, where, column_of["pixel_size"]) if size else None,
        meta=meta(row.values, without=tuple(column_of.values())),
    )


def _below(root: str, path: str) -> str:
    """Return a path relative to the table's folder, if it lies below it."""
    return path.removeprefix(root.rstrip("/") + "/")


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
        )
        if record.fold is None and record.refused is None
        else record
        for record in records
    ]
