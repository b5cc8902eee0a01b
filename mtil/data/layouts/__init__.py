"""Published layouts of image collections, each read into records without touching a pixel."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Protocol

from mtil.data.layouts import breast, bus_bra, bus_uclm, busi, table, udiat
from mtil.data.layouts.record import Collection, Record, reasons, unique
from mtil.errors import DataError
from mtil.storage import Store, open_store, split_uri

LAYOUTS = ("busi", "udiat", "bus_bra", "bus_uclm", "breast", "table")
"""Names of the layouts."""

__all__ = ["LAYOUTS", "Collection", "Record", "scan"]


class _Published(Protocol):
    """A module that reads one collection."""

    NAME: str
    LICENCE: str
    CITATION: str

    def scan(self, store: Store) -> list[Record]: ...


_PUBLISHED: Mapping[str, _Published] = {
    "busi": busi,
    "udiat": udiat,
    "bus_bra": bus_bra,
    "bus_uclm": bus_uclm,
    "breast": breast,
}


def scan(
    source: str,
    layout: str,
    *,
    official_folds: int | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
    skip_invalid: bool = False,
) -> Collection:
    """Find the images of a collection.

    Args:
        source: a folder, a table, or an `s3://` URI of either.
        layout: how it is laid out, one of `LAYOUTS`.
        official_folds: how many folds the collection's own fold file has, to take them; a table
            has them in its column `fold`.
        columns: a table's column by the role that it plays.
        classes: class by a table's word for it.
        skip_invalid: whether images that cannot be used are kept as refused records.

    Raises:
        DataError: if the collection is not laid out like that, an option does not fit, or images
            cannot be used.
    """
    if layout not in LAYOUTS:
        raise DataError(f"A layout must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    _check_options(layout, official_folds, columns, classes)
    if layout == "table":
        collection = _table(source, columns, classes)
        _check_folds(collection, official_folds)
    else:
        collection = _published(source, layout, official_folds)
    refused = [record.refused for record in collection.records if record.refused is not None]
    if refused and not skip_invalid:
        raise DataError(reasons(refused, len(collection.records)))
    return collection


def _published(source: str, layout: str, official_folds: int | None) -> Collection:
    store, reader = open_store(source), _PUBLISHED[layout]
    records = (
        bus_bra.scan(store, official_folds) if official_folds is not None else reader.scan(store)
    )
    return _collection(reader.NAME, reader.LICENCE, reader.CITATION, store, records)


def _table(
    source: str, columns: Mapping[str, str] | None, classes: Mapping[str, str] | None
) -> Collection:
    parent, name = split_uri(source)
    store = open_store(parent)
    records = table.scan(store, name, columns, classes)
    return _collection(PurePosixPath(name).stem, table.LICENCE, table.CITATION, store, records)


def _collection(
    name: str, licence: str, citation: str, store: Store, records: list[Record]
) -> Collection:
    return Collection(
        name=name,
        licence=licence,
        citation=citation,
        store=store,
        records=unique(records),
    )


def _check_folds(collection: Collection, official_folds: int | None) -> None:
    if official_folds is not None and all(record.fold is None for record in collection.records):
        raise DataError(
            f"Official folds of a table must be in its column `fold`, counted from 0, but "
            f"{collection.name} gives none; add the column or make folds instead."
        )


def _check_options(
    layout: str,
    official_folds: int | None,
    columns: Mapping[str, str] | None,
    classes: Mapping[str, str] | None,
) -> None:
    if official_folds is not None and layout not in ("bus_bra", "table"):
        raise DataError(
            f"Official folds must come with the collection, as bus_bra's do, but {layout} has none."
        )
    for option, given in (("Columns", columns), ("Classes", classes)):
        if given and layout != "table":
            raise DataError(
                f"{option} can be given for the layout table only, but not for {layout}."
            )
