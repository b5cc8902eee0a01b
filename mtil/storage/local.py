"""A folder on a local or shared disk as a store.

Reading follows links. Writing and deleting follow no links below the store's root, so nothing
outside the root ever changes (see `mtil.storage.folders`). Every object is a regular file.
"""

import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from errno import ENAMETOOLONG
from pathlib import Path, PurePosixPath

from mtil.errors import NotFoundError, StorageError
from mtil.storage import creation, file_errors, folders
from mtil.storage.listing import StoreListing
from mtil.storage.names import PARTIAL_PREFIX, is_partial, normalize_name, quote_object_name
from mtil.storage.size_limits import too_large_error

_CHUNK_BYTES = 2**20
# O_NONBLOCK: opening a named pipe must not wait for a writer.
_READ_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PIECE_BYTES = 2**28
_WRITE_ATTEMPTS = 10
"""Attempts of a write while other processes delete the emptied folder."""
_MAX_PATH_BYTES = 4095
"""PATH_MAX of Linux without the final NUL."""
_MAX_GROWTH_BYTES = 64 * 2**20
"""Largest growth of a file, in bytes, while being read without a limit."""
_MAX_LINK_PATHS = 64
"""Paths through links by which a listing may reach a folder."""


class LocalStore:
    """A folder on a local or shared disk."""

    def __init__(self, root: str) -> None:
        try:
            self.root = Path(root).expanduser().absolute()
        # RuntimeError: `~user` of an unknown user. OSError: the working folder was deleted.
        except (RuntimeError, OSError) as error:
            raise StorageError(
                f"{quote_object_name(root)} names no folder here ({str(error).rstrip('.')}); "
                "choose another."
            ) from None
        if "\0" in root:
            raise StorageError(f"A path must have no NUL, but got {quote_object_name(root)}.")
        # The innermost folder that exists now; `_remove_empty` stops at this folder. Path.is_dir
        # raises PermissionError where os.path.isdir returns False.
        candidates = (self.root, *self.root.parents)
        self._preexisting = next(
            (folder for folder in candidates if os.path.isdir(folder)),  # noqa: PTH112
            candidates[-1],
        )

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    @property
    def local_folder(self) -> Path:
        """See `Store.local_folder`."""
        return self.root

    def versions(self, folder: str = "") -> Callable[[str], str]:
        """See `Store.versions`: size and modification time."""

        def version(name: str) -> str:
            try:
                status = (self.root / name).stat()
            except OSError:
                return "-"
            return f"{status.st_size}:{status.st_mtime_ns}"

        return version

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        pieces = self._pieces(name, None, max_bytes)
        first = next(pieces, b"")
        rest = b"".join(pieces)
        return first + rest if rest else first

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        return self._pieces(name, _CHUNK_BYTES, None)

    def _pieces(self, name: str, piece_bytes: int | None, max_bytes: int | None) -> Iterator[bytes]:
        """Yield a file's bytes in pieces; by default in one piece, unless the file grows."""
        path = self._path(name)
        try:
            file = _open(path)
            try:
                size = os.fstat(file).st_size
                limit = size + _MAX_GROWTH_BYTES if max_bytes is None else max_bytes
                if size > limit:
                    raise too_large_error(str(path), limit)
                while piece := os.read(file, piece_bytes or min(size + 1, _MAX_PIECE_BYTES)):
                    limit -= len(piece)
                    if limit < 0 and max_bytes is not None:
                        raise too_large_error(str(path), max_bytes)
                    if limit < 0:
                        raise StorageError(
                            f"{path} grows while it is read; end the process that writes the file."
                        )
                    yield piece
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist.") from None
        except OSError as error:
            raise file_errors.path_error(path, "read", error) from None

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        self._write_atomically(name, data, _replace)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._write_atomically(name, data, creation.rename_if_absent)

    def _write_atomically(
        self, name: str, data: bytes, publish: Callable[[str, str, int, str], bool]
    ) -> bool:
        """Write a partial file, then give the file its final name by `publish`.

        Args:
            name: the object's name.
            data: the object's bytes.
            publish: takes the partial name, the final name, the folder's descriptor and the path.
                Returns whether the final name now has the data.
        """
        path = self._path(name)
        *inner, last = _parts(name)
        for attempt in range(_WRITE_ATTEMPTS):
            try:
                with folders.open_folders(self.root, inner, make=True) as descriptors:
                    _refuse_irregular(path, last, descriptors[-1])
                    partial = _write_partial(descriptors[-1], data)
                    try:
                        return publish(partial, last, descriptors[-1], str(path))
                    finally:
                        # The partial name is gone after a rename, but not after a hard link.
                        with suppress(FileNotFoundError):
                            os.unlink(partial, dir_fd=descriptors[-1])
            # A concurrent delete of the folder's last object removed the folder too.
            except FileNotFoundError as error:
                if attempt == _WRITE_ATTEMPTS - 1:
                    raise file_errors.path_error(path, "written", error) from None
            except OSError as error:
                raise file_errors.path_error(path, "written", error) from None
        raise AssertionError

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        path = self._path(name)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise file_errors.path_error(path, "read", error) from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise file_errors.irregular_file_error(path, mode)
        return stat.S_ISREG(mode)

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return [name for name in self.sizes(prefix) if not is_partial(name)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`. Follows links, and lists dangling links too."""
        sizes = {}
        for path in _walk_files(self._path(prefix) if prefix else self.root):
            # Another process may delete the file between the listing and `stat`.
            with suppress(FileNotFoundError):
                sizes[path.relative_to(self.root).as_posix()] = _size(path)
        return dict(sorted(sizes.items()))

    def deletable(self, prefix: str = "") -> StoreListing:
        """See `Store.deletable`."""
        folder = normalize_name(prefix) if prefix else ""
        sizes: dict[str, int] = {}
        left: list[str] = []
        try:
            for name, status in folders.list_files_below(self.root, folder):
                if stat.S_ISREG(status.st_mode):
                    sizes[name] = status.st_size
                else:
                    left.append(name)
        except FileNotFoundError:
            return StoreListing({}, ())
        except NotADirectoryError:
            return StoreListing({}, (folder,) if folder else ())
        except OSError as error:
            raise file_errors.path_error(self.root / folder, "read", error) from None
        return StoreListing(dict(sorted(sizes.items())), tuple(sorted(left)))

    def delete(self, name: str) -> None:
        """See `Store.delete`. Also deletes emptied folders, as a bucket has no folders.

        Folders older than this store object stay. A link is deleted, never the target.
        """
        path = self._path(name)
        *inner, last = _parts(name)
        try:
            with folders.open_folders(self.root, inner) as descriptors:
                status = os.stat(last, dir_fd=descriptors[-1], follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode) and not stat.S_ISLNK(status.st_mode):
                    raise file_errors.irregular_file_error(path, status.st_mode)
                os.unlink(last, dir_fd=descriptors[-1])
                self._remove_empty(inner, descriptors)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise file_errors.path_error(path, "deleted", error) from None

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """See `Store.clear`. Also deletes emptied folders, as `delete` does."""
        for name in self.deletable(folder).matching(folder, pattern):
            self.delete(name)

    def _remove_empty(self, inner: list[str], descriptors: list[int]) -> None:
        """Remove emptied folders, innermost first."""
        try:
            for name, parent in zip(reversed(inner), reversed(descriptors[:-1]), strict=True):
                os.rmdir(name, dir_fd=parent)
            folder = self.root
            while folder != self._preexisting:
                folder.rmdir()
                folder = folder.parent
        # The folder is not empty, or its removal is not permitted.
        except OSError:
            return

    def _path(self, name: str) -> Path:
        path = self.root / normalize_name(name)
        try:
            size = len(os.fsencode(path))
            # Writing through folder descriptors allows longer paths, but reading opens whole paths.
            if size > _MAX_PATH_BYTES:
                raise file_errors.path_error(
                    quote_object_name(name), "used", OSError(ENAMETOOLONG, "File name too long")
                )
        except UnicodeEncodeError:
            raise StorageError(
                f"A name must be encodable on this system, but got {quote_object_name(name)}; "
                "rename the file."
            ) from None
        return path


def _parts(name: str) -> list[str]:
    return list(PurePosixPath(normalize_name(name)).parts)


def _open(path: Path) -> int:
    """Open a regular file for reading."""
    # Look before opening: opening or reading a device or a named pipe may wait for ever.
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise NotFoundError(f"{path} does not exist as a file, only as a folder.")
    if not stat.S_ISREG(mode):
        raise file_errors.irregular_file_error(path, mode)
    file = os.open(path, _READ_FLAGS)
    mode = os.fstat(file).st_mode
    # Another process may have replaced the file since the first look.
    if not stat.S_ISREG(mode):
        os.close(file)
        raise file_errors.irregular_file_error(path, mode)
    return file


def _replace(partial: str, name: str, folder: int, where: str) -> bool:
    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _refuse_irregular(path: Path, name: str, folder: int) -> None:
    """Raise if a folder, a device or another special file has the name. Links may be replaced."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise file_errors.irregular_file_error(path, mode)


def _write_partial(folder: int, data: bytes) -> str:
    """Write and sync a file with a new partial name. Return the name."""
    while True:
        name = f"{PARTIAL_PREFIX}{secrets.token_hex(6)}"
        try:
            handle = os.open(name, _CREATE_FLAGS, 0o666, dir_fd=folder)
            break
        except FileExistsError:
            continue
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            # Sync before the rename: a crash must leave the old or the complete new object.
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise
    return name


def _size(path: Path) -> int:
    """Return a file's size in bytes; for a dangling or circular link, the size of the link."""
    try:
        return path.stat().st_size
    except OSError as error:
        try:
            status = path.lstat()
        except FileNotFoundError:
            raise
        except OSError:
            raise file_errors.path_error(path, "read", error) from None
        if not stat.S_ISLNK(status.st_mode):
            raise file_errors.path_error(path, "read", error) from None
        return status.st_size


def _walk_files(start: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links too.

    Never enters a folder below itself, so circular links end.
    """
    ancestors: dict[str, frozenset[str]] = {}
    num_paths = Counter[str]()
    for folder, inner, files in os.walk(start, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        # Without a limit, 30 folders with two links each to the next have 2^30 paths.
        num_paths[real] += 1
        if num_paths[real] > _MAX_LINK_PATHS:
            raise StorageError(
                f"A folder may be reached by {_MAX_LINK_PATHS} paths, but links below {start} "
                f"lead to {real} by more; remove some links."
            )
        chain = ancestors.pop(folder, frozenset()) | {real}
        inner[:] = [name for name in inner if os.path.realpath(Path(folder) / name) not in chain]
        ancestors |= {os.path.join(folder, name): chain for name in inner}  # noqa: PTH118
        yield from (Path(folder) / file for file in files)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise file_errors.path_error(error.filename, "read", error) from None
