"""What SIGINT, SIGTERM and SIGHUP do to a command: a `KeyboardInterrupt`, once, and never halfway.

A signal interrupts the main thread wherever it is, except inside `deferred()`: there it waits for
the end of the block. Every signal after the first is ignored, since the cleanup is already running.
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
    """Whether `mtil.process.supervisor` watches this process and speaks for it after a signal."""
    arrived: bool = False
    waiting: bool = False
    """Whether a signal waits for the end of a deferred block."""
    depth: int = 0
    screen: int | None = None
    """A copy of stderr's descriptor while stderr is muted."""


_state = _State()


def ending() -> set[signal.Signals]:
    """Return the signals that end a command; `nohup` and `&` in scripts have some ignored."""
    return {one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN}


def install() -> None:
    """Heed signals in a process that `mtil.process.supervisor` watches.

    After a signal such a process writes nothing to stderr any more.
    """
    _state.watched = True
    for one in ending():
        signal.signal(one, _arrive)


@contextmanager
def heeded() -> Iterator[None]:
    """Interrupt the main thread at a signal in this block, if it is the main thread that runs it.

    A process that is watched heeds signals until it ends.
    """
    if _state.watched or not _is_main():
        yield
        return
    vars(_state).update(vars(_State()))
    before = {one: signal.signal(one, _arrive) for one in ending()}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def renew() -> None:
    """Set the handlers again in the main thread, past Python's records.

    Ray's core sets handlers of its own below Python's, which print a stack and end the process.
    """
    if _is_main():
        for one in SIGNALS:
            handler = signal.getsignal(one)
            if handler is not None:
                signal.signal(one, handler)


def is_watched() -> bool:
    """Say whether `mtil.process.supervisor` watches this process."""
    return _state.watched


def has_arrived() -> bool:
    """Say whether a signal has arrived that nobody has answered."""
    return _state.arrived


def answer() -> None:
    """Take the signal for answered, and ignore others: the command ends on its own terms."""
    for one in ending():
        signal.signal(one, signal.SIG_IGN)
    _state.arrived = False
    if _state.screen is not None:
        os.dup2(_state.screen, 2)
        os.close(_state.screen)
        _state.screen = None


@contextmanager
def deferred() -> Iterator[None]:
    """Let a signal wait until the block has ended: a start or an end must not stop halfway.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal arrived in it.
    """
    if not _is_main():
        yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    if _state.waiting and not _state.depth:
        _raise()


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Keep SIGINT from the processes that this thread starts in the block, for as long as they run.

    Ctrl-C goes to all processes of a terminal; their parent ends these.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _arrive(number: int, frame: Any) -> None:
    if _state.arrived:
        return
    _state.arrived = True
    if _state.depth:
        _state.waiting = True
    else:
        _raise()


def _raise() -> None:
    _state.waiting = False
    if _state.watched:
        _mute()
    raise KeyboardInterrupt


def _mute() -> None:
    """Keep from the screen what libraries write while a signal brings them down."""
    sys.stderr.flush()
    _state.screen = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
