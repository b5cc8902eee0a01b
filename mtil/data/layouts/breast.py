"""The layout of BrEaST: `case001.png`, `case001_tumor.png` and a clinical workbook."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median

from mtil.data.dataset.account import FilesSeen
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import (
    count_source_files,
    format_first_names,
    has_image_suffix,
    strip_image_suffix,
)
from mtil.data.layouts.folders import CollectionFolder, ExpectedLayout, locate_collection
from mtil.data.layouts.record import Record, ScanResult
from mtil.data.layouts.tables import (
    TableRow,
    collect_meta,
    image_stem,
    parse_label,
    parse_positive_number,
    read_records,
    read_rows,
    require_value,
)
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

_REQUIRED = ("caseid", "image_filename", "mask_tumor_filename", "classification")
_EXPECTED = ExpectedLayout(
    name=NAME,
    table=r".+\.xlsx",
    columns=_REQUIRED,
    shape="case001.png, case001_tumor.png and the clinical .xlsx beside them or above them",
)
_NOT_META = (*_REQUIRED, "mask_other_filename", "pixel_size")
_IMAGE = re.compile(r"case\d+")
_OTHER_MASK = re.compile(r"case\d+_other\d*")
_EMPTY_WORDS = ("", "nan", "none", "-", "n/a", "not applicable", "not available")
"""Words of the sheet for an empty cell, in lower case."""
_MIN_PIXEL_MM, _MAX_PIXEL_MM = 0.02, 1.0
"""Range of the pixel size of breast ultrasound images, in millimetres."""


def scan_breast(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> ScanResult:
    """Find the images named in the workbook.

    Masks of other findings (`_other`) are no part of the lesion. Normal images have no mask.

    Args:
        store: the collection's folder or a folder above.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the collection is missing or ambiguous, the workbook is unreadable, or the
            pixel sizes are out of range.
    """
    # Images lie beside the workbook or in a subfolder: match by file name alone.
    folder, notes = _by_file_name(locate_collection(store, _EXPECTED, apart)), list[str]()
    rows = read_rows(store, folder.table, _REQUIRED, notes, ("pixel_size",))
    first_row: dict[str, str] = {}
    for row in rows:
        first_row.setdefault(row.values["caseid"], row.where)
    records = read_records(
        rows,
        lambda row: _record(folder, row, first_row),
        _sample_id,
        lambda row: folder.files(_png_name(row.values["image_filename"]), _mask_names(row)),
    )
    images = [path for name, path in folder.images.items() if _IMAGE.fullmatch(name)]
    records = _to_millimetres(records, folder.table) + folder.refuse_unlisted_images(
        images, records
    )
    read = (folder.table, *tables)
    return ScanResult(
        records=records, files=lambda unique: _account(folder, unique, read), notes=notes
    )


def _account(
    folder: CollectionFolder, records: Sequence[Record], tables: Collection[str]
) -> FilesSeen:
    def why_not(name: str) -> str:
        if not name.startswith(folder.start):
            return f"outside of the collection's folder {folder.start.rstrip('/')}"
        file = strip_image_suffix(name.rpartition("/")[2]).lower()
        return "masks of other findings" if _OTHER_MASK.fullmatch(file) else "no row names the file"

    return count_source_files(folder.listing, records, tables, why_not, folder.start)


def _by_file_name(folder: CollectionFolder) -> CollectionFolder:
    """Return the folder with images found by file name alone, in any subfolder."""
    by_stem: dict[str, list[str]] = {}
    for name, path in folder.names.items():
        if has_image_suffix(name):
            by_stem.setdefault(strip_image_suffix(name.rpartition("/")[2]), []).append(path)
    twice = {stem.rpartition("/")[2]: why for stem, why in folder.twice.items()}
    for file_stem, paths in by_stem.items():
        if len(paths) > 1:
            twice.setdefault(
                file_stem,
                f"A file must be there once, but {folder.uri} has {paths[0]} and {paths[1]}; "
                "remove one.",
            )
    if not any(_IMAGE.fullmatch(file_stem) for file_stem in by_stem):
        top = sorted({name.split("/")[0] for name in folder.names.values()})
        raise DataError(
            f"A {NAME} collection must have {_EXPECTED.shape}, but {folder.uri} has "
            f"{format_first_names(top)}; "
            "name its folder or another layout."
        )
    images = {file_stem: paths[0] for file_stem, paths in by_stem.items()}
    return replace(folder, images=images, twice=twice)


def _record(folder: CollectionFolder, row: TableRow, first_row: Mapping[str, str]) -> Record:
    image = _png_name(require_value(row, "image_filename"))
    case = require_value(row, "caseid")
    if first_row[case] != row.where:
        raise DataError(
            f"A CaseID must be given once, but {case!r} is in {first_row[case]} and in "
            f"{row.where}; remove one."
        )
    index = parse_label(require_value(row, "classification"), row.where)
    masks = tuple(folder.require(name, row.where) for name in _mask_names(row))
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
        pixel_size=None
        if _is_empty(size)
        else parse_positive_number(size, row.where, "pixel_size"),
        meta=collect_meta(row.values, without=_NOT_META),
    )


def _mask_names(row: TableRow) -> list[str]:
    names = (name.strip() for name in row.values["mask_tumor_filename"].split("&"))
    return [_png_name(name) for name in names if not _is_empty(name)]


def _sample_id(row: TableRow) -> str:
    return image_stem(row.values["image_filename"]).lower()


def _png_name(name: str) -> str:
    """Return a file name with the suffix `.png`, which the sheet may leave out."""
    return f"{image_stem(name)}.png"


def _is_empty(text: str) -> bool:
    return text.lower() in _EMPTY_WORDS


def _to_millimetres(records: Sequence[Record], table: str) -> list[Record]:
    """Return the records with pixel sizes in millimetres; the sheet has millimetres or centimetres.

    Raises:
        DataError: if the median size fits neither unit.
    """
    # The sheet uses one unit throughout but does not name the unit. Neither do the article's
    # abstract and the archive's summary. No pixel of a breast ultrasound image is as fine as
    # 0.02 mm, so a smaller median means centimetres.
    sizes = [record.pixel_size for record in records if record.pixel_size is not None]
    if not sizes:
        return list(records)
    middle = median(sizes)
    if not _MIN_PIXEL_MM / 10 <= middle <= _MAX_PIXEL_MM:
        raise DataError(
            f"The pixel sizes of {table} must be in mm or cm, {_MIN_PIXEL_MM:g} to "
            f"{_MAX_PIXEL_MM:g} mm for a breast ultrasound image, but the median is {middle:g}; "
            "correct or clear the sizes."
        )
    factor = 1.0 if middle >= _MIN_PIXEL_MM else 10.0
    return [
        record
        if record.pixel_size is None
        else replace(record, pixel_size=record.pixel_size * factor)
        for record in records
    ]
