"""What tells that a collection's files have changed, without reading them.

On a disk size and time of the last change, file by file; in a bucket the marks of a listing, which
says them of many objects at once.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from os.path import commonpath

from mtil.data.layouts.record import Record
from mtil.storage import GcsStore, LocalStore, S3Store, Store, open_store

State = Callable[[Record], str]


def state_of(stores: Mapping[str, str], records: Sequence[Record]) -> State:
    """Return a function that says in which state a record's files are.

    Args:
        stores: URI of each source's files.
        records: all records; those of a bucket are listed here.
    """
    by_source = {
        source: _state_of_files(open_store(uri), [r for r in records if r.source == source])
        for source, uri in stores.items()
    }
    return lambda record: " ".join(map(by_source[record.source], _files(record)))


def digest(state: State, records: Sequence[Record]) -> str:
    """Return a short name for the state of records' files."""
    found = hashlib.sha256()
    for record in records:
        found.update(f"{state(record)}\n".encode())
    return found.hexdigest()[:8]


def _files(record: Record) -> tuple[str, ...]:
    return () if record.refused is not None else (record.image, *record.masks)


def _state_of_files(store: Store, records: Sequence[Record]) -> Callable[[str], str]:
    if isinstance(store, LocalStore):
        return lambda name: _on_disk(store, name)
    assert isinstance(store, S3Store | GcsStore)
    folders = {name.rpartition("/")[0] for record in records for name in _files(record)}
    marks = store.marks(commonpath(folders) if folders else "")
    return lambda name: marks.get(name, "-")


def _on_disk(store: LocalStore, name: str) -> str:
    try:
        found = (store.root / name).stat()
    except OSError:  # it is said when the file is read
        return "-"
    return f"{found.st_size}:{found.st_mtime_ns}"
