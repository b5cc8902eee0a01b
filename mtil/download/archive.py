"""Zip archives from elsewhere: unpacked whole, inside a folder, or not at all."""

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
"""How many times its own size an archive may unpack to; images hardly shrink in one."""

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
"""What reading a damaged archive raises, down to a seek to before its start."""


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip archive, without a top folder that holds all of it.

    Raises:
        DataError: if it is damaged, names a file outside itself or twice, holds a link or another
            special file, is encrypted, or is absurdly large unpacked.
    """
    with _open(archive) as opened:
        members = [
            (member, _parts(member, archive.name))
            for member in opened.infolist()
            if not member.is_dir() and not member.filename.startswith("__MACOSX/")
        ]
        num_bytes = sum(member.file_size for member, _ in members)
        if num_bytes > _MAX_RATIO * archive.stat().st_size:
            raise DataError(
                f"{archive.name} must not unpack to more than {_MAX_RATIO} times its size, but "
                f"would to {num_bytes} bytes; nothing was unpacked."
            )
        tops = {parts[0] if len(parts) > 1 else None for _, parts in members}
        num_dropped = 1 if len(tops) == 1 and None not in tops else 0
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
    return DataError(f"{archive.name} cannot be unpacked: {reason}; it is damaged.")


def _parts(member: zipfile.ZipInfo, archive: str) -> tuple[str, ...]:
    """Return a member's path, which stays inside the folder and is an ordinary file."""
    path = PurePosixPath(member.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in member.filename or not path.parts:
        raise DataError(f"{archive} must name files inside itself, but names {member.filename!r}.")
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(
            f"{archive} must hold ordinary files, but {member.filename!r} is a link or device."
        )
    if member.flag_bits & 1:
        raise DataError(f"{archive} must not be encrypted, but {member.filename!r} is.")
    return path.parts
