"""The layout of BrEaST: `case001.png`, `case001_tumor.png` and a clinical workbook."""

import re
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from mtil.data.layouts.folders import Expected, Folder, locate, some
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, label, meta, number, read_rows, value
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
_UNITS = {"mm": 1.0, "cm": 10.0}
_SIZES = (0.02, 0.2)
"""Millimetres that a pixel of a breast ultrasound image can have; ten times apart, so that no
size fits both units."""


def scan(store: Store) -> list[Record]:
    """Find the images that the workbook's first sheet names.

    The masks of other findings are not part of the lesion, and normal images have none.

    Raises:
        DataError: if there is no such collection, or its workbook and images do not fit together.
    """
    folder = _flat(locate(store, _EXPECTED))
    rows = read_rows(store, folder.table, _REQUIRED)
    _refuse_repeated(rows)
    records = [_record(folder, row) for row in rows]
    images = [found for name, found in folder.names.items() if _IMAGE.fullmatch(name)]
    folder.refuse_unlisted(images, [record.image for record in records])
    return _in_millimetres(records, folder.table)


def _flat(folder: Folder) -> Folder:
    """Return the folder with its PNG files by their own name, wherever they lie below it."""
    found: dict[str, str] = {}
    for name, stored in folder.names.items():
        file = name.rpartition("/")[2]
        if not file.endswith(".png"):
            continue
        if file in found:
            raise DataError(
                f"A file must be there once, but {folder.uri} has {found[file]} and {stored}; "
                "remove one."
            )
        found[file] = stored
    if not any(_IMAGE.fullmatch(file) for file in found):
        top = sorted({name.split("/")[0] for name in folder.names.values()})
        raise DataError(
            f"A {NAME} collection must have {_EXPECTED.shape}, but {folder.uri} has {some(top)}."
        )
    return replace(folder, names=found)


def _record(folder: Folder, row: Row) -> Record:
    image = value(row, "image_filename")
    index = label(value(row, "classification"), row.where)
    named = row.values["mask_tumor_filename"].split("&")
    masks = tuple(folder.require(name.strip(), row.where) for name in named if name.strip())
    if bool(masks) == (LABELS[index] == "normal"):
        rule = "must not name a tumour mask" if masks else "must name a tumour mask"
        raise DataError(f"{row.where} {rule}, since {image} is {LABELS[index]}.")
    size = row.values.get("pixel_size", "")
    return Record(
        sample_id=image.lower().removesuffix(".png"),
        label=index,
        image=folder.require(image, row.where),
        masks=masks,
        patient=value(row, "caseid"),
        pixel_size=number(size, row.where, "pixel_size") if size else None,
        meta=meta(row.values, without=_NOT_META),
    )


def _refuse_repeated(rows: Sequence[Row]) -> None:
    seen: dict[str, str] = {}
    for row in rows:
        case = value(row, "caseid")
        if seen.setdefault(case, row.where) != row.where:
            raise DataError(
                f"A CaseID must be given once, but {case!r} is in {seen[case]} and in {row.where}; "
                "remove one."
            )


def _in_millimetres(records: Sequence[Record], table: str) -> list[Record]:
    """Return the records with pixel sizes in mm: the sheet has one unit, which it does not name."""
    sizes = [record.pixel_size for record in records if record.pixel_size is not None]
    if not sizes:
        return list(records)
    least, most = _SIZES
    fitting = [factor for factor in _UNITS.values() if least <= median(sizes) * factor < most]
    if not fitting:
        raise DataError(
            f"The pixel sizes of {table} must be in mm or cm, {least} to {most} mm for a breast "
            f"ultrasound image, but their median is {median(sizes):g}."
        )
    return [
        record
        if record.pixel_size is None
        else replace(record, pixel_size=record.pixel_size * fitting[0])
        for record in records
    ]
