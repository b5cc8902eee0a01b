"""The layout of BUS-UCLM: `images/ALWI_000.png`, `masks/ALWI_000.png` and `INFO.csv`."""

from mtil.data.layouts.folders import Expected, Folder, locate
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, label, meta, read_rows, value
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


def scan(store: Store) -> list[Record]:
    """Find the images that the table names.

    A mask is green where a lesion is benign, red where it is malignant, and black elsewhere, so
    that whatever is not black is lesion; normal images have one that is all black.

    Raises:
        DataError: if there is no such collection, or its table and images do not fit together.
    """
    folder = locate(store, _EXPECTED)
    rows = read_rows(store, folder.table, ("image", "label"), delimiter=None)
    records = [_record(folder, row) for row in rows]
    folder.refuse_unlisted(folder.inside("images"), [record.image for record in records])
    return records


def _record(folder: Folder, row: Row) -> Record:
    stem = value(row, "image").removesuffix(".png")
    patient, separator, _ = stem.partition("_")
    if not (patient and separator):
        raise DataError(
            f"{row.where} must name an image as its patient and a number, such as ALWI_000, but "
            f"names {stem!r}."
        )
    return Record(
        sample_id=stem,
        label=label(value(row, "label"), row.where),
        image=folder.require(f"images/{stem}.png", row.where),
        masks=(folder.require(f"masks/{stem}.png", row.where),),
        patient=patient,
        masks_may_differ=True,
        meta=meta(row.values, without=("image", "label")),
    )
