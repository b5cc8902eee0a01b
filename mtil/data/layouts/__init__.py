"""Published layouts of image collections, each read into records without touching a pixel."""

from collections.abc import Sequence

from mtil.data.layouts import busi, table
from mtil.data.layouts.record import Record, check_unique
from mtil.errors import DataError
from mtil.storage import Store, open_store, split_uri

LAYOUTS = ("busi", "table")
"""Names of the layouts."""

__all__ = ["LAYOUTS", "Record", "check_unique", "scan"]


def scan(source: str, layout: str) -> tuple[Store, Sequence[Record]]:
    """Find the images of a collection.

    Args:
        source: a folder, a table, or an `s3://` URI of either.
        layout: how it is laid out, one of `LAYOUTS`.

    Returns:
        The store that the records' names are in, and the records sorted by sample id.

    Raises:
        DataError: if the collection is not laid out like that.
    """
    if layout == "busi":
        store = open_store(source)
        records = busi.scan(store)
    elif layout == "table":
        parent, name = split_uri(source)
        store = open_store(parent)
        records = table.scan(store, name)
    else:
        raise DataError(f"A layout must be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    check_unique(records)
    return store, sorted(records, key=lambda record: record.sample_id)
