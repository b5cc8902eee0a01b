"""Waiting for an event, and never for a time: what holds on a slow machine and on a fast one."""

import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

PATIENCE_S = 600.0
"""A safety net: after so long the event does not come any more. No test takes a fraction of it."""
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
"""Code of a process that stops itself: before its COUNTth write to the store of the second argument
of a name with PART in it, where the third is PART/COUNT. It can then be killed at that moment, and
no machine is too fast for it."""


def until(
    condition: Callable[[], object],
    process: "subprocess.Popen[str] | subprocess.Popen[bytes] | None" = None,
) -> None:
    """Wait until a condition holds; an AssertionError if it does not, or a process ends before."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert process is None or process.poll() is None, "the process has ended"
        assert time.monotonic() < end, "what was waited for did not come about"
        time.sleep(_POLL_S)


def until_gone(processes: Iterable[psutil.Process]) -> None:
    """Wait until processes have ended, whether or not somebody has asked for their exit codes."""
    waited_for = list(processes)
    until(lambda: not any(map(_is_alive, waited_for)))


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def until_stopped(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Wait until a process has stopped itself."""
    until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, process)
