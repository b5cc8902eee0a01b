"""The layout of BrEaST: `case001.png`, `case001_tumor.png` and a clinical workbook."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from mtil.data.layouts.folders import Expected, Folder, locate, some
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, label, meta, number, read_each, read_rows, stem, value
from mtil.data.shards import LABELS
from mtil.errors import DataError
from mtil.storage import Store

NAME = "BrEaST"
LICENCE = "CC BY 4.0"
CITATION = (
    "Pawlowska A, Cwierz-Pienkowska A, Domalik A, Jagus D, Kasprzak P, Matkowski R, Fura L, "
    "Nowicki A, Zolek N. Curated benchmark dataset for ultrasound based breast lesion analysis. "
    "Scientific Data 11 (2024) 148. doi:10.1038/s41597-024-02984-z. "
    "Data: The Cancer Imaging Archive, doi:10.7937/9WKK-Q141"
)

_EXPECTED = Expected(
    name=NAME,
    table=r".+\.xlsx",
    shape="case001.png, case001_tumor.png and the clinical .xlsx beside them or above them",
)
_REQUIRED = ("caseid", "image_filename", "mask_tumor_filename", "classification")
_NOT_META = (*_REQUIRED, "mask_other_filename", "pixel_size")
_IMAGE = re.compile(r"case\d+\.png")
_NOTHING = ("", "nan", "none", "-", "n/a", "not applicable", "not available")
"""What the sheet may say instead of leaving a cell empty."""
_FINEST, _COARSEST = 0.02, 1.0
"""Millimetres that a pixel of a breast ultrasound image can have."""


def scan(store: Store) -> list[Record]:
    """Find the images that the workbook's first sheet names.

    The masks of other findings are not part of the lesion, and normal images have none.

    Raises:
        DataError: if there is no such collection, or its workbook and images do not fit together.
    """
    folder = _flat(locate(store, _EXPECTED))
    rows = read_rows(store, folder.table, _REQUIRED)
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.values["caseid"], row.where)
    records = read_each(rows, lambda row: _record(folder, row, first), _sample_id)
    images = [found for name, found in folder.names.items() if _IMAGE.fullmatch(name)]
    return _in_millimetres(records, folder.table) + folder.unlisted(images, records)


def _flat(folder: Folder) -> Folder:
    """Return the folder with its PNG files by their own name, wherever they lie below it."""
    found: dict[str, str] = {}
    twice = {name.rpartition("/")[2]: why for name, why in folder.twice.items()}
    for name, stored in folder.names.items():
        file = name.rpartition("/")[2]
        if file.endswith(".png") and found.setdefault(file, stored) != stored:
            twice[file] = (
                f"A file must be there once, but {folder.uri} has {found[file]} and {stored}; "
                "remove one."
            )
    if not any(_IMAGE.fullmatch(file) for file in found):
        top = sorted({name.split("/")[0] for name in folder.names.values()})
        raise DataError(
            f"A {NAME} collection must have {_EXPECTED.shape}, but {folder.uri} has {some(top)}; "
            "name its folder or another layout."
        )
    return replace(folder, names=found, twice=twice)


def _record(folder: Folder, row: Row, first: Mapping[str, str]) -> Record:
    image = _png(value(row, "image_filename"))
    case = value(row, "caseid")
    if first[case] != row.where:
        raise DataError(
            f"A CaseID must be given once, but {case!r} is in {first[case]} and in {row.where}; "
            "remove one."
        )
    index = label(value(row, "classification"), row.where)
    named = [name.strip() for name in row.values["mask_tumor_filename"].split("&")]
    masks = tuple(folder.require(_png(name), row.where) for name in named if not _nothing(name))
    if bool(masks) == (LABELS[index] == "normal"):
        rule = "must not name a tumour mask" if masks else "must name a tumour mask"
        raise DataError(
            f"{row.where} {rule}, since {image} is {LABELS[index]}; correct the mask or the class."
        )
    size = row.values.get("pixel_size", "")
    return Record(
        sample_id=_sample_id(row),
        label=index,
        image=folder.require(image, row.where),
        masks=masks,
        patient=case,
        pixel_size=None if _nothing(size) else number(size, row.where, "pixel_size"),
        meta=meta(row.values, without=_NOT_META),
    )


def _sample_id(row: Row) -> str:
    return stem(row.values["image_filename"]).lower()


def _png(name: str) -> str:
    """Return a file's name, which the sheet may give without its suffix."""
    return f"{stem(name)}.png"


def _nothing(text: str) -> bool:
    return text.lower() in _NOTHING


def _in_millimetres(records: Sequence[Record], table: str) -> list[Record]:
    """Return the records with pixel sizes in mm.

    The sheet has one unit, which its column does not name; nor do the abstract of the article and
    the archive's summary. It is taken from the sizes: no pixel of such an image is as fine as
    0.02 mm, so that smaller numbers are centimetres.
    """
    sizes = [record.pixel_size for record in records if record.pixel_size is not None]
    if not sizes:
        return list(records)
    middle = median(sizes)
    if not _FINEST / 10 <= middle <= _COARSEST:
        raise DataError(
            f"The pixel sizes of {table} must be in mm or cm, {_FINEST:g} to {_COARSEST:g} mm for "
            f"a breast ultrasound image, but their median is {middle:g}; correct or clear them."
        )
    factor = 1.0 if middle >= _FINEST else 10.0
    return [
        record
        if record.pixel_size is None
        else replace(record, pixel_size=record.pixel_size * factor)
        for record in records
    ]
