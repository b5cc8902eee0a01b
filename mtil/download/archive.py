"""Unpack downloaded zip archives: only regular files, only inside the target folder."""

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mtil.errors import DataError

_CHUNK_BYTES = 2**18
_MAX_RATIO = 20
"""Largest ratio of unpacked to packed size. Images hardly shrink in an archive."""

_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    OSError,
)
"""Errors raised by reading a damaged archive, down to a seek before the start of the file."""


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack a zip archive, without a top folder common to all files.

    Raises:
        DataError: if the archive is damaged or encrypted, names a file outside the folder or twice,
            holds a link or another special file, or unpacks to more than 20 times its size.
    """
    with _open(archive) as opened:
        members = [
            (member, _parts(member, archive.name))
            for member in opened.infolist()
            # macOS adds resource forks, not files of the collection, below __MACOSX.
            if not member.is_dir() and not member.filename.startswith("__MACOSX/")
        ]
        num_bytes = sum(member.file_size for member, _ in members)
        if num_bytes > _MAX_RATIO * archive.stat().st_size:
            raise DataError(
                f"{archive.name} must not unpack to more than {_MAX_RATIO} times its size, but "
                f"would take {num_bytes} bytes; nothing was unpacked."
            )
        tops = {parts[0] if len(parts) > 1 else None for _, parts in members}
        num_dropped = 1 if len(tops) == 1 and None not in tops else 0
        # Mode "x" refuses an existing file, so a name given twice never overwrites the first file.
        for member, parts in members:
            path = folder.joinpath(*parts[num_dropped:])
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                target = path.open("xb")
            except FileExistsError:
                raise DataError(
                    f"{archive.name} must name each file once, but names {member.filename} twice."
                ) from None
            with target:
                for piece in _pieces(opened, member, archive):
                    target.write(piece)


def _open(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except _DAMAGE as error:
        raise _damaged(archive, error) from None


def _pieces(opened: zipfile.ZipFile, member: zipfile.ZipInfo, archive: Path) -> Iterator[bytes]:
    try:
        with opened.open(member) as source:
            while piece := source.read(_CHUNK_BYTES):
                yield piece
    except _DAMAGE as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: Exception) -> DataError:
    reason = str(error).rstrip(".") or type(error).__name__
    return DataError(f"{archive.name} cannot be unpacked: {reason}; the archive is damaged.")


def _parts(member: zipfile.ZipInfo, archive: str) -> tuple[str, ...]:
    """Return the path components of a member. Raise if the member is not a safe, regular file."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        raise DataError(
            f"{archive} must name files inside its folder, but names {member.filename!r}."
        )
    # The high half of the attributes has the Unix mode; 0 where the archiver stored none.
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(
            f"{archive} must hold ordinary files, but {member.filename!r} is a link or device."
        )
    if member.flag_bits & 1:
        raise DataError(f"{archive} must not be encrypted, but {member.filename!r} is.")
    return path.parts
