"""A process that watches over a command: however the command ends, no process of it is left.

The command runs in a child process. After SIGINT, SIGTERM or SIGHUP, which schedulers send to one
process, to a process group or to all processes of a job, the exit code is 130 and stderr has one
sentence, also where a library aborts the child on the way. Linux makes the watching process the
parent of every orphan below it, so that it can end all of them.
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

INTERRUPTED = 130
SENTENCE = "Interrupted; the same command goes on where it was."

_CLEANUP_S = 20.0
"""Time for the command to clean up after a signal, before SIGKILL. Slurm and Kubernetes give 30."""
_AGAIN_S = 0.5
_LINGER_S = 1.0
"""Time for other processes to end by themselves once the command has ended."""
_POLL_S = 0.02
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_ANSWERED = "answered"

_sink: int | None = None
"""Where a watched process tells its watcher what to know at the end."""


def watch(name: str) -> None:
    """Go on in a child process that this process watches; return in the child alone.

    Returns at once in a process that is watched already, and on systems other than Linux.

    Args:
        name: the command's, for the sentence on stderr.
    """
    global _sink
    if sys.platform != "linux" or interrupts.is_watched():
        return
    signals = interrupts.ending()
    waited = signals | {signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    source, sink = os.pipe()
    watcher, child = os.getpid(), os.fork()
    if child:
        os.close(sink)
        _end(name, *_follow(child, signals, waited), source, signals)
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != watcher:
        os._exit(1)
    os.close(source)
    _sink = sink
    interrupts.install()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave() -> None:
    """End this process as interrupted, if it is watched: what still runs in it need not end first.

    Threads may wait for a storage, and libraries for processes, which the watcher ends.
    """
    if interrupts.is_watched():
        os._exit(INTERRUPTED)


def remove_at_end(folder: Path) -> None:
    """Have the watcher remove a folder after all processes have ended, if it is still there."""
    _tell(f"folder {folder}")


def answer() -> None:
    """Take a signal for answered: the exit code of the command counts, not 130."""
    interrupts.answer()
    _tell(_ANSWERED)


def _tell(line: str) -> None:
    if _sink is not None:
        os.write(_sink, os.fsencode(line) + b"\0")


def _follow(
    child: int, signals: set[signal.Signals], waited: set[signal.Signals]
) -> tuple[int, bool]:
    """Pass signals on until the child has ended. Return its exit code, and whether one came."""
    since: float | None = None
    while (code := _reaped(child)) is None:
        if since is not None:
            signal.sigtimedwait(waited, _AGAIN_S)
        elif signal.sigwaitinfo(waited).si_signo in signals:
            since = time.monotonic()
        if since is not None:
            late = time.monotonic() - since > _CLEANUP_S
            os.kill(child, signal.SIGKILL if late else signal.SIGTERM)
    return code, since is not None


def _reaped(child: int) -> int | None:
    """Collect the processes that have ended. Return the child's exit code if it is among them."""
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


def _end(
    name: str, code: int, interrupted: bool, source: int, signals: set[signal.Signals]
) -> NoReturn:
    _end_others()
    folders, answered = _told(source)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    interrupted = interrupted or code == INTERRUPTED or bool(signal.sigpending() & signals)
    if interrupted and not answered:
        code = INTERRUPTED
        _say(name, SENTENCE)
    elif code < 0:
        cause = signal.Signals(-code).name
        hint = ", most likely for want of memory" if cause == "SIGKILL" else ""
        _say(name, f"{cause} ended the command{hint}; the same command goes on where it was.")
        code = 1
    os._exit(code)


def _end_others() -> None:
    """See every process below this one end; those that linger by SIGKILL."""
    end = time.monotonic() + _LINGER_S
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return
        if time.monotonic() > end:
            for process in _children():
                os.kill(process, signal.SIGKILL)
        time.sleep(_POLL_S)


def _children() -> list[int]:
    """Return the processes whose parent is this one; none of them is collected elsewhere."""
    found, own = [], os.getpid()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue  # it has just ended
            if int(fields[1]) == own:
                found.append(int(entry.name))
    return found


def _told(source: int) -> tuple[list[Path], bool]:
    """Return the folders to remove, and whether the command has answered a signal."""
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


def _say(name: str, sentence: str) -> None:
    # a progress bar that did not end leaves its line, and no cursor
    clear = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
    os.write(2, f"{clear}{name}: {sentence}\n".encode())
