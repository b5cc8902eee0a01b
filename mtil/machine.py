"""What Ray needs of this machine: folders for its sockets and objects. No Ray."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mtil import scratch
from mtil.errors import ResourceError

_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
"""The longest path of a Unix socket."""
_RAY_BYTES = len("/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store")
"""What Ray appends to its folder for the longest of its sockets."""
PATH_BYTES = _SOCKET_BYTES - _RAY_BYTES - 1 - scratch.NAME_BYTES
"""The longest path of a folder that can hold Ray's."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@dataclass(frozen=True)
class Place:
    """Where Ray keeps its files."""

    sockets: Path
    """Folder for sockets and logs, with a short path."""
    objects: Path
    """Folder for objects that do not fit into memory."""


def place() -> Place:
    """Choose folders for Ray: `RAY_TMPDIR`, else `TMPDIR`; sockets go to a short path.

    Raises:
        ResourceError: if `RAY_TMPDIR` cannot be written, or no folder serves.
    """
    named = os.environ.get("RAY_TMPDIR")
    if named:
        objects = Path(named).absolute()
        why = _refusal(objects)
        if why:
            raise ResourceError(
                f"Ray's folder must be writable, but RAY_TMPDIR={named} is not ({why}); set "
                "RAY_TMPDIR to another folder."
            )
    else:
        objects = temporary_folder()
    for path in (objects, *map(Path, _SHORT)):
        if is_short(path) and not _refusal(path):
            return Place(path, objects)
    variable = "RAY_TMPDIR" if named else "TMPDIR"
    raise ResourceError(
        f"Ray needs a writable folder for its sockets whose path has at most {PATH_BYTES} bytes, "
        f"but {objects} has {len(os.fsencode(objects))}; set {variable} to a shorter path."
    )


def temporary_folder() -> Path:
    """Return the folder for temporary files: `TMPDIR` if it can be written, else the system's.

    Raises:
        ResourceError: if there is none.
    """
    try:
        return Path(tempfile.gettempdir()).absolute()
    except OSError:
        named = os.environ.get("TMPDIR")
        told = f"TMPDIR={named} and /tmp" if named else "/tmp"
        raise ResourceError(
            f"Temporary files need a writable folder with free space, but {told} cannot be "
            "written; set TMPDIR to a folder that can."
        ) from None


def is_short(path: Path) -> bool:
    """Say whether Ray's sockets fit into a folder's path."""
    return len(os.fsencode(path)) <= PATH_BYTES


def _refusal(path: Path) -> str:
    """Return why a file cannot be made and written in a folder, or an empty string."""
    try:
        with tempfile.TemporaryFile(dir=path, prefix=scratch.PREFIX) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""
