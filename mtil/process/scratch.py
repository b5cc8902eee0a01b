"""Private temporary folders of a process, and removal of folders left by killed processes.

A folder belongs to the process with a lock on the folder's file `owner`. The kernel frees the lock
when the process ends, so a folder with a free lock is abandoned. Removal follows no links.
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SCRATCH_PREFIX = "mtil-"
NAME_BYTES = len(SCRATCH_PREFIX) + 8
"""Length of a folder's name in bytes."""

_OWNER = "owner"
_NAME_PATTERN = re.compile(rf"{SCRATCH_PREFIX}[a-z0-9_]{{8}}")
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def create_scratch_folder(base: Path, *, keep: bool = False) -> Iterator[Path]:
    """Create a folder readable only by this user, and remove the folder when the block ends.

    Args:
        base: the parent folder.
        keep: whether to keep the folder after the block.

    Yields:
        The new folder.

    Raises:
        OSError: if the folder cannot be created.
    """
    path = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=base))
    owner = _lock_owner_file(path)
    try:
        yield path
    finally:
        # Without the file `owner`, `remove_abandoned` leaves the folder alone.
        if keep:
            (path / _OWNER).unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
        os.close(owner)


def remove_abandoned(base: Path) -> None:
    """Remove this user's abandoned folders in `base`, left by processes killed since the last boot.

    Folders from an earlier boot, or from a different machine with a shared `base`, stay: a free
    lock there proves nothing.
    """
    with suppress(OSError), os.scandir(base) as entries:
        candidates = [entry for entry in entries if _NAME_PATTERN.fullmatch(entry.name)]
        for entry in candidates:
            status = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False) and status.st_uid == os.geteuid():
                _remove_if_abandoned(Path(entry.path))


def _lock_owner_file(path: Path) -> int:
    """Create and lock the file `owner` of a new folder. Return its descriptor."""
    owner = os.open(path / _OWNER, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    # Without locks on this file system, no process ever takes the folder for abandoned.
    with suppress(OSError):
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(owner, _read_boot_id())
    return owner


def _remove_if_abandoned(path: Path) -> None:
    try:
        owner = os.open(path / _OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.read(owner, 64) == _read_boot_id() != b"":
            shutil.rmtree(path, ignore_errors=True)
    # The owner is alive, or the file system has no locks.
    except OSError:
        return
    finally:
        os.close(owner)


def _read_boot_id() -> bytes:
    """Return the identifier of this machine's current boot, or an empty string if unknown."""
    try:
        return _BOOT_ID_FILE.read_bytes()
    except OSError:
        return b""
