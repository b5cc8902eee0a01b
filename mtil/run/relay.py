"""Relay training progress to a listener. Failures of the listener never end a training."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mtil.errors import StorageError
from mtil.run.folder import Run, TrainingProgressReader
from mtil.run.plan import Train

ProgressListener = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)

_POLL_S = 2.0


class GuardedListener:
    """A listener that is disabled and logged on its first error.

    A reader of stdout may leave, or a disk may be full. The training continues.
    """

    def __init__(self, listen: ProgressListener) -> None:
        self._listen: ProgressListener | None = listen

    def __call__(self, line: dict[str, Any]) -> None:
        """Pass a line to the listener."""
        if self._listen is None:
            return
        try:
            self._listen(line)
        except Exception as error:  # noqa: BLE001
            self._listen = None
            _log.warning("Progress is no longer shown: %s: %s", type(error).__name__, error)


class ProgressRelay:
    """Relay progress lines that the workers of a training write into the run."""

    def __init__(self, run: Run, training: Train, listen: ProgressListener) -> None:
        self._run, self._training, self._listen = run, training, GuardedListener(listen)
        self._news: TrainingProgressReader | None = None
        self._last_error = ""
        self._read()

    def send_news(self) -> None:
        """Send new epochs and the latest step to the listener."""
        for line in self._read():
            self._listen(line)

    def _read(self) -> list[dict[str, Any]]:
        """Return new lines. Empty if unreadable; each new cause is logged once."""
        try:
            self._news = self._news or TrainingProgressReader(self._run, self._training)
            lines = self._news.lines()
        except StorageError:
            # Not logged: the workers meet a storage outage, too, and report the error.
            return []
        except Exception as error:  # noqa: BLE001
            if str(error) != self._last_error:
                _log.warning("The progress of the %s cannot be read: %s", self._training, error)
            self._last_error = str(error)
            return []
        self._last_error = ""
        return lines


@contextmanager
def relay_progress(run: Run, training: Train, listen: ProgressListener) -> Iterator[None]:
    """Pass the progress of a training on to a listener while the block runs."""
    # Through the run's storage, since an actor in between would take its share of the workers' CPU.
    relay = ProgressRelay(run, training, listen)
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.wait(_POLL_S):
            relay.send_news()

    thread = threading.Thread(target=poll, name="mtil-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    relay.send_news()
