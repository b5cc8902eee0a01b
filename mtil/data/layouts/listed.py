"""Collections with one table that names every image."""

from collections.abc import Callable, Collection

from mtil.data.layouts.folders import CollectionFolder, ExpectedLayout, locate_collection
from mtil.data.layouts.record import Record, ScanResult
from mtil.data.layouts.tables import TableRow, read_records, read_rows
from mtil.storage import Store


def scan_listed_images(
    store: Store,
    expected: ExpectedLayout,
    *,
    read_record: Callable[[CollectionFolder, TableRow], Record],
    sample_id: Callable[[TableRow], str],
    file_names: Callable[[TableRow], tuple[str, tuple[str, ...]]],
    apart: str,
    tables: Collection[str],
) -> ScanResult:
    """Find the images named in the collection's table.

    Args:
        store: the collection's folder or a folder above.
        expected: the layout; the first of its folders holds the images.
        read_record: builds the record of a row, or raises a `DataError` with the reason.
        sample_id: returns the sample id of a row, empty if missing.
        file_names: returns the names of the image and the masks of a row.
        apart: see `files.list_source_files`.
        tables: further tables of the collection, for the file account.

    Raises:
        DataError: if the collection is missing, incomplete or ambiguous, or the table is
            unreadable.
    """
    folder, notes = locate_collection(store, expected, apart), list[str]()
    records = read_records(
        read_rows(store, folder.table, expected.columns, notes),
        lambda row: read_record(folder, row),
        sample_id,
        lambda row: folder.files(*file_names(row)),
    )
    records += folder.refuse_unlisted_images(folder.inside(expected.folders[0]), records)
    read = (folder.table, *tables)
    return ScanResult(
        records=records,
        files=lambda unique: folder.account(unique, read, expected.folders),
        notes=notes,
    )
