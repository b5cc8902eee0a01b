"""Temporary folders of this process's own, and removal of those whose process was killed.

A folder belongs to the process that holds the lock on its file `owner`. The kernel frees the lock
when the process ends, so that a folder without one is nobody's. Removal follows no link.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "mtil-"
NAME_BYTES = len(PREFIX) + 8
"""Length of a folder's name."""

_OWNER = "owner"
_NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def folder(base: Path, *, keep: bool = False) -> Iterator[Path]:
    """Make a folder that nobody else can read, and remove it when the block ends.

    Args:
        base: the folder to make it in.
        keep: leave it there.

    Raises:
        OSError: if it cannot be made.
    """
    path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    owner = _own(path)
    try:
        yield path
    finally:
        if keep:
            (path / _OWNER).unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def remove_abandoned(base: Path) -> None:
    """Remove this user's folders in `base` whose process was killed since the machine started.

    Folders of another start of the machine, or of another machine that shares `base`, stay: a lock
    says nothing about these.
    """
    with suppress(OSError), os.scandir(base) as entries:
        found = [one for one in entries if _NAME.fullmatch(one.name)]
        for entry in found:
            status = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False) and status.st_uid == os.geteuid():
                _remove_if_abandoned(Path(entry.path))


def _own(path: Path) -> int:
    """Lock a new folder and return the lock's descriptor."""
    owner = os.open(path / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    with suppress(OSError):  # without locks, nobody will take the folder for abandoned
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(owner, _boot())
    return owner


def _remove_if_abandoned(path: Path) -> None:
    try:
        owner = os.open(path / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(owner, 64) == _boot() != b"":
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        return  # its process lives, or nothing can be told
    finally:
        os.close(owner)


def _boot() -> bytes:
    """Return what tells this start of this machine from all others; nothing if nothing does."""
    try:
        return _BOOT.read_bytes()
    except OSError:
        return b""
