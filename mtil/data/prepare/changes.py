"""Detection of changed files in a collection, without reading the files.

The state of a local file is size and modification time. The state of an object in a bucket is the
mark given in a listing, because a listing covers many objects at once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from os.path import commonpath

from mtil.data.layouts.record import Record
from mtil.storage import Store, open_store

FileState = Callable[[Record], str]


def make_state_lookup(stores: Mapping[str, str], records: Sequence[Record]) -> FileState:
    """Return a function from a record to the state of the record's files.

    Args:
        stores: URI of the files, by source.
        records: all records; buckets are listed here, local files at every call.
    """
    by_source = {
        source: _state_of_files(open_store(uri), [r for r in records if r.source == source])
        for source, uri in stores.items()
    }
    return lambda record: " ".join(map(by_source[record.source], _files(record)))


def digest_file_states(state: FileState, records: Sequence[Record]) -> str:
    """Return 8 hex digits identifying the state of the files of the records."""
    sha256 = hashlib.sha256()
    for record in records:
        sha256.update(f"{state(record)}\n".encode())
    return sha256.hexdigest()[:8]


def _files(record: Record) -> tuple[str, ...]:
    # Files of a refused record are never read, and may be missing.
    return () if record.refused is not None else (record.image, *record.masks)


def _state_of_files(store: Store, records: Sequence[Record]) -> Callable[[str], str]:
    folders = {name.rpartition("/")[0] for record in records for name in _files(record)}
    # Listing the deepest common folder avoids a request per object.
    return store.versions(commonpath(folders) if folders else "")
