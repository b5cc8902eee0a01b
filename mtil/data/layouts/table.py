"""The layout `table`: columns image, masks, label and optionally patient, fold, pixel_size."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath, PureWindowsPath

from mtil.data.dataset.account import FilesSeen
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import SourceListing, count_source_files, list_source_files
from mtil.data.layouts.paths import FileTree
from mtil.data.layouts.patients import is_unknown_patient, warn_of_missing_patients
from mtil.data.layouts.record import Record, ScanResult, make_refused_record
from mtil.data.layouts.tables import (
    TableRow,
    collect_meta,
    parse_label,
    parse_positive_number,
    read_records,
    read_rows,
)
from mtil.data.names import compose_unicode, is_valid_unicode, normalise_identifier
from mtil.errors import DataError, StorageError
from mtil.storage import Store

REQUIRED = ("image", "masks", "label")
OPTIONAL = ("patient", "fold", "pixel_size")
LICENCE = "not stated"
CITATION = "not stated"

_MAX_NAME_BYTES = 255
"""Longest file or folder name on every common file system."""


def scan_table(
    store: Store,
    name: str,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
    *,
    apart: str = "",
    tables: Collection[str] = (),
) -> ScanResult:
    """Find the images named in a table.

    Paths are relative to the store, or absolute and below the store. A cell names several masks
    joined by `|`; normal images may have no mask. Rows of one image are joined if consistent.
    Columns without a role become the records' meta.

    Args:
        store: the table's folder.
        name: name of the table; `.parquet` and `.xlsx` by suffix, otherwise CSV.
        columns: column by role, for roles with a different column name.
        classes: class by the table's word for the class, in any case.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the table is unreadable or lacks a column, or an option is wrong.
    """
    column_of = _map_roles(columns or {})
    class_of_word = _map_classes(classes or {})
    required = [column_of[role] for role in REQUIRED]
    required += [column_of[role] for role in OPTIONAL if role in (columns or {})]
    notes: list[str] = []
    rows = read_rows(store, name, required, notes, tuple(column_of.values()), one_sheet=True)
    listing = _list_files(store, apart, notes)
    # Ignored files are included: a table may name a hidden file.
    tree = FileTree(store.uri, None if listing is None else [*listing.names, *listing.ignored])
    asked = "patient" in (role.strip().lower() for role in columns or {})
    warnings = warn_of_missing_patients(rows, column_of["patient"], asked=asked)
    records = read_records(
        rows,
        lambda row: _record(row, column_of, class_of_word, tree),
        lambda row: _sample_id(tree, row.values[column_of["image"]]),
        lambda row: _existing_files(row, column_of, tree),
    )
    records = _join_rows(records, [row.where for row in rows], notes)

    def files(unique: Sequence[Record]) -> FilesSeen | None:
        if listing is None:
            return None
        return count_source_files(
            listing, unique, (name, *tables), lambda _: "not named by the table"
        )

    return ScanResult(
        records=_refuse_missing_folds(records, name), files=files, notes=notes, warnings=warnings
    )


def _list_files(store: Store, apart: str, notes: list[str]) -> SourceListing | None:
    """List the files below the table's folder, or note why listing fails."""
    try:
        return list_source_files(store, apart)
    except StorageError as error:
        # Without the right to list, images named in the table can still be read.
        notes.append(f"Files that no row names are not counted: {error}")
        return None


def _map_roles(columns: Mapping[str, str]) -> dict[str, str]:
    """Return lower-case column by role."""
    roles = (*REQUIRED, *OPTIONAL)
    given = {role.strip().lower(): column.strip().lower() for role, column in columns.items()}
    for role, column in given.items():
        if role not in roles or not column:
            raise DataError(
                f"Columns must be given as ROLE=COLUMN, the role one of {', '.join(roles)}, but "
                f"got {role}={column}."
            )
    return {role: given.get(role, role) for role in roles}


def _map_classes(classes: Mapping[str, str]) -> dict[str, str]:
    """Return class by lower-case word of the table."""
    class_of_word: dict[str, str] = {}
    for word, name in classes.items():
        label_name = name.strip().lower()
        if (
            label_name not in LABELS
            or class_of_word.setdefault(word.strip().lower(), label_name) != label_name
        ):
            raise DataError(
                f"Classes must be given once each as WORD=CLASS, the class one of "
                f"{', '.join(LABELS)}, but got {word}={name}."
            )
    return class_of_word


def _record(
    row: TableRow, column_of: Mapping[str, str], class_of_word: Mapping[str, str], tree: FileTree
) -> Record:
    where = row.where
    text_of = {role: row.values.get(column, "") for role, column in column_of.items()}
    sample_id = _sample_id(tree, text_of["image"])
    if not sample_id:
        raise DataError(
            f"{where} must name an image, but its `{column_of['image']}` is empty; fill the "
            "cell in or remove the row."
        )
    index = parse_label(text_of["label"], where, class_of_word)
    masks = _mask_names(text_of["masks"])
    if not masks and LABELS[index] != "normal":
        raise DataError(
            f"{where} must name a mask, since {sample_id!r} is {LABELS[index]}; add the mask or "
            "correct the label."
        )
    image, *files = (_resolve_file(tree, text, where) for text in (text_of["image"], *masks))
    size, patient = text_of["pixel_size"], text_of["patient"]
    return Record(
        sample_id=sample_id,
        label=index,
        image=image,
        masks=tuple(files),
        patient=None if is_unknown_patient(patient) else patient,
        fold=_parse_fold(text_of["fold"], where),
        pixel_size=parse_positive_number(size, where, column_of["pixel_size"]) if size else None,
        meta=collect_meta(row.values, without=tuple(column_of.values())),
    )


def _sample_id(tree: FileTree, image: str) -> str:
    """Return an image's id: the path as written in the table, in Unicode's composed form."""
    return compose_unicode(tree.written(image)) if image else ""


def _mask_names(text: str) -> list[str]:
    return [name.strip() for name in text.split("|") if name.strip()]


def _existing_files(
    row: TableRow, column_of: Mapping[str, str], tree: FileTree
) -> tuple[str, tuple[str, ...]]:
    """Return the image (empty if missing) and the existing masks of a row."""
    masks = _mask_names(row.values[column_of["masks"]])
    existing = [file for mask in masks if (file := tree.find(mask)) is not None]
    return tree.find(row.values[column_of["image"]]) or "", tuple(existing)


def _resolve_file(tree: FileTree, text: str, where: str) -> str:
    """Return the file for a path of the table, or the path itself if no file matches.

    Raises:
        DataError: if the path cannot name a file below the table's folder, or a file with a
            similar path exists.
    """
    file = tree.find(text)
    if file is not None:
        return file
    path, hint = tree.written(text), tree.hint(text)
    absolute = PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive
    if absolute or "://" in path or ".." in PurePosixPath(path.replace("\\", "/")).parts:
        remedy = f"{hint}; write that" if hint else "move the table above its images"
        raise DataError(
            f"{where} must name files below the table's folder, but names {path!r}; {remedy}."
        )
    if not is_valid_unicode(path) or any(
        len(p.encode()) > _MAX_NAME_BYTES for p in path.split("/")
    ):
        raise DataError(
            f"{where} must name files by at most {_MAX_NAME_BYTES} bytes of text, but names "
            f"{path[:60]!r}…; correct the name."
        )
    if hint:
        raise DataError(
            f"{where} must name files that exist, but names {path!r}; {hint}; correct the table."
        )
    # A missing file is reported when the image is read, also where files cannot be listed.
    return path


def _join_rows(records: Sequence[Record], where: Sequence[str], notes: list[str]) -> list[Record]:
    """Join the rows of one image into one record with all masks; refuse contradictory rows."""
    # Tables often have one row per lesion.
    by_image: dict[str, tuple[Record, str]] = {}
    num_rows: dict[str, int] = {}
    for record, row_name in zip(records, where, strict=True):
        # Ids may spell one file differently; the matched file name does not.
        key = str(PurePosixPath(record.image)) if record.image else record.sample_id
        num_rows[key] = num_rows.get(key, 0) + 1
        if key not in by_image:
            by_image[key] = record, row_name
        else:
            by_image[key] = _join_pair(*by_image[key], record, row_name), by_image[key][1]
    repeated = {key: times for key, times in num_rows.items() if times > 1}
    num_joined = sum(by_image[key][0].refused is None for key in repeated)
    if num_joined:
        joined = sum(times for key, times in repeated.items() if by_image[key][0].refused is None)
        notes.append(f"{joined} rows of {num_joined} images are joined, with all their masks.")
    return [record for record, _ in by_image.values()]


def _join_pair(first: Record, first_row: str, second: Record, second_row: str) -> Record:
    masks = tuple(dict.fromkeys((*first.masks, *second.masks)))
    # A refused row refuses the whole image, which would otherwise lack a mask.
    for record in (first, second):
        if record.refused is not None:
            return make_refused_record(first.sample_id, record.refused, first.image, masks)
    for what, a, b in (
        ("label", LABELS[first.label], LABELS[second.label]),
        ("patient", first.patient, second.patient),
        ("fold", first.fold, second.fold),
        ("pixel size", first.pixel_size, second.pixel_size),
    ):
        is_equal = a == b or (
            what == "patient" and normalise_identifier(str(a)) == normalise_identifier(str(b))
        )
        if not is_equal:
            why = (
                f"Rows of one image must have one {what}, but {first.sample_id!r} has {a} in "
                f"{first_row} and {b} in {second_row}; correct or remove one."
            )
            return make_refused_record(first.sample_id, why, first.image, masks)
    meta_of_both = dict(first.meta)
    for key, text in second.meta.items():
        values = meta_of_both.get(key, text).split(" | ")
        meta_of_both[key] = " | ".join(dict.fromkeys((*values, text)))
    return replace(first, masks=masks, meta=meta_of_both)


def _parse_fold(text: str, where: str) -> int | None:
    if not text:
        return None
    # A spreadsheet or data frame with empty cells stores whole numbers as floats.
    digits = text.removesuffix(".0")
    if not (digits.isascii() and digits.isdigit()):
        raise DataError(
            f"{where} must have a fold number, counted from 0, but has {text!r}; correct the fold "
            "or leave the column out."
        )
    return int(digits)


def _refuse_missing_folds(records: list[Record], name: str) -> list[Record]:
    """Return the records, refusing records without a fold if any record has a fold."""
    if all(record.fold is None for record in records):
        return records
    return [
        make_refused_record(
            record.sample_id,
            f"{name} must give a fold for every image or for none, but gives none for "
            f"{record.sample_id!r}; fill the cell in or leave the column out.",
            record.image,
            record.masks,
        )
        if record.fold is None and record.refused is None
        else record
        for record in records
    ]
