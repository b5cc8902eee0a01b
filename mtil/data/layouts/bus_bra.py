"""The layout of BUS-BRA: `Images/bus_0001-l.png`, `Masks/mask_0001-l.png` and `bus_data.csv`."""

from collections.abc import Collection, Mapping

from mtil.data.layouts.folders import Expected, Folder, locate
from mtil.data.layouts.record import Found, Record
from mtil.data.layouts.tables import Row, label, meta, read_each, read_rows, stem, value
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
"""The file of each official number of folds."""

_EXPECTED = Expected(
    name=NAME,
    table=r"bus_data\.csv",
    columns=("id", "case", "pathology"),
    folders=("Images", "Masks"),
    shape="Images/bus_0001-l.png, Masks/mask_0001-l.png and bus_data.csv",
)
_PREFIX = "bus_"
_NOT_META = ("id", "case", "pathology", "width", "height", "bbox")
"""Columns with a role, and sizes, which may be those of larger originals."""


def scan(
    store: Store,
    official_folds: int | None = None,
    *,
    apart: str = "",
    tables: Collection[str] = (),
) -> Found:
    """Find the images that the table names, with their folds if they are asked for.

    Args:
        store: the collection's folder or one above it.
        official_folds: 5 or 10, to take the folds of that file; none takes none.
        apart: see `files.look`.
        tables: more tables of the collection, for its account.

    Raises:
        DataError: if there is no such collection, or its tables and images do not fit together.
    """
    folder, notes = locate(store, _EXPECTED, apart), list[str]()
    folds = None if official_folds is None else _folds(store, folder, official_folds)
    rows = read_rows(store, folder.table, _EXPECTED.columns, notes)
    records = read_each(
        rows,
        lambda row: _record(folder, row, folds),
        lambda row: stem(row.values["id"]),
        lambda row: folder.files(*_names(stem(row.values["id"]))),
    )
    records += folder.unlisted(folder.inside("Images"), records)
    fold_files = (folder.names.get(name, "") for name in FOLD_FILES.values())
    read = (folder.table, *fold_files, *tables)
    return Found(
        records=records,
        files=lambda found: folder.account(found, read, _EXPECTED.folders),
        notes=notes,
    )


def _record(folder: Folder, row: Row, folds: Mapping[str, int] | None) -> Record:
    name = stem(value(row, "id"))
    if not name.startswith(_PREFIX):
        raise DataError(
            f"{row.where} must have an ID such as bus_0001-l, but has {name!r}; correct it."
        )
    if folds is not None and name not in folds:
        raise DataError(
            f"An official fold must be given for every image, but there is none for {name!r}; "
            "make folds instead."
        )
    image, masks = _names(name)
    return Record(
        sample_id=name,
        label=label(value(row, "pathology"), row.where),
        image=folder.require(image, row.where),
        masks=tuple(folder.require(mask, row.where) for mask in masks),
        patient=value(row, "case"),
        fold=None if folds is None else folds[name],
        meta=meta(row.values, without=_NOT_META),
    )


def _names(name: str) -> tuple[str, tuple[str, ...]]:
    """Return the image and the masks of an id, relative to the collection."""
    return f"Images/{name}.png", (f"Masks/mask_{name.removeprefix(_PREFIX)}.png",)


def _folds(store: Store, folder: Folder, number: int) -> dict[str, int]:
    """Return the fold of each image id, from 0; the file counts from 1."""
    if number not in FOLD_FILES:
        raise DataError(
            f"The official folds of {NAME} are 5 or 10, but {number} were asked for; give "
            "--num-folds 5 or 10."
        )
    table = folder.names.get(FOLD_FILES[number])
    if table is None:
        raise DataError(
            f"Official folds must be in {FOLD_FILES[number]} beside {folder.table}, but "
            f"{folder.uri} has no such file; add it or make folds instead."
        )
    folds: dict[str, int] = {}
    for row in read_rows(store, table, ("id", "kfold")):
        name, text = stem(value(row, "id")), row.values["kfold"].removesuffix(".0")
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= number):
            raise DataError(
                f"{row.where} must have a kFold from 1 to {number}, but has {text!r}; correct it "
                "or make folds instead."
            )
        if folds.setdefault(name, int(text) - 1) != int(text) - 1:
            raise DataError(
                f"An image must have one fold, but {table} gives {name!r} {folds[name] + 1} and "
                f"{text}."
            )
    return folds
