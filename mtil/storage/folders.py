"""Open nested folders below a store's root, never through a link.

Every write and delete on a disk goes through `open_folders` and uses folder descriptors. Between
the check and the use of a path, a process could replace a folder by a link.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtil.storage import file_errors

_MAX_DEPTH = 12
"""Deepest folder listed below a store's root. Names written by mtil have fewer folders."""
_LIST_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ROOT_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER_FLAGS = _ROOT_FLAGS | os.O_NOFOLLOW
# O_PATH needs no permission to list the folder.
if hasattr(os, "O_PATH"):
    _ROOT_FLAGS |= os.O_PATH
    _FOLDER_FLAGS |= os.O_PATH


@contextmanager
def open_folders(root: Path, folders: Sequence[str], *, make: bool = False) -> Iterator[list[int]]:
    """Open a store's root and nested folders below the root.

    Args:
        root: the store's folder. May be a link.
        folders: names of nested folders, outermost first. Links are refused.
        make: whether to create missing folders.

    Yields:
        The descriptors of the root and of each folder.

    Raises:
        StorageError: if a folder below the root is a link.
        OSError: if a folder is missing, is not a folder, or cannot be opened or created.
    """
    # `_open` appends every new descriptor at once, for closing after an error halfway.
    descriptors: list[int] = []
    try:
        _open(root, folders, descriptors, make=make)
        yield descriptors
    finally:
        for folder in descriptors:
            os.close(folder)


def list_files_below(root: Path, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield all entries below a folder of a store except folders, without following links.

    Args:
        root: the store's folder.
        folder: the folder, relative to the root; empty for the root.

    Yields:
        Names relative to the root, with `lstat` results.
    """
    parts = tuple(part for part in folder.split("/") if part)
    with open_folders(root, parts) as descriptors:
        # A descriptor with O_PATH cannot be listed, so open the folder again for reading.
        top = os.open(".", _LIST_FLAGS, dir_fd=descriptors[-1])
        try:
            entries = list(_walk(top, "/".join(parts), _MAX_DEPTH))
        finally:
            os.close(top)
    yield from entries


def _walk(top: int, prefix: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in sorted(os.listdir(top)):
        path = f"{prefix}/{name}" if prefix else name
        # Another process may delete the entry between the listing and `stat`.
        with suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=top, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                yield path, status
            elif depth:
                inner = os.open(name, _LIST_FLAGS | os.O_NOFOLLOW, dir_fd=top)
                try:
                    yield from _walk(inner, path, depth - 1)
                finally:
                    os.close(inner)


def _open(root: Path, folders: Sequence[str], descriptors: list[int], *, make: bool) -> None:
    if make:
        # `mkdir` also raises FileExistsError when another process deletes the folder meanwhile.
        # Opening the folder then fails with FileNotFoundError, and the write is repeated.
        with suppress(FileExistsError):
            root.mkdir(parents=True, exist_ok=True)
    descriptors.append(os.open(root, _ROOT_FLAGS))
    for depth, name in enumerate(folders):
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=descriptors[-1])
        try:
            descriptors.append(os.open(name, _FOLDER_FLAGS, dir_fd=descriptors[-1]))
        except OSError:
            if _is_link(name, descriptors[-1]):
                raise file_errors.link_error(root, "/".join(folders[: depth + 1])) from None
            raise


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
