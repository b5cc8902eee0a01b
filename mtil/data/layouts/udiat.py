"""The layout of UDIAT (BUS-B): `original/000001.png`, `GT/000001.png` and `DatasetB.xlsx`."""

from mtil.data.layouts.folders import Expected, locate
from mtil.data.layouts.record import Record
from mtil.data.layouts.tables import label, meta, read_rows, value
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
    records = []
    for row in read_rows(store, folder.table, ("image", "type")):
        stem = value(row, "image").lower().removesuffix(".png").zfill(_DIGITS)
        said = {column: row.values[column] for column in ("diagnosis",) if column in row.values}
        records.append(
            Record(
                sample_id=stem,
                label=label(value(row, "type"), row.where),
                image=folder.require(f"original/{stem}.png", row.where),
                masks=(folder.require(f"GT/{stem}.png", row.where),),
                meta=meta(said, without=()),
            )
        )
    folder.refuse_unlisted(folder.inside("original"), [record.image for record in records])
    return records
