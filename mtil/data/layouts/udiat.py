"""The layout of UDIAT (BUS-B): `original/000001.png`, `GT/000001.png` and `DatasetB.xlsx`."""

from mtil.data.layouts.folders import Expected, Folder, locate
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import Row, label, meta, read_each, read_rows, stem, value
from mtil.storage import Store

NAME = "UDIAT"
LICENCE = "on request, for research"
CITATION = (
    "Yap MH, Pons G, Marti J, Ganau S, Sentis M, Zwiggelaar R, Davison AK, Marti R. Automated "
    "breast ultrasound lesions detection using convolutional neural networks. IEEE Journal of "
    "Biomedical and Health Informatics 22(4) (2018) 1218-1226. doi:10.1109/JBHI.2017.2731873"
)

_EXPECTED = Expected(
    name=NAME,
    table=r"datasetb\.xlsx",
    folders=("original", "GT"),
    shape="original/000001.png, GT/000001.png and DatasetB.xlsx",
)
_DIGITS = 6


def scan(store: Store) -> list[Record]:
    """Find the images that the workbook names; it may give their numbers as text or as numbers.

    Raises:
        DataError: if there is no such collection, or its workbook and images do not fit together.
    """
    folder = locate(store, _EXPECTED)
    rows = read_rows(store, folder.table, ("image", "type"))
    records = read_each(rows, lambda row: _record(folder, row), _sample_id)
    return records + folder.unlisted(folder.inside("original"), records)


def _record(folder: Folder, row: Row) -> Record:
    value(row, "image")
    name = _sample_id(row)
    said = {column: row.values[column] for column in ("diagnosis",) if column in row.values}
    return Record(
        sample_id=name,
        label=label(value(row, "type"), row.where),
        image=folder.require(f"original/{name}.png", row.where),
        masks=(folder.require(f"GT/{name}.png", row.where),),
        meta=meta(said, without=()),
    )


def _sample_id(row: Row) -> str:
    number = stem(row.values["image"])
    return number and number.zfill(_DIGITS)
