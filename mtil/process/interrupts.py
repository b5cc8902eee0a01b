"""Turn SIGINT, SIGTERM and SIGHUP into a single `KeyboardInterrupt`.

A signal interrupts the main thread at once, except inside `defer_signals()`, where the signal waits
for the end of the block. Signals after the first are ignored, because the cleanup is already
running.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class _State:
    watched: bool = False
    """Whether `mtil.process.supervisor` watches this process and prints its message on a signal."""
    arrived: bool = False
    pending: bool = False
    """Whether a signal waits for the end of a deferred block."""
    depth: int = 0
    """Number of open deferred blocks."""
    stderr_copy: int | None = None
    """Copy of stderr's descriptor while stderr is muted, else None."""


_state = _State()


def list_ending_signals() -> set[signal.Signals]:
    """Return the signals that end this command, without ignored signals."""
    # `nohup` starts commands with SIGHUP ignored, `&` in scripts with SIGINT. mtil respects both.
    return {number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN}


def install_handlers() -> None:
    """Install the signal handlers in a process watched by `mtil.process.supervisor`.

    After a signal, the process writes nothing more to stderr.
    """
    _state.watched = True
    for number in list_ending_signals():
        signal.signal(number, _handle_signal)


@contextmanager
def handle_signals() -> Iterator[None]:
    """Handle signals while the block runs in the main thread.

    Does nothing in side threads, and in watched processes, where handlers stay installed.
    """
    if _state.watched or not _is_main():
        yield
        return
    vars(_state).update(vars(_State()))
    handlers = {number: signal.signal(number, _handle_signal) for number in list_ending_signals()}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def reinstall_handlers() -> None:
    """Install the current handlers again in the main thread, after C code replaced them."""
    # Ray's core sets C handlers that print a stack and end the process. Python still records the
    # old handlers, so setting the recorded handlers again is enough.
    if _is_main():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if handler is not None:
                signal.signal(number, handler)


def is_watched() -> bool:
    """Return whether `mtil.process.supervisor` watches this process."""
    return _state.watched


def has_pending_signal() -> bool:
    """Return whether a signal has arrived and `acknowledge_signal` was not called."""
    return _state.arrived


def acknowledge_signal() -> None:
    """Mark the signal as handled, unmute stderr and ignore further signals.

    For a command that finishes normally after a signal.
    """
    for number in list_ending_signals():
        signal.signal(number, signal.SIG_IGN)
    _state.arrived = False
    if _state.stderr_copy is not None:
        os.dup2(_state.stderr_copy, 2)
        os.close(_state.stderr_copy)
        _state.stderr_copy = None


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer signals to the end of the block, such as while starting or stopping Ray.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal arrived meanwhile.
    """
    if not _is_main():
        yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    if _state.pending and not _state.depth:
        _raise_interrupt()


@contextmanager
def block_sigint_in_children() -> Iterator[None]:
    """Block SIGINT in all child processes started by this thread inside the block."""
    # Ctrl-C goes to all processes of a terminal, but the parent process ends these children. A
    # child inherits the signal mask of the starting thread.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _handle_signal(number: int, frame: Any) -> None:
    if _state.arrived:
        return
    _state.arrived = True
    if _state.depth:
        _state.pending = True
    else:
        _raise_interrupt()


def _raise_interrupt() -> None:
    _state.pending = False
    if _state.watched:
        _mute_stderr()
    raise KeyboardInterrupt


def _mute_stderr() -> None:
    """Send stderr to /dev/null: libraries print errors after a signal."""
    sys.stderr.flush()
    _state.stderr_copy = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
