"""Check this machine for the needs of Ray and mtil's processes. Does not import Ray."""

import os
import resource
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mtil.errors import ResourceError
from mtil.process import scratch

_SOCKET_BYTES = 107 if sys.platform.startswith("linux") else 103
"""Longest path of a Unix socket in bytes."""
RAY_FOLDER_NAME = "r"
"""Name of Ray's folder inside mtil's private temporary folder."""
_RAY_PATH_BYTES = len(
    f"/{RAY_FOLDER_NAME}/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store"
)
"""Bytes that Ray 2.60 appends to its folder for its longest socket path."""
MAX_FOLDER_PATH_BYTES = _SOCKET_BYTES - _RAY_PATH_BYTES - 1 - scratch.NAME_BYTES
"""Longest path of a folder, in bytes, for mtil's and Ray's folders inside."""
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_SHARED_MEMORY = Path("/dev/shm")
MIN_OPEN_FILES = 1024
"""Open files needed by a process of a small cluster."""
MIN_PROCESSES = 512
"""Processes and threads needed by a small cluster."""
_SLOW_LOOKUP_S = 1.0
"""A slower name server delays every start of Ray."""


@dataclass(frozen=True)
class RayFolders:
    """Folders for Ray's files."""

    sockets: Path
    """Folder for sockets and logs, with a short path."""
    objects: Path
    """Folder for objects spilled from memory."""


@dataclass(frozen=True)
class MachineFinding:
    """Result of a check."""

    name: str
    ok: bool
    """Whether Ray can start."""
    detail: str
    hint: str = ""
    """A remedy, or an empty string."""


def choose_ray_folders() -> RayFolders:
    """Choose Ray's folders: `RAY_TMPDIR`, else `TMPDIR`; for sockets, a folder with a short path.

    Raises:
        ResourceError: if `RAY_TMPDIR` is not writable, or no writable folder has a short path.
    """
    ray_tmpdir = os.environ.get("RAY_TMPDIR")
    if ray_tmpdir:
        objects = Path(ray_tmpdir).absolute()
        reason = find_write_error(objects)
        if reason:
            raise ResourceError(
                f"Ray's folder must be writable, but RAY_TMPDIR={ray_tmpdir} is not ({reason}); "
                "set RAY_TMPDIR to another folder."
            )
    else:
        objects = find_writable_tmpdir()
    for path in (objects, *map(Path, _SHORT_FOLDERS)):
        if len(os.fsencode(path)) <= MAX_FOLDER_PATH_BYTES and not find_write_error(path):
            return RayFolders(path, objects)
    variable = "RAY_TMPDIR" if ray_tmpdir else "TMPDIR"
    raise ResourceError(
        f"Ray needs a writable folder with a path of at most {MAX_FOLDER_PATH_BYTES} bytes for "
        "its sockets, "
        f"but {objects} has {len(os.fsencode(objects))}; set {variable} to a shorter path."
    )


def find_writable_tmpdir() -> Path:
    """Return the folder for temporary files: `TMPDIR` if writable, else the system's folder.

    Raises:
        ResourceError: if no folder is writable.
    """
    try:
        return Path(tempfile.gettempdir()).absolute()
    except OSError:
        tmpdir = os.environ.get("TMPDIR")
        tried = f"TMPDIR={tmpdir} and /tmp" if tmpdir else "/tmp"
        raise ResourceError(
            f"Temporary files need a writable folder with free space, but {tried} cannot be "
            "written; set TMPDIR to a writable folder."
        ) from None


def require_machine() -> None:
    """Check this machine before Ray starts.

    Raises:
        ResourceError: if a missing resource would make the start of Ray fail.
    """
    for finding in (find_shared_memory(), find_open_files(), find_processes()):
        if not finding.ok:
            raise ResourceError(f"Ray cannot start here: {finding.detail}; {finding.hint}.")


def check_machine() -> list[MachineFinding]:
    """Run all checks. Return their results."""
    return [
        find_temporary_folder(),
        find_home(),
        find_shared_memory(),
        find_host_name(),
        find_open_files(),
        find_processes(),
    ]


def find_temporary_folder() -> MachineFinding:
    """Report the folders for temporary files and Ray's sockets, and why `TMPDIR` is not used."""
    name = "temporary files"
    try:
        folders = choose_ray_folders()
    except ResourceError as error:
        return MachineFinding(name, False, str(error).rstrip("."), "see TMPDIR and RAY_TMPDIR")
    detail, hint = str(folders.objects), ""
    tmpdir = os.environ.get("TMPDIR")
    if tmpdir and not os.environ.get("RAY_TMPDIR") and find_write_error(Path(tmpdir)):
        detail += f", since TMPDIR={tmpdir} cannot be written ({find_write_error(Path(tmpdir))})"
        hint = "set TMPDIR to a writable folder"
    if folders.sockets != folders.objects:
        detail += f"; Ray's sockets go to {folders.sockets}, as sockets need a shorter path"
    return MachineFinding(name, True, detail, hint)


def find_home() -> MachineFinding:
    """Report whether the home folder is writable. mtil and Ray do not need the home folder."""
    # Path.home raises for users without a home folder; os.path.expanduser does not.
    home = Path(os.path.expanduser("~"))  # noqa: PTH111
    reason = find_write_error(home)
    if not reason:
        return MachineFinding("home folder", True, str(home))
    detail = f"HOME={home} cannot be written ({reason}); mtil needs no files in HOME"
    return MachineFinding("home folder", True, detail, "set HOME if other programs need it")


def find_shared_memory(folder: Path = _SHARED_MEMORY) -> MachineFinding:
    """Check shared memory, which Ray and process pools need to start."""
    name = "shared memory folder"
    if not sys.platform.startswith("linux"):
        return MachineFinding(name, True, "not needed here")
    reason = find_write_error(folder)
    if not reason:
        return MachineFinding(name, True, str(folder))
    detail = f"{folder} cannot be written ({reason})"
    return MachineFinding(
        name, False, detail, f"mount a tmpfs at {folder}, or free some space in it"
    )


def find_host_name() -> MachineFinding:
    """Report whether this machine's host name has an address. Ray and mtil need no address."""
    name, host = "host name", socket.gethostname()
    start = time.monotonic()
    try:
        address = str(socket.getaddrinfo(host, None)[0][4][0])
    except OSError as error:
        detail = f"{host} has no address ({(error.strerror or str(error)).lower()})"
        return MachineFinding(name, True, detail, f"add `127.0.1.1 {host}` to /etc/hosts")
    seconds = time.monotonic() - start
    is_slow = seconds > _SLOW_LOOKUP_S
    hint = f"the name server is slow; add `{address} {host}` to /etc/hosts" if is_slow else ""
    return MachineFinding(name, True, f"{host} is {address}, after {seconds:.1f} s", hint)


def find_open_files() -> MachineFinding:
    """Check the limit of open files of a process."""
    # The hard limit counts: Ray raises the soft limit to the hard limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _check_limit("open files", hard, MIN_OPEN_FILES, "-n")


def find_processes() -> MachineFinding:
    """Check the limit of processes and threads of this user."""
    # The limit does not apply to root.
    if not hasattr(resource, "RLIMIT_NPROC") or os.geteuid() == 0:
        return MachineFinding("processes", True, "no limit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return _check_limit("processes", soft, MIN_PROCESSES, "-u")


def find_write_error(path: Path) -> str:
    """Return why no file can be written in a folder, or an empty string."""
    # Permissions do not show a full disk, so try a write.
    try:
        with tempfile.TemporaryFile(dir=path, prefix=scratch.SCRATCH_PREFIX) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _check_limit(name: str, limit: int, needed: int, flag: str) -> MachineFinding:
    if limit == resource.RLIM_INFINITY:
        return MachineFinding(name, True, "no limit")
    if limit >= needed:
        return MachineFinding(name, True, f"at most {limit}")
    detail = f"`ulimit {flag}` is {limit}, but a cluster needs {needed} {name}"
    return MachineFinding(
        name, False, detail, f"raise the limit, such as by `ulimit {flag} {needed}`"
    )
