"""Wait for events, never for a fixed time: tests pass on slow and fast machines alike."""

import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

PATIENCE_S = 600.0
"""Time limit of a wait: a safety net against hanging, far longer than any test takes."""
_POLL_S = 0.05

STOP_AT = """
import itertools, os, signal, sys
from mtil.storage import open_store

kind, (part, _, count) = type(open_store(sys.argv[2])), sys.argv[3].partition("/")
seen = itertools.count(1)

def stopping(method):
    def write(store, name, data):
        if count and part in name and next(seen) == int(count):
            os.kill(os.getpid(), signal.SIGSTOP)
        return method(store, name, data)
    return write

kind.write, kind.create = stopping(kind.write), stopping(kind.create)
"""
"""Code for a process that stops itself with SIGSTOP before a chosen write. A test can then kill the
process at the chosen write, on slow and fast machines alike. Argument 2 is the URI of the store.
Argument 3 is PART/COUNT: the process stops before the COUNTth write of a name with PART inside."""


def until(
    condition: Callable[[], object],
    process: "subprocess.Popen[str] | subprocess.Popen[bytes] | None" = None,
) -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: after `PATIENCE_S`, or if `process` ends first.
    """
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < end, "what was waited for did not come about"
        time.sleep(_POLL_S)


def until_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until processes have ended. Zombies count as ended."""
    waited_for = list(processes)
    until(lambda: not any(map(_is_alive, waited_for)))


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until_stopped(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Wait until a process is stopped, for example by `STOP_AT`."""
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, process)
