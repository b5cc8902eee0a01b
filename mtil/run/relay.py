"""Progress on its way from a run's folder to a listener. Its failures end no training."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mtil.errors import StorageError
from mtil.run.folder import News, Run
from mtil.run.plan import Train

Listener = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)

_POLL_S = 2.0


class Guarded:
    """A listener that gets no more lines after its first error, which is logged.

    A reader of stdout may leave, or a disk may be full; the training goes on.
    """

    def __init__(self, listen: Listener) -> None:
        self._listen: Listener | None = listen

    def __call__(self, line: dict[str, Any]) -> None:
        """Pass a line on."""
        if self._listen is None:
            return
        try:
            self._listen(line)
        except Exception as error:  # noqa: BLE001
            self._listen = None
            _log.warning("Progress is shown no more: %s: %s", type(error).__name__, error)


class Relay:
    """Passes on what a training's workers write into the run."""

    def __init__(self, run: Run, of: Train, listen: Listener) -> None:
        self._run, self._of, self._listen = run, of, Guarded(listen)
        self._news: News | None = None
        self._trouble = ""
        self._read()

    def pass_on(self) -> None:
        """Tell the listener of new epochs and of the latest step."""
        for line in self._read():
            self._listen(line)

    def _read(self) -> list[dict[str, Any]]:
        """Return what is new; nothing while it cannot be read, which is logged once a cause."""
        try:
            self._news = self._news or News(self._run, self._of)
            lines = self._news.lines()
        except StorageError:
            return []  # the workers meet it, too
        except Exception as error:  # noqa: BLE001
            if str(error) != self._trouble:
                _log.warning("The progress of the %s cannot be read: %s", self._of, error)
            self._trouble = str(error)
            return []
        self._trouble = ""
        return lines


@contextmanager
def relayed(run: Run, training: Train, listen: Listener) -> Iterator[None]:
    """Pass the progress of a training on to a listener while the block runs."""
    # Through the run's storage, since an actor in between would take its share of the workers' CPU.
    relay = Relay(run, training, listen)
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(_POLL_S):
            relay.pass_on()

    thread = threading.Thread(target=poll, name="mtil-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    relay.pass_on()
