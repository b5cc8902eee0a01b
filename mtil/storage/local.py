"""A folder on a local or shared disk as a store."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

from mtil.errors import NotFoundError, StorageError
from mtil.storage.bounds import join
from mtil.storage.names import checked

PARTIAL = ".partial-"
"""How the name of a file begins that an interrupted write has left."""
_CHUNK_BYTES = 2**20
_MKDIR_ATTEMPTS = 10


class LocalStore:
    """A folder on a local or shared disk."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()
        above = (self.root, *self.root.parents)
        self._found = next(folder for folder in above if os.path.isdir(folder))  # noqa: PTH112

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        return join(self.chunks(name), str(self._path(name)), max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        path = self._path(name)
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist.") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        path = self._path(name)
        try:
            partial = _write_partial(path, data)
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from None

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        path = self._path(name)
        try:
            partial = _write_partial(path, data)
            try:
                path.hardlink_to(partial)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from None
        return True

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        path = self._path(name)
        try:
            return path.is_file()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return [name for name in self.sizes(prefix) if not Path(name).name.startswith(PARTIAL)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`."""
        found = {}
        for path in _files(self._path(prefix) if prefix else self.root):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def delete(self, name: str) -> None:
        """See `Store.delete`; folders that this empties go too, as a bucket has none.

        Those that were there before the store was opened stay.
        """
        path = self._path(name)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror}.") from None
        self._remove_empty(path.parent)

    def clear(self, folder: str) -> None:
        """See `Store.clear`; folders that this empties go too, as in `delete`."""
        path = self._path(folder)
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror}.") from None
        self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self._found:
            try:
                folder.rmdir()
            except OSError:
                break
            folder = folder.parent

    def _path(self, name: str) -> Path:
        return self.root / checked(name)


def _write_partial(path: Path, data: bytes) -> Path:
    for attempt in range(_MKDIR_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
            break
        except (FileNotFoundError, FileExistsError):  # a delete elsewhere took the empty folder
            if attempt == _MKDIR_ATTEMPTS - 1:
                raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(partial).unlink()
        raise
    Path(partial).chmod(0o666 & ~_umask())
    return Path(partial)


def _files(start: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links too, but into no folder twice on one way."""
    above: dict[str, frozenset[str]] = {}
    for folder, inner, files in os.walk(start, onerror=_refuse_unreadable, followlinks=True):
        way = above.pop(folder, frozenset()) | {os.path.realpath(folder)}
        inner[:] = [one for one in inner if os.path.realpath(Path(folder) / one) not in way]
        above |= {os.path.join(folder, one): way for one in inner}  # noqa: PTH118
        yield from (Path(folder) / file for file in files)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError(f"{error.filename} cannot be read: {error.strerror}.") from None


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
