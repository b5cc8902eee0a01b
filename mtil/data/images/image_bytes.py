"""Bounded reads of image files from a store."""

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtil.data.images.budget import FILE_BYTE_BUDGET
from mtil.errors import DataError
from mtil.storage import Store

MAX_FILE_BYTES = 2**29
"""Most bytes of an image file; 89 megapixels in three bands of 16 bits fit."""


@contextmanager
def reserve_file_bytes(store: Store, names: Sequence[str]) -> Iterator[None]:
    """Wait for memory for the bytes of local files; reserve the bytes while the block runs.

    Files in a bucket reserve nothing.
    """
    num_bytes = 0
    if store.local_folder is not None:
        for name in names:
            # A missing or unreadable file is reported on reading.
            with suppress(OSError, ValueError):
                num_bytes += min(MAX_FILE_BYTES, Path(store.local_folder, name).stat().st_size)
    with FILE_BYTE_BUDGET.hold(num_bytes):
        yield


def read_image_bytes(store: Store, name: str, shown: str) -> bytes:
    """Return the bytes of an image file.

    Args:
        store: store holding the file.
        name: name of the file in the store.
        shown: name of the file for error messages.

    Raises:
        DataError: if the name is a folder, a pipe, a socket or a device, or the file is too large.
        NotFoundError: if no file has the name.
    """
    if store.local_folder is not None:
        # Checked before opening: reading a pipe or a device might never end.
        _check_file(Path(store.local_folder, name), shown)
        return store.read(name)
    # Count bytes on arrival: the length of an object is unknown before the download.
    parts, length = [], 0
    for part in store.chunks(name):
        length += len(part)
        _check_length(length, shown)
        parts.append(part)
    return b"".join(parts)


def _check_file(path: Path, shown: str) -> None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        # A missing or unreadable file is reported on reading.
        return
    if not stat.S_ISREG(status.st_mode):
        raise DataError(
            f"An image must be a regular file, but {shown} is {_file_kind(status.st_mode)}; "
            "remove it or name a regular file."
        )
    _check_length(status.st_size, shown)


def _file_kind(mode: int) -> str:
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
            "reduce its size."
        )
