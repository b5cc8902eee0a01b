"""Checks of the machine for Ray, and the messages for missing resources."""

import os
import resource
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mtil.errors import ResourceError
from mtil.process import machine


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a short path, the only candidate for sockets."""
    with tempfile.TemporaryDirectory(prefix="m-", dir="/tmp") as path:
        monkeypatch.setattr(machine, "_SHORT_FOLDERS", (path,))
        yield Path(path)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Set TMPDIR as at the start of the process."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)

    def use(path: Path) -> None:
        monkeypatch.setenv("TMPDIR", str(path))
        monkeypatch.setattr(tempfile, "tempdir", None)

    return use


def test_the_longest_socket_fits() -> None:
    """Ray 2.60 appends `session_DATE_TIME_MICROSECONDS_PID/sockets/plasma_store` to the folder."""
    base = "/" + "b" * (machine.MAX_FOLDER_PATH_BYTES - 1)
    path = f"{base}/mtil-abcdefgh/r/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
    assert len(path) == 107
    sock = socket.socket(socket.AF_UNIX)
    with pytest.raises(FileNotFoundError):  # not "AF_UNIX path too long"
        sock.bind(path)
    with pytest.raises(OSError, match="too long"):
        sock.bind(path + "x")
    sock.close()


def test_a_short_folder_holds_all(short: Path, temporary: Callable[[Path], None]) -> None:
    temporary(short)
    assert machine.choose_ray_folders() == machine.RayFolders(short, short)


@pytest.mark.parametrize("name", ["x" * 100, "ü" * 12, "a b/é/" + "x" * 40])
def test_sockets_leave_a_long_folder(
    name: str, short: Path, tmp_path: Path, temporary: Callable[[Path], None]
) -> None:
    long = tmp_path / name
    long.mkdir(parents=True)
    temporary(long)
    assert machine.choose_ray_folders() == machine.RayFolders(short, long)
    found = machine.find_temporary_folder()
    assert found.ok
    assert f"Ray's sockets go to {short}" in found.detail


def test_no_short_folder_is_one_sentence(
    tmp_path: Path, temporary: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_SHORT_FOLDERS", (str(tmp_path / "nowhere"),))
    long = tmp_path / ("x" * 100)
    long.mkdir()
    temporary(long)
    with pytest.raises(ResourceError, match=r"but /.* has \d+; set TMPDIR to a shorter path\.$"):
        machine.choose_ray_folders()
    assert not machine.find_temporary_folder().ok


def test_a_folder_that_is_not_there_is_replaced(
    short: Path, tmp_path: Path, temporary: Callable[[Path], None]
) -> None:
    temporary(tmp_path / "nowhere")
    assert machine.choose_ray_folders().objects == Path(tempfile.gettempdir())
    found = machine.find_temporary_folder()
    assert found.ok
    assert f"since TMPDIR={tmp_path / 'nowhere'} cannot be written (no such file" in found.detail


def test_a_folder_that_is_asked_for_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "nowhere"))
    with pytest.raises(ResourceError, match=r"RAY_TMPDIR=.*nowhere is not .no such file"):
        machine.choose_ray_folders()


def test_no_temporary_folder_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "gettempdir", fail)
    with pytest.raises(ResourceError, match=f"TMPDIR={tmp_path} and /tmp cannot be written; set"):
        machine.choose_ray_folders()


def test_a_home_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert machine.find_home() == machine.MachineFinding("home folder", True, str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    found = machine.find_home()
    assert found.ok
    assert f"HOME={tmp_path / 'nowhere'} cannot be written" in found.detail


def test_shared_memory_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.find_shared_memory().ok
    monkeypatch.setattr(
        machine, "find_shared_memory", lambda: machine.MachineFinding("x", False, "d", "h")
    )
    with pytest.raises(ResourceError, match=r"^Ray cannot start here: d; h\.$"):
        machine.require_machine()
    monkeypatch.undo()
    assert not machine.find_shared_memory(tmp_path / "nowhere").ok


def test_a_name_without_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "a-name.invalid")
    found = machine.find_host_name()
    assert found.ok
    assert found.detail.startswith("a-name.invalid has no address (")
    assert found.hint == "add `127.0.1.1 a-name.invalid` to /etc/hosts"


@pytest.mark.parametrize(
    ("hard", "ok"),
    [
        (machine.MIN_OPEN_FILES, True),
        (machine.MIN_OPEN_FILES - 1, False),
        (resource.RLIM_INFINITY, True),
    ],
)
def test_open_files(hard: int, ok: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (64, hard))
    found = machine.find_open_files()
    assert found.ok is ok
    if not ok:
        with pytest.raises(ResourceError, match=f"`ulimit -n` is {hard}, but a cluster needs"):
            machine.require_machine()


def test_processes_are_limited_for_all_but_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (100, 100))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine.find_processes().ok
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = machine.find_processes()
    assert (found.ok, found.hint) == (False, "raise the limit, such as by `ulimit -u 512`")
