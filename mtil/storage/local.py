"""A folder on a local or shared disk as a store.

Reading follows links. Writing and deleting follow none below the store's root, so that nothing
outside it is ever changed (see `mtil.storage.folders`). Every object is a regular file.
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
from mtil.storage import creation, folders, words
from mtil.storage.bounds import too_large
from mtil.storage.listing import Listing
from mtil.storage.names import PARTIAL, checked, is_partial, shown

_CHUNK_BYTES = 2**20
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PIECE = 2**28
_ATTEMPTS = 10
_MAX_PATH_BYTES = 4095
_MAX_GROWTH = 64 * 2**20
"""How many bytes more than a file had when it was opened are read of it."""
_MAX_WAYS = 64
"""By how many ways a folder may be reached through links."""


class LocalStore:
    """A folder on a local or shared disk."""

    def __init__(self, root: str) -> None:
        try:
            self.root = Path(root).expanduser().absolute()
        except (RuntimeError, OSError) as error:  # nobody's home; a working folder that has gone
            raise StorageError(
                f"{shown(root)} names no folder here ({str(error).rstrip('.')}); name another."
            ) from None
        if "\0" in root:
            raise StorageError(f"A path must have no NUL, but got {shown(root)}.")
        above = (self.root, *self.root.parents)
        self._found = next(
            (folder for folder in above if os.path.isdir(folder)),  # noqa: PTH112
            above[-1],
        )

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

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
        """Yield a file's bytes in pieces, or by default in one piece if it does not grow."""
        path = self._path(name)
        try:
            file = _open(path)
            try:
                size = os.fstat(file).st_size
                limit = size + _MAX_GROWTH if max_bytes is None else max_bytes
                if size > limit:
                    raise too_large(str(path), limit)
                while piece := os.read(file, piece_bytes or min(size + 1, _MAX_PIECE)):
                    limit -= len(piece)
                    if limit < 0 and max_bytes is not None:
                        raise too_large(str(path), max_bytes)
                    if limit < 0:
                        raise StorageError(
                            f"{path} grows while it is read; end the process that writes it."
                        )
                    yield piece
            finally:
                os.close(file)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist.") from None
        except OSError as error:
            raise words.failed(path, "read", error) from None

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        self._place(name, data, _replace)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        return self._place(name, data, creation.named)

    def _place(self, name: str, data: bytes, give: Callable[[str, str, int, str], bool]) -> bool:
        """Write a file under a name of its own and give it the name it is to have."""
        path = self._path(name)
        *inner, last = _parts(name)
        for attempt in range(_ATTEMPTS):
            try:
                with folders.opened(self.root, inner, make=True) as held:
                    _refuse_irregular(path, last, held[-1])
                    partial = _write_partial(held[-1], data)
                    try:
                        return give(partial, last, held[-1], str(path))
                    finally:
                        with suppress(FileNotFoundError):  # renamed
                            os.unlink(partial, dir_fd=held[-1])
            except FileNotFoundError as error:  # a delete elsewhere has taken the empty folder
                if attempt == _ATTEMPTS - 1:
                    raise words.failed(path, "written", error) from None
            except OSError as error:
                raise words.failed(path, "written", error) from None
        raise AssertionError

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        path = self._path(name)
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise words.failed(path, "read", error) from None
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise words.irregular(path, mode)
        return stat.S_ISREG(mode)

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return [name for name in self.sizes(prefix) if not is_partial(name)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`; links are followed, and those to nothing are listed too."""
        found = {}
        for path in _files(self._path(prefix) if prefix else self.root):
            with suppress(FileNotFoundError):  # deleted meanwhile
                found[path.relative_to(self.root).as_posix()] = _size(path)
        return dict(sorted(found.items()))

    def deletable(self, prefix: str = "") -> Listing:
        """See `Store.deletable`."""
        folder = checked(prefix) if prefix else ""
        sizes: dict[str, int] = {}
        left: list[str] = []
        try:
            for name, found in folders.listed(self.root, folder):
                if stat.S_ISREG(found.st_mode):
                    sizes[name] = found.st_size
                else:
                    left.append(name)
        except FileNotFoundError:
            return Listing({}, ())
        except NotADirectoryError:
            return Listing({}, (folder,) if folder else ())
        except OSError as error:
            raise words.failed(self.root / folder, "read", error) from None
        return Listing(dict(sorted(sizes.items())), tuple(sorted(left)))

    def delete(self, name: str) -> None:
        """See `Store.delete`; folders that this empties go too, as a bucket has none.

        Those that were there before the store was opened stay. A link is deleted itself, and never
        what it leads to.
        """
        path = self._path(name)
        *inner, last = _parts(name)
        try:
            with folders.opened(self.root, inner) as held:
                found = os.stat(last, dir_fd=held[-1], follow_symlinks=False)
                if not stat.S_ISREG(found.st_mode) and not stat.S_ISLNK(found.st_mode):
                    raise words.irregular(path, found.st_mode)
                os.unlink(last, dir_fd=held[-1])
                self._remove_empty(inner, held)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise words.failed(path, "deleted", error) from None

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """See `Store.clear`; folders that this empties go too, as in `delete`."""
        for name in self.deletable(folder).matching(folder, pattern):
            self.delete(name)

    def _remove_empty(self, inner: list[str], held: list[int]) -> None:
        """Remove the folders that are empty now, the innermost first."""
        try:
            for name, above in zip(reversed(inner), reversed(held[:-1]), strict=True):
                os.rmdir(name, dir_fd=above)
            folder = self.root
            while folder != self._found:
                folder.rmdir()
                folder = folder.parent
        except OSError:  # not empty, or not ours to remove
            return

    def _path(self, name: str) -> Path:
        path = self.root / checked(name)
        try:
            size = len(os.fsencode(path))
            if size > _MAX_PATH_BYTES:  # descriptors of folders would go deeper
                raise words.failed(shown(name), "used", OSError(ENAMETOOLONG, "File name too long"))
        except UnicodeEncodeError:
            raise StorageError(
                f"A name must be one that this system can write, but got {shown(name)}; rename it."
            ) from None
        return path


def _parts(name: str) -> list[str]:
    return list(PurePosixPath(checked(name)).parts)


def _open(path: Path) -> int:
    """Open a regular file for reading; what is none might never answer."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise NotFoundError(f"{path} does not exist, but a folder of that name does.")
    if not stat.S_ISREG(mode):
        raise words.irregular(path, mode)
    file = os.open(path, _READ)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):  # exchanged since
        os.close(file)
        raise words.irregular(path, mode)
    return file


def _replace(partial: str, name: str, folder: int, where: str) -> bool:
    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _refuse_irregular(path: Path, name: str, folder: int) -> None:
    """Refuse to give the name of a folder, a device or the like to a file; a link is replaced."""
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISLNK(mode):
        raise words.irregular(path, mode)


def _write_partial(folder: int, data: bytes) -> str:
    """Write a file under a name of its own, whole and on the disk; return the name."""
    while True:
        name = f"{PARTIAL}{secrets.token_hex(6)}"
        try:
            handle = os.open(name, _NEW, 0o666, dir_fd=folder)
            break
        except FileExistsError:
            continue
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(name, dir_fd=folder)
        raise
    return name


def _size(path: Path) -> int:
    """Return a file's bytes; of a link that leads to no file, or in a circle, the link's."""
    try:
        return path.stat().st_size
    except OSError as error:
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise
        except OSError:
            raise words.failed(path, "read", error) from None
        if not stat.S_ISLNK(found.st_mode):
            raise words.failed(path, "read", error) from None
        return found.st_size


def _files(start: Path) -> Iterator[Path]:
    """Yield the files below a folder, through links too, but into no folder twice on one way."""
    above: dict[str, frozenset[str]] = {}
    ways = Counter[str]()
    for folder, inner, files in os.walk(start, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(folder)
        ways[real] += 1
        if ways[real] > _MAX_WAYS:
            raise StorageError(
                f"A folder may be reached by {_MAX_WAYS} ways, but links below {start} lead to "
                f"{real} by more; remove some."
            )
        way = above.pop(folder, frozenset()) | {real}
        inner[:] = [one for one in inner if os.path.realpath(Path(folder) / one) not in way]
        above |= {os.path.join(folder, one): way for one in inner}  # noqa: PTH118
        yield from (Path(folder) / file for file in files)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise words.failed(error.filename, "read", error) from None
