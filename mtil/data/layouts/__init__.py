"""Published layouts of image collections, each read into records without touching a pixel."""

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Protocol

from mtil.data.layouts import breast, bus_bra, bus_uclm, busi, table, udiat
from mtil.data.layouts.files import relative
from mtil.data.layouts.patients import same_names
from mtil.data.layouts.record import Collection, Found, Record, reasons, unique
from mtil.data.names import is_text, shown
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

    def scan(self, store: Store, *, apart: str, tables: Names[str]) -> Found: ...


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
    apart: str = "",
    beside: Sequence[str] = (),
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
        apart: a URI whose files are no part of the collection, such as the data set that is made.
        beside: URIs of more tables about the images, for the account of their files.

    Raises:
        DataError: if the collection is not laid out like that, an option does not fit, or images
            cannot be used.
    """
    if layout not in LAYOUTS:
        raise DataError(f"A layout must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    _check_options(layout, official_folds, columns, classes)
    try:
        if layout == "table":
            collection = _table(source, columns, classes, apart, beside)
            _check_folds(collection, official_folds)
        else:
            collection = _published(source, layout, official_folds, apart, beside)
    except DataError as error:
        raise DataError(shown(str(error))) from None
    refused = [record.refused for record in collection.records if record.refused is not None]
    if refused and not skip_invalid:
        raise DataError(reasons(refused, len(collection.records)))
    return collection


def _published(
    source: str, layout: str, official_folds: int | None, apart: str, beside: Sequence[str]
) -> Collection:
    store, reader = open_store(source), _PUBLISHED[layout]
    tables = _inside(store, beside)
    found = (
        bus_bra.scan(store, official_folds, apart=apart, tables=tables)
        if official_folds is not None
        else reader.scan(store, apart=apart, tables=tables)
    )
    return _collection(reader.NAME, reader.LICENCE, reader.CITATION, store, found)


def _table(
    source: str,
    columns: Mapping[str, str] | None,
    classes: Mapping[str, str] | None,
    apart: str,
    beside: Sequence[str],
) -> Collection:
    parent, name = split_uri(source)
    store = open_store(parent)
    tables = _inside(store, beside)
    found = table.scan(store, name, columns, classes, apart=apart, tables=tables)
    return _collection(PurePosixPath(name).stem, table.LICENCE, table.CITATION, store, found)


def _inside(store: Store, uris: Sequence[str]) -> list[str]:
    return [name for uri in uris if (name := relative(store, uri)) is not None]


def _collection(name: str, licence: str, citation: str, store: Store, found: Found) -> Collection:
    _check_names(store, found.records)
    records = unique(found.records)
    patients = same_names({record.patient for record in records}, "patients")
    return Collection(
        name=name,
        licence=licence,
        citation=citation,
        store=store,
        records=records,
        files=found.files(records),
        notes=(*found.notes, *patients),
        warnings=found.warnings,
    )


def _check_names(store: Store, records: Sequence[Record]) -> None:
    """Refuse file names that are no text, which neither Parquet nor JSON can hold."""
    broken = sorted(
        {
            name
            for record in records
            for name in (record.sample_id, record.image, *record.masks, *record.others)
            if not is_text(name)
        }
    )
    if broken:
        files = [name for name in broken if "/" in name] or broken
        raise DataError(
            f"File names must be UTF-8 text, but {store.uri} has {len(files)} that are not, such "
            f"as {files[0]}; rename them, for example with `convmv`."
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
