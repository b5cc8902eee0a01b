"""Folders below a store's root, opened one after the other, and never through a link.

Whatever mtil writes or deletes on a disk goes through `opened`: between a check of a path and its
use somebody could put a link there, so that the open folders themselves are what is used.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mtil.storage import words

_MAX_DEPTH = 12
"""Below a store's root; no name that mtil writes has as many folders."""
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = _ROOT | os.O_NOFOLLOW
if hasattr(os, "O_PATH"):  # needs no right to list a folder
    _ROOT |= os.O_PATH
    _FOLDER |= os.O_PATH


@contextmanager
def opened(root: Path, folders: Sequence[str], *, make: bool = False) -> Iterator[list[int]]:
    """Open a root, which may be a link, and the folders below it, which may not.

    Args:
        root: the store's folder.
        folders: the names below it, each inside the one before.
        make: whether missing folders are made.

    Yields:
        The descriptors of the root and of each folder.

    Raises:
        StorageError: if one of the folders is a link.
        OSError: if one is missing, is no folder, or cannot be opened or made.
    """
    held: list[int] = []
    try:
        _open(root, folders, held, make=make)
        yield held
    finally:
        for folder in held:
            os.close(folder)


def listed(root: Path, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield what lies below a folder of a store, except folders, and follow no link.

    Args:
        root: the store's folder.
        folder: relative to it; the root itself if empty.

    Yields:
        Names relative to the root, and what `lstat` says of them.
    """
    parts = tuple(part for part in folder.split("/") if part)
    with opened(root, parts) as held:
        top = os.open(".", _LISTED, dir_fd=held[-1])
        try:
            found = list(_walk(top, "/".join(parts), _MAX_DEPTH))
        finally:
            os.close(top)
    yield from found


def _walk(top: int, way: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in sorted(os.listdir(top)):
        path = f"{way}/{name}" if way else name
        with suppress(FileNotFoundError):  # deleted meanwhile
            found = os.stat(name, dir_fd=top, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                yield path, found
            elif depth:
                inner = os.open(name, _LISTED | os.O_NOFOLLOW, dir_fd=top)
                try:
                    yield from _walk(inner, path, depth - 1)
                finally:
                    os.close(inner)


def _open(root: Path, folders: Sequence[str], held: list[int], *, make: bool) -> None:
    if make:
        root.mkdir(parents=True, exist_ok=True)
    held.append(os.open(root, _ROOT))
    for number, name in enumerate(folders):
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=held[-1])
        try:
            held.append(os.open(name, _FOLDER, dir_fd=held[-1]))
        except OSError:
            if _is_link(name, held[-1]):
                raise words.linked(root, "/".join(folders[: number + 1])) from None
            raise


def _is_link(name: str, folder: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False
