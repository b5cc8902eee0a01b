"""A CSV table: `image,masks,label` and, if there are any, `patient` and `fold`."""

import csv
import io
from pathlib import PurePosixPath

from mtil.data.layouts.record import Record
from mtil.data.shards import LABELS
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

REQUIRED = ("image", "masks", "label")
LICENCE = "not stated"
CITATION = "not stated"


def scan(store: Store, name: str) -> list[Record]:
    """Read the table of that name; its paths are relative to the store.

    Several masks are joined by `|`; normal images may have none. Other columns are ignored.

    Raises:
        DataError: if it is no such table, or a line of it is wrong.
    """
    rows = read_csv(store, name, REQUIRED)
    records = [_record(row, f"Line {line} of {name}") for line, row in rows]
    if not records:
        raise DataError(f"A table must have lines, but {name} has only its header.")
    _check_folds(records, name)
    return records


def read_csv(
    store: Store, name: str, required: tuple[str, ...]
) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV file with a header into (line number, values by column), without empty lines.

    Raises:
        DataError: if it is missing, is not UTF-8 text, or lacks a column or a value.
    """
    text = _text(store, name)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip().lower() for column in next(reader, [])]
        missing = [column for column in required if column not in header]
        if missing:
            raise DataError(
                f"{name} must have the columns {', '.join(required)}, but lacks "
                f"{', '.join(missing)}; its first line is {','.join(header)[:80]!r}."
            )
        rows = []
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(header):
                raise DataError(
                    f"Line {reader.line_num} of {name} must have {len(header)} values, as the "
                    f"header, but has {len(values)}; quote values that hold commas."
                )
            stripped = (value.strip() for value in values)
            rows.append((reader.line_num, dict(zip(header, stripped, strict=True))))
    except csv.Error as error:
        raise DataError(f"Line {reader.line_num} of {name} is no CSV: {error}.") from None
    return rows


def _text(store: Store, name: str) -> str:
    try:
        return store.read(name).decode("utf-8-sig")
    except NotFoundError:
        raise DataError(
            f"A table must be a CSV file, but {store.uri}/{name} is a folder or does not exist."
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"A table must be UTF-8 text, but {store.uri}/{name} is not.") from None


def _record(row: dict[str, str], where: str) -> Record:
    if not row["image"]:
        raise DataError(f"{where} must name an image, but its `image` is empty.")
    label = row["label"].lower()
    if label not in LABELS:
        raise DataError(
            f"{where} must have a label of {', '.join(LABELS)}, but has {row['label']!r}."
        )
    masks = tuple(mask.strip() for mask in row["masks"].split("|") if mask.strip())
    if not masks and label != "normal":
        raise DataError(f"{where} must name a mask, since {row['image']!r} is {label}.")
    for path in (row["image"], *masks):
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise DataError(
                f"{where} must name files below the table's folder, but names {path!r}; "
                "move the table above its images."
            )
    return Record(
        sample_id=row["image"],
        label=LABELS.index(label),
        image=row["image"],
        masks=masks,
        patient=row.get("patient") or None,
        fold=_fold(row.get("fold", ""), where),
    )


def _fold(text: str, where: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise DataError(f"{where} must have a fold number, counted from 0, but has {text!r}.")
    return int(text)


def _check_folds(records: list[Record], name: str) -> None:
    given = [record for record in records if record.fold is not None]
    if given and len(given) < len(records):
        missing = next(record for record in records if record.fold is None)
        raise DataError(
            f"{name} must give a fold for every image or for none, but gives none for "
            f"{missing.sample_id!r}."
        )
