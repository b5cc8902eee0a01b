"""What Ray and other processes of mtil need of this machine. No Ray."""

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
"""The longest path of a Unix socket."""
RAY_FOLDER = "r"
"""Name of the folder for Ray below the folder that is closed to others."""
_RAY_BYTES = len(f"/{RAY_FOLDER}/session_2026-01-31_23-59-59_123456_4194304/sockets/plasma_store")
"""What Ray appends to its folder for the longest of its sockets."""
PATH_BYTES = _SOCKET_BYTES - _RAY_BYTES - 1 - scratch.NAME_BYTES
"""The longest path of a folder that can hold Ray's."""
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")
_SHARED_MEMORY = Path("/dev/shm")
NUM_FILES = 1024
"""Open files that a process of a small cluster may need."""
NUM_PROCESSES = 512
"""Processes and threads of a small cluster."""
_SLOW_S = 1.0
"""A name server that takes longer delays every start of Ray."""


@dataclass(frozen=True)
class Place:
    """Where Ray keeps its files."""

    sockets: Path
    """Folder for sockets and logs, with a short path."""
    objects: Path
    """Folder for objects that do not fit into memory."""


@dataclass(frozen=True)
class Finding:
    """What was found of one need."""

    name: str
    ok: bool
    """Whether Ray can start."""
    detail: str
    hint: str = ""


def place() -> Place:
    """Choose folders for Ray: `RAY_TMPDIR`, else `TMPDIR`; sockets go to a short path.

    Raises:
        ResourceError: if `RAY_TMPDIR` cannot be written, or no folder serves.
    """
    named = os.environ.get("RAY_TMPDIR")
    if named:
        objects = Path(named).absolute()
        why = refusal(objects)
        if why:
            raise ResourceError(
                f"Ray's folder must be writable, but RAY_TMPDIR={named} is not ({why}); set "
                "RAY_TMPDIR to another folder."
            )
    else:
        objects = temporary_folder()
    for path in (objects, *map(Path, _SHORT)):
        if len(os.fsencode(path)) <= PATH_BYTES and not refusal(path):
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


def require() -> None:
    """Check what Ray needs of this machine before it starts.

    Raises:
        ResourceError: if something is missing that makes the start of Ray fail.
    """
    for finding in (find_shared_memory(), find_open_files(), find_processes()):
        if not finding.ok:
            raise ResourceError(f"Ray cannot start here: {finding.detail}; {finding.hint}.")


def findings() -> list[Finding]:
    """Look at all that the start of Ray depends on."""
    return [
        find_temporary_folder(),
        find_home(),
        find_shared_memory(),
        find_host_name(),
        find_open_files(),
        find_processes(),
    ]


def find_temporary_folder() -> Finding:
    """Say where temporary files and Ray's sockets go, and why not to `TMPDIR`."""
    name = "temporary files"
    try:
        chosen = place()
    except ResourceError as error:
        return Finding(name, False, str(error).rstrip("."), "see TMPDIR and RAY_TMPDIR")
    detail, hint = str(chosen.objects), ""
    named = os.environ.get("TMPDIR")
    if named and not os.environ.get("RAY_TMPDIR") and refusal(Path(named)):
        detail += f", since TMPDIR={named} cannot be written ({refusal(Path(named))})"
        hint = "set TMPDIR to a folder that can be written"
    if chosen.sockets != chosen.objects:
        detail += f"; Ray's sockets go to {chosen.sockets}, as they need a shorter path"
    return Finding(name, True, detail, hint)


def find_home() -> Finding:
    """Say whether libraries can keep files in the home folder. mtil and its Ray do without."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (users without a home)
    why = refusal(home)
    if not why:
        return Finding("home folder", True, str(home))
    detail = f"HOME={home} cannot be written ({why}); mtil needs nothing there"
    return Finding("home folder", True, detail, "set HOME if other programs need it")


def find_shared_memory(folder: Path = _SHARED_MEMORY) -> Finding:
    """Say whether there is shared memory: Ray and pools of processes do not start without."""
    name = "shared memory folder"
    if not sys.platform.startswith("linux"):
        return Finding(name, True, "not needed here")
    why = refusal(folder)
    if not why:
        return Finding(name, True, str(folder))
    detail = f"{folder} cannot be written ({why})"
    return Finding(name, False, detail, f"mount a tmpfs at {folder}, or free space there")


def find_host_name() -> Finding:
    """Say whether this machine's name leads to an address. Ray and mtil do without."""
    name, own = "host name", socket.gethostname()
    start = time.monotonic()
    try:
        address = str(socket.getaddrinfo(own, None)[0][4][0])
    except OSError as error:
        detail = f"{own} has no address ({(error.strerror or str(error)).lower()})"
        return Finding(name, True, detail, f"add `127.0.1.1 {own}` to /etc/hosts")
    seconds = time.monotonic() - start
    slow = seconds > _SLOW_S
    hint = f"the name server is slow; add `{address} {own}` to /etc/hosts" if slow else ""
    return Finding(name, True, f"{own} is {address}, after {seconds:.1f} s", hint)


def find_open_files() -> Finding:
    """Say whether a process may open enough files; Ray raises the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _limit("open files", hard, NUM_FILES, "-n")


def find_processes() -> Finding:
    """Say whether this user may have enough processes and threads. The limit spares root."""
    if not hasattr(resource, "RLIMIT_NPROC") or os.geteuid() == 0:
        return Finding("processes", True, "no limit")
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    return _limit("processes", soft, NUM_PROCESSES, "-u")


def refusal(path: Path) -> str:
    """Return why a file cannot be made and written in a folder, or an empty string."""
    try:
        with tempfile.TemporaryFile(dir=path, prefix=scratch.PREFIX) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def _limit(name: str, number: int, needed: int, flag: str) -> Finding:
    if number == resource.RLIM_INFINITY:
        return Finding(name, True, "no limit")
    if number >= needed:
        return Finding(name, True, f"at most {number}")
    detail = f"`ulimit {flag}` is {number}, but a cluster needs {needed} {name}"
    return Finding(name, False, detail, f"raise the limit, such as by `ulimit {flag} {needed}`")
