"""Bytes of image files, from a store, with a bound on their number."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtil.data.images.budget import FILES
from mtil.errors import DataError
from mtil.storage import GcsStore, LocalStore, S3Store, Store

MAX_FILE_BYTES = 2**29
"""An image file may be as large; 89 megapixels in three bands of 16 bits fit."""


@contextmanager
def room_for(store: Store, names: Sequence[str]) -> Iterator[None]:
    """Wait until as many bytes may be held as local files have."""
    held = 0
    if isinstance(store, LocalStore):
        for name in names:
            with suppress(OSError, ValueError):  # said when the file is read
                held += min(MAX_FILE_BYTES, Path(store.root, name).stat().st_size)
    with FILES.hold(held):
        yield


def read_image_bytes(store: Store, name: str, shown: str) -> bytes:
    """Return an image file's bytes.

    Args:
        store: where the file is.
        name: the file's name in the store.
        shown: the name for an error.

    Raises:
        DataError: if the name is a folder, a pipe, a socket or a device, or the file is too large.
        NotFoundError: if there is no such file.
    """
    if isinstance(store, LocalStore):
        _check_file(Path(store.root, name), shown)
        return store.read(name)
    if not isinstance(store, S3Store | GcsStore):
        return store.read(name)
    parts, length = [], 0
    for part in store.chunks(name):
        length += len(part)
        _check_length(length, shown)
        parts.append(part)
    return b"".join(parts)


def _check_file(path: Path, shown: str) -> None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # said when the file is read
        return
    if not stat.S_ISREG(found.st_mode):
        raise DataError(
            f"An image must be a regular file, but {shown} is {_kind(found.st_mode)}; "
            "remove it or name another."
        )
    _check_length(found.st_size, shown)


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "none")


def _check_length(length: int, shown: str) -> None:
    if length > MAX_FILE_BYTES:
        raise DataError(
            f"An image file must have at most {MAX_FILE_BYTES:,} bytes, but {shown} has more; "
            "make it smaller."
        )
