"""The layout of BUS-BRA: `Images/bus_0001-l.png`, `Masks/mask_0001-l.png` and `bus_data.csv`."""

from collections.abc import Collection, Mapping

from mtil.data.layouts.folders import CollectionFolder, ExpectedLayout, locate_collection
from mtil.data.layouts.record import Record, ScanResult
from mtil.data.layouts.tables import (
    TableRow,
    collect_meta,
    image_stem,
    parse_label,
    read_records,
    read_rows,
    require_value,
)
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BUS-BRA"
LICENCE = "CC BY 4.0"
CITATION = (
    "Gomez-Flores W, Gregorio-Calas MJ, Coelho de Albuquerque Pereira W. BUS-BRA: A breast "
    "ultrasound dataset for assessing computer-aided diagnosis systems. Medical Physics 51(4) "
    "(2024) 3110-3123. doi:10.1002/mp.16812"
)
FOLD_FILES = {5: "5-fold-cv.csv", 10: "10-fold-cv.csv"}
"""Name of the fold file by number of folds."""

_EXPECTED = ExpectedLayout(
    name=NAME,
    table=r"bus_data\.csv",
    columns=("id", "case", "pathology"),
    folders=("Images", "Masks"),
    shape="Images/bus_0001-l.png, Masks/mask_0001-l.png and bus_data.csv",
)
_PREFIX = "bus_"
_NOT_META = ("id", "case", "pathology", "width", "height", "bbox")
"""Columns with a role, and columns of sizes, which may refer to larger originals."""


def scan_bus_bra(
    store: Store,
    official_folds: int | None = None,
    *,
    apart: str = "",
    tables: Collection[str] = (),
) -> ScanResult:
    """Find the images named in the table, with official folds on request.

    Args:
        store: the collection's folder or a folder above.
        official_folds: 5 or 10 to read the fold file for 5 or 10 folds; None reads no folds.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the collection is missing, incomplete or ambiguous, a table is unreadable,
            or the fold file is missing or wrong.
    """
    folder, notes = locate_collection(store, _EXPECTED, apart), list[str]()
    folds = None if official_folds is None else _read_folds(store, folder, official_folds)
    rows = read_rows(store, folder.table, _EXPECTED.columns, notes)
    records = read_records(
        rows,
        lambda row: _record(folder, row, folds),
        lambda row: image_stem(row.values["id"]),
        lambda row: folder.files(*_names(image_stem(row.values["id"]))),
    )
    records += folder.refuse_unlisted_images(folder.inside("Images"), records)
    # The account counts both fold files as tables, read or not.
    fold_files = (folder.names.get(name, "") for name in FOLD_FILES.values())
    read = (folder.table, *fold_files, *tables)
    return ScanResult(
        records=records,
        files=lambda unique: folder.account(unique, read, _EXPECTED.folders),
        notes=notes,
    )


def _record(folder: CollectionFolder, row: TableRow, folds: Mapping[str, int] | None) -> Record:
    name = image_stem(require_value(row, "id"))
    if not name.startswith(_PREFIX):
        raise DataError(
            f"{row.where} must have an ID such as bus_0001-l, but has {name!r}; correct the ID."
        )
    if folds is not None and name not in folds:
        raise DataError(
            f"An official fold must be given for every image, but {name!r} has no fold; "
            "make folds instead."
        )
    image, masks = _names(name)
    return Record(
        sample_id=name,
        label=parse_label(require_value(row, "pathology"), row.where),
        image=folder.require(image, row.where),
        masks=tuple(folder.require(mask, row.where) for mask in masks),
        patient=require_value(row, "case"),
        fold=None if folds is None else folds[name],
        meta=collect_meta(row.values, without=_NOT_META),
    )


def _names(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the image and the masks of an id, relative to the collection's folder."""
    return f"Images/{name}.png", (f"Masks/mask_{name.removeprefix(_PREFIX)}.png",)


def _read_folds(store: Store, folder: CollectionFolder, num_folds: int) -> dict[str, int]:
    """Return the fold (from 0) of every image id."""
    if num_folds not in FOLD_FILES:
        raise DataError(
            f"The official folds of {NAME} are 5 or 10, but {num_folds} were asked for; give "
            "--num-folds 5 or 10."
        )
    table = folder.names.get(FOLD_FILES[num_folds])
    if table is None:
        raise DataError(
            f"Official folds must be in {FOLD_FILES[num_folds]} beside {folder.table}, but "
            f"{folder.uri} lacks the file; add the file or make folds instead."
        )
    folds: dict[str, int] = {}
    for row in read_rows(store, table, ("id", "kfold")):
        name, text = image_stem(require_value(row, "id")), row.values["kfold"].removesuffix(".0")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= num_folds):
            raise DataError(
                f"{row.where} must have a kFold from 1 to {num_folds}, but has {text!r}; correct "
                "the fold or make folds instead."
            )
        # The fold files count from 1, mtil from 0.
        if folds.setdefault(name, int(text) - 1) != int(text) - 1:
            raise DataError(
                f"An image must have one fold, but {table} gives {name!r} {folds[name] + 1} and "
                f"{text}; correct the file."
            )
    return folds
