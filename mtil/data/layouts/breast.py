"""The layout of BrEaST: `case001.png`, `case001_tumor.png` and a clinical workbook."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median

from mtil.data.dataset.account import FilesSeen
from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.files import count, is_image, some, without_suffix
from mtil.data.layouts.folders import Expected, Folder, locate
from mtil.data.layouts.record import Found, Record
from mtil.data.layouts.tables import Row, label, meta, number, read_each, read_rows, stem, value
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
_EXPECTED = Expected(
    name=NAME,
    table=r".+\.xlsx",
    columns=_REQUIRED,
    shape="case001.png, case001_tumor.png and the clinical .xlsx beside them or above them",
)
_NOT_META = (*_REQUIRED, "mask_other_filename", "pixel_size")
_IMAGE = re.compile(r"case\d+")
_OTHER_MASK = re.compile(r"case\d+_other\d*")
_NOTHING = ("", "nan", "none", "-", "n/a", "not applicable", "not available")
"""What the sheet may say instead of leaving a cell empty."""
_FINEST, _COARSEST = 0.02, 1.0
"""Millimetres that a pixel of a breast ultrasound image can have."""


def scan(store: Store, *, apart: str = "", tables: Collection[str] = ()) -> Found:
    """Find the images that the workbook names.

    The masks of other findings are not part of the lesion, and normal images have none.

    Args:
        store: the collection's folder or one above it.
        apart: see `files.look`.
        tables: more tables of the collection, for its account.

    Raises:
        DataError: if there is no such collection, or its workbook and images do not fit together.
    """
    folder, notes = _flat(locate(store, _EXPECTED, apart)), list[str]()
    rows = read_rows(store, folder.table, _REQUIRED, notes, ("pixel_size",))
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.values["caseid"], row.where)
    records = read_each(
        rows,
        lambda row: _record(folder, row, first),
        _sample_id,
        lambda row: folder.files(_png(row.values["image_filename"]), _masks(row)),
    )
    images = [found for name, found in folder.images.items() if _IMAGE.fullmatch(name)]
    records = _in_millimetres(records, folder.table) + folder.unlisted(images, records)
    read = (folder.table, *tables)
    return Found(records=records, files=lambda found: _account(folder, found, read), notes=notes)


def _account(folder: Folder, records: Sequence[Record], tables: Collection[str]) -> FilesSeen:
    def why_not(name: str) -> str:
        if not name.startswith(folder.start):
            return f"outside of the collection's folder {folder.start.rstrip('/')}"
        file = without_suffix(name.rpartition("/")[2]).lower()
        return "masks of other findings" if _OTHER_MASK.fullmatch(file) else "no row names the file"

    return count(folder.listing, records, tables, why_not, folder.start)


def _flat(folder: Folder) -> Folder:
    """Return the folder with its image files by their own name, wherever they lie below it."""
    found: dict[str, list[str]] = {}
    for name, stored in folder.names.items():
        if is_image(name):
            found.setdefault(without_suffix(name.rpartition("/")[2]), []).append(stored)
    twice = {stem.rpartition("/")[2]: why for stem, why in folder.twice.items()}
    for stem_, names in found.items():
        if len(names) > 1:
            twice.setdefault(
                stem_,
                f"A file must be there once, but {folder.uri} has {names[0]} and {names[1]}; "
                "remove one.",
            )
    if not any(_IMAGE.fullmatch(stem_) for stem_ in found):
        top = sorted({name.split("/")[0] for name in folder.names.values()})
        raise DataError(
            f"A {NAME} collection must have {_EXPECTED.shape}, but {folder.uri} has {some(top)}; "
            "name its folder or another layout."
        )
    images = {stem_: names[0] for stem_, names in found.items()}
    return replace(folder, images=images, twice=twice)


def _record(folder: Folder, row: Row, first: Mapping[str, str]) -> Record:
    image = _png(value(row, "image_filename"))
    case = value(row, "caseid")
    if first[case] != row.where:
        raise DataError(
            f"A CaseID must be given once, but {case!r} is in {first[case]} and in {row.where}; "
            "remove one."
        )
    index = label(value(row, "classification"), row.where)
    masks = tuple(folder.require(name, row.where) for name in _masks(row))
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


def _masks(row: Row) -> list[str]:
    named = (name.strip() for name in row.values["mask_tumor_filename"].split("&"))
    return [_png(name) for name in named if not _nothing(name)]


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
