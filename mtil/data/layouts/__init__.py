"""Read published image collections into records, without decoding a pixel."""

from collections.abc import Collection as Names
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from mtil.data.layouts import breast, bus_bra, bus_uclm, busi, table, udiat
from mtil.data.layouts.files import relative_to_store
from mtil.data.layouts.patients import note_merged_spellings
from mtil.data.layouts.record import (
    Collection,
    Record,
    ScanResult,
    format_refusals,
    merge_repeated_records,
)
from mtil.data.names import escape_unprintable, is_valid_unicode
from mtil.errors import DataError
from mtil.storage import Store, open_store, split_uri

LAYOUTS = ("busi", "udiat", "bus_bra", "bus_uclm", "breast", "table")
"""Names of the layouts."""

__all__ = ["LAYOUTS", "Collection", "Record", "scan_collection"]


class _ScanFunction(Protocol):
    """Function for finding the images of a published collection."""

    def __call__(self, store: Store, *, apart: str, tables: Names[str]) -> ScanResult: ...


@dataclass(frozen=True)
class _PublishedLayout:
    """A published collection with the function for reading the layout."""

    name: str
    licence: str
    citation: str
    scan_store: _ScanFunction


_PUBLISHED: Mapping[str, _PublishedLayout] = {
    "busi": _PublishedLayout(busi.NAME, busi.LICENCE, busi.CITATION, busi.scan_busi),
    "udiat": _PublishedLayout(udiat.NAME, udiat.LICENCE, udiat.CITATION, udiat.scan_udiat),
    "bus_bra": _PublishedLayout(
        bus_bra.NAME, bus_bra.LICENCE, bus_bra.CITATION, bus_bra.scan_bus_bra
    ),
    "bus_uclm": _PublishedLayout(
        bus_uclm.NAME, bus_uclm.LICENCE, bus_uclm.CITATION, bus_uclm.scan_bus_uclm
    ),
    "breast": _PublishedLayout(breast.NAME, breast.LICENCE, breast.CITATION, breast.scan_breast),
}


def scan_collection(
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
        source: path or `s3://` URI of a folder, or of a table for the layout `table`.
        layout: one of `LAYOUTS`.
        official_folds: number of folds to take from the collection's own fold file. A table
            gives folds in the column `fold` instead. Without a number, official folds are not read.
        columns: column of a table by role, for the layout `table` only.
        classes: class by the table's word for the class, for the layout `table` only.
        skip_invalid: keep unusable images as refused records instead of raising.
        apart: URI of files to leave out, for example of the data set being written.
        beside: URIs of further tables about the images, counted as tables in the file account.

    Raises:
        DataError: if the source does not have the layout, an option does not fit the layout, or
            an image is unusable and `skip_invalid` is false.
    """
    if layout not in LAYOUTS:
        raise DataError(f"A layout must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    _check_options(layout, official_folds, columns, classes)
    try:
        if layout == "table":
            collection = _scan_table(source, columns, classes, apart, beside)
            _check_folds(collection, official_folds)
        else:
            collection = _scan_published(source, layout, official_folds, apart, beside)
    except DataError as error:
        # Messages quote file names, which may hold control characters or broken bytes.
        raise DataError(escape_unprintable(str(error))) from None
    refused = [record.refused for record in collection.records if record.refused is not None]
    if refused and not skip_invalid:
        raise DataError(format_refusals(refused, len(collection.records)))
    return collection


def _scan_published(
    source: str, layout: str, official_folds: int | None, apart: str, beside: Sequence[str]
) -> Collection:
    store, published = open_store(source), _PUBLISHED[layout]
    tables = _names_in_store(store, beside)
    result = (
        bus_bra.scan_bus_bra(store, official_folds, apart=apart, tables=tables)
        if official_folds is not None
        else published.scan_store(store, apart=apart, tables=tables)
    )
    return _build_collection(published.name, published.licence, published.citation, store, result)


def _scan_table(
    source: str,
    columns: Mapping[str, str] | None,
    classes: Mapping[str, str] | None,
    apart: str,
    beside: Sequence[str],
) -> Collection:
    parent, name = split_uri(source)
    store = open_store(parent)
    tables = _names_in_store(store, beside)
    result = table.scan_table(store, name, columns, classes, apart=apart, tables=tables)
    return _build_collection(PurePosixPath(name).stem, table.LICENCE, table.CITATION, store, result)


def _names_in_store(store: Store, uris: Sequence[str]) -> list[str]:
    return [name for uri in uris if (name := relative_to_store(store, uri)) is not None]


def _build_collection(
    name: str, licence: str, citation: str, store: Store, result: ScanResult
) -> Collection:
    _check_names(store, result.records)
    records = merge_repeated_records(result.records)
    patient_notes = note_merged_spellings({record.patient for record in records}, "patients")
    return Collection(
        name=name,
        licence=licence,
        citation=citation,
        store=store,
        records=records,
        files=result.files(records),
        notes=(*result.notes, *patient_notes),
        warnings=result.warnings,
    )


def _check_names(store: Store, records: Sequence[Record]) -> None:
    """Raise `DataError` for file names with bytes outside UTF-8."""
    # Parquet and JSON hold text only: writing the data set would fail later.
    broken = sorted(
        {
            name
            for record in records
            for name in (record.sample_id, record.image, *record.masks, *record.others)
            if not is_valid_unicode(name)
        }
    )
    if broken:
        # Most ids repeat a file name without the folder; count every file once, by path.
        files = [name for name in broken if "/" in name] or broken
        raise DataError(
            f"File names must be UTF-8 text, but {store.uri} has {len(files)} with other bytes, "
            f"such as {files[0]}; rename the files, for example with `convmv`."
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
            f"Official folds must come with the collection, as in bus_bra, but {layout} has none; "
            "make folds instead."
        )
    for option, value in (("Columns", columns), ("Classes", classes)):
        if value and layout != "table":
            raise DataError(f"{option} are for the layout table only, but the layout is {layout}.")
