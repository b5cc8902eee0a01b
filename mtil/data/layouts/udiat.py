"""The layout of UDIAT (BUS-B): `original/000001.png`, `GT/000001.png` and `DatasetB.xlsx`."""

from collections.abc import Collection

from mtil.data.layouts.folders import CollectionFolder, ExpectedLayout
from mtil.data.layouts.listed import scan_listed_images
from mtil.data.layouts.record import Record, ScanResult
from mtil.data.layouts.tables import (
    TableRow,
    collect_meta,
    image_stem,
    parse_label,
    require_value,
)
from mtil.storage import Store

NAME = "UDIAT"
LICENCE = "on request, for research"
CITATION = (
    "Yap MH, Pons G, Marti J, Ganau S, Sentis M, Zwiggelaar R, Davison AK, Marti R. Automated "
    "breast ultrasound lesions detection using convolutional neural networks. IEEE Journal of "
    "Biomedical and Health Informatics 22(4) (2018) 1218-1226. doi:10.1109/JBHI.2017.2731873"
)

_EXPECTED = ExpectedLayout(
    name=NAME,
    table=r"datasetb\.xlsx",
    columns=("image", "type"),
    folders=("original", "GT"),
    shape="original/000001.png, GT/000001.png and DatasetB.xlsx",
)
_DIGITS = 6


def scan_udiat(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> ScanResult:
    """Find the images named in the workbook.

    Args:
        store: the collection's folder or a folder above.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the collection is missing, incomplete or ambiguous, or the workbook is
            unreadable.
    """
    return scan_listed_images(
        store,
        _EXPECTED,
        read_record=_record,
        sample_id=_sample_id,
        file_names=_names,
        apart=apart,
        tables=tables,
    )


def _record(folder: CollectionFolder, row: TableRow) -> Record:
    require_value(row, "image")
    name = _sample_id(row)
    image, masks = _names(row)
    # Cells to the right hold a legend of abbreviations, not facts about the row's image.
    facts = {column: row.values[column] for column in ("diagnosis",) if column in row.values}
    return Record(
        sample_id=name,
        label=parse_label(require_value(row, "type"), row.where),
        image=folder.require(image, row.where),
        masks=tuple(folder.require(mask, row.where) for mask in masks),
        meta=collect_meta(facts, without=()),
    )


def _names(row: TableRow) -> tuple[str, tuple[str, ...]]:
    """Return the image and the masks of a row, relative to the collection's folder."""
    name = _sample_id(row)
    return f"original/{name}.png", (f"GT/{name}.png",)


def _sample_id(row: TableRow) -> str:
    # Workbooks give image numbers as text ("000001.png") or as numbers (1, 1.0).
    number = image_stem(row.values["image"]).removesuffix(".0")
    return number and number.zfill(_DIGITS)
