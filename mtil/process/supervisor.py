"""Run a command in a child process under a watching parent that leaves no process behind.

Schedulers send SIGINT, SIGTERM or SIGHUP to a process, a process group or all processes of a job.
In all cases the exit code is 130 and stderr gets a sentence, even if a library aborts the child.
Linux makes the watching process the parent of all orphans below, which lets the watcher end them.
"""

import ctypes
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from mtil.process import interrupts

INTERRUPTED_EXIT_CODE = 130
INTERRUPTED_MESSAGE = "Interrupted; run the same command again to resume."

_CLEANUP_S = 20.0
"""Time to clean up after a signal, before SIGKILL. Slurm and Kubernetes give 30 seconds."""
_RESEND_S = 0.5
"""Interval of repeated SIGTERMs to the child after a signal."""
_LINGER_S = 1.0
"""Time for remaining processes to end after the command, before SIGKILL."""
_POLL_S = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ANSWERED = "answered"

_sink: int | None = None
"""In a watched process, the writing end of the pipe to the watcher."""


def supervise_command(name: str) -> None:
    """Fork, and return only in the child; this process watches the child until its end.

    Does nothing in a process already watched, and on systems other than Linux.

    Args:
        name: name of the command, for messages on stderr.
    """
    global _sink
    if sys.platform != "linux" or interrupts.is_watched():
        return
    signals = interrupts.list_ending_signals()
    waited = signals | {signal.SIGCHLD}
    # Block before the fork: a signal during the start stays pending and is not lost.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    source, sink = os.pipe()
    watcher, child = os.getpid(), os.fork()
    if child:
        os.close(sink)
        _finish(name, *_follow(child, signals, waited), source, signals)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The watcher may have died before prctl, and then no signal comes.
    if os.getppid() != watcher:
        os._exit(1)
    os.close(source)
    _sink = sink
    interrupts.install_handlers()
    signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def exit_interrupted() -> None:
    """Exit at once with code 130, without waiting for threads. Only in a watched process."""
    # Threads may wait for a storage, and libraries for processes that the watcher ends anyway.
    if interrupts.is_watched():
        os._exit(INTERRUPTED_EXIT_CODE)


def remove_at_end(folder: Path) -> None:
    """Make the watcher remove a folder, if still present, after all processes have ended."""
    _send(f"folder {folder}")


def acknowledge_interrupt() -> None:
    """Mark a signal as handled: exit with the command's exit code instead of 130."""
    interrupts.acknowledge_signal()
    _send(_ANSWERED)


def _send(line: str) -> None:
    if _sink is not None:
        os.write(_sink, os.fsencode(line) + b"\0")


def _follow(
    child: int, signals: set[signal.Signals], waited: set[signal.Signals]
) -> tuple[int, bool]:
    """Pass signals on until the child ends. Return its exit code and whether a signal came."""
    start: float | None = None
    while (code := _reap(child)) is None:
        if start is not None:
            signal.sigtimedwait(waited, _RESEND_S)
        elif signal.sigwaitinfo(waited).si_signo in signals:
            start = time.monotonic()
        # Always SIGTERM: the child handles all three signals alike and ignores repetitions.
        if start is not None:
            is_late = time.monotonic() - start > _CLEANUP_S
            os.kill(child, signal.SIGKILL if is_late else signal.SIGTERM)
    return code, start is not None


def _reap(child: int) -> int | None:
    """Collect all ended processes. Return the child's exit code, or None while the child runs."""
    code = None
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if not process:
            return code
        if process == child:
            code = os.waitstatus_to_exitcode(status)


def _finish(
    name: str, code: int, interrupted: bool, source: int, signals: set[signal.Signals]
) -> NoReturn:
    # Folders go last, since any remaining process may still write into them.
    _end_orphans()
    folders, is_answered = _read_messages(source)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    # A signal may have reached only the child, or this process after the child's end.
    interrupted = (
        interrupted or code == INTERRUPTED_EXIT_CODE or bool(signal.sigpending() & signals)
    )
    if interrupted and not is_answered:
        code = INTERRUPTED_EXIT_CODE
        _print_message(name, INTERRUPTED_MESSAGE)
    elif code < 0:
        cause = signal.Signals(-code).name
        hint = ", most likely for lack of memory" if cause == "SIGKILL" else ""
        _print_message(
            name, f"{cause} ended the command{hint}; run the same command again to resume."
        )
        code = 1
    os._exit(code)


def _end_orphans() -> None:
    """Wait for all processes below this process to end. Kill the rest after `_LINGER_S`."""
    deadline = time.monotonic() + _LINGER_S
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            for process in _children():
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_S)


def _children() -> list[int]:
    """Return the process ids of this process's children."""
    # A process id cannot be reused meanwhile: only this process collects its ended children.
    children, own_pid = [], os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command, in parentheses, may contain spaces and parentheses too.
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            # The process has just ended.
            except OSError:
                continue
            if int(fields[1]) == own_pid:
                children.append(int(entry.name))
    return children


def _read_messages(source: int) -> tuple[list[Path], bool]:
    """Return the folders to remove, and whether the command handled a signal."""
    os.set_blocking(source, False)
    data = b""
    try:
        while block := os.read(source, 65536):
            data += block
    except BlockingIOError:
        pass
    lines = [os.fsdecode(line) for line in data.split(b"\0")[:-1]]
    folders = [Path(line.removeprefix("folder ")) for line in lines if line.startswith("folder ")]
    return folders, _ANSWERED in lines


def _print_message(name: str, sentence: str) -> None:
    # An interrupted progress bar leaves its line on the screen and the cursor hidden.
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"{clear}{name}: {sentence}\n".encode())
