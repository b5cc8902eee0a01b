"""The layout of BUS-UCLM: `images/ALWI_000.png`, `masks/ALWI_000.png` and `INFO.csv`."""

from mtil.data.layouts.folders import Expected, Folder, locate
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, label, meta, read_each, read_rows, stem, value
from mtil.data.shards import LABELS
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BUS-UCLM"
LICENCE = "CC BY 4.0"
CITATION = (
    "Vallez N, Bueno G, Deniz O, Rienda MA, Pastor C. BUS-UCLM: Breast ultrasound lesion "
    "segmentation dataset. Scientific Data 12 (2025) 242. doi:10.1038/s41597-025-04562-3"
)

_EXPECTED = Expected(
    name=NAME,
    table=r"info\.csv",
    folders=("images", "masks"),
    shape="images/ALWI_000.png, masks/ALWI_000.png and INFO.csv",
)
_COLOURS = {"benign": "green", "malignant": "red"}


def scan(store: Store) -> list[Record]:
    """Find the images that the table names.

    A mask is green where a lesion is benign, red where it is malignant, and black elsewhere; normal
    images have one that is all black.

    Raises:
        DataError: if there is no such collection, or its table and images do not fit together.
    """
    folder = locate(store, _EXPECTED)
    rows = read_rows(store, folder.table, ("image", "label"))
    records = read_each(rows, lambda row: _record(folder, row), _sample_id)
    return records + folder.unlisted(folder.inside("images"), records)


def _record(folder: Folder, row: Row) -> Record:
    value(row, "image")
    name = _sample_id(row)
    patient, separator, _ = name.partition("_")
    if not (patient and separator):
        raise DataError(
            f"{row.where} must name an image as its patient and a number, such as ALWI_000, but "
            f"names {name!r}; correct it."
        )
    index = label(value(row, "label"), row.where)
    return Record(
        sample_id=name,
        label=index,
        image=folder.require(f"images/{name}.png", row.where),
        masks=(folder.require(f"masks/{name}.png", row.where),),
        patient=patient,
        masks_may_differ=True,
        colour=_COLOURS.get(LABELS[index]),
        meta=meta(row.values, without=("image", "label")),
    )


def _sample_id(row: Row) -> str:
    return stem(row.values["image"])
