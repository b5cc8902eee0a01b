"""The layout of BUS-UCLM: `images/ALWI_000.png`, `masks/ALWI_000.png` and `INFO.csv`."""

from collections.abc import Collection

from mtil.data.dataset.shards import LABELS
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
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BUS-UCLM"
LICENCE = "CC BY 4.0"
CITATION = (
    "Vallez N, Bueno G, Deniz O, Rienda MA, Pastor C. BUS-UCLM: Breast ultrasound lesion "
    "segmentation dataset. Scientific Data 12 (2025) 242. doi:10.1038/s41597-025-04562-3"
)

_EXPECTED = ExpectedLayout(
    name=NAME,
    table=r"info\.csv",
    columns=("image", "label"),
    folders=("images", "masks"),
    shape="images/ALWI_000.png, masks/ALWI_000.png and INFO.csv",
)
_COLOURS = {"benign": "green", "malignant": "red"}


def scan_bus_uclm(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> ScanResult:
    """Find the images named in the table.

    Masks are green on benign lesions, red on malignant lesions and black elsewhere. Masks of
    normal images are all black.

    Args:
        store: the collection's folder or a folder above.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the collection is missing, incomplete or ambiguous, or the table is
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
    patient, separator, _ = name.partition("_")
    if not (patient and separator):
        raise DataError(
            f"{row.where} must name an image by patient and number, such as ALWI_000, but names "
            f"{name!r}; correct the name."
        )
    index = parse_label(require_value(row, "label"), row.where)
    image, masks = _names(row)
    return Record(
        sample_id=name,
        label=index,
        image=folder.require(image, row.where),
        masks=tuple(folder.require(mask, row.where) for mask in masks),
        patient=patient,
        masks_may_differ=True,
        colour=_COLOURS.get(LABELS[index]),
        meta=collect_meta(row.values, without=("image", "label")),
    )


def _names(row: TableRow) -> tuple[str, tuple[str, ...]]:
    """Return the image and the masks of a row, relative to the collection's folder."""
    name = _sample_id(row)
    return f"images/{name}.png", (f"masks/{name}.png",)


def _sample_id(row: TableRow) -> str:
    return image_stem(row.values["image"])
