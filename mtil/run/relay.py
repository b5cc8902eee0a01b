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
"""Called with a line of progress; `kind` is `step`, `epoch` or `done`."""

_log = logging.getLogger(__name__)

_POLL_S = 2.0
"""Seconds between two reads of the progress in the run."""


class GuardedListener:
    """A listener that is disabled after the first error, with a warning in the log."""

    def __init__(self, listen: ProgressListener) -> None:
        self._listen: ProgressListener | None = listen

    def __call__(self, line: dict[str, Any]) -> None:
        """Pass a line to the listener."""
        if self._listen is None:
            return
        # The reader of stdout may have exited, or the disk may be full. The training continues.
        try:
            self._listen(line)
        except Exception as error:  # noqa: BLE001
            self._listen = None
            _log.warning("Progress is no longer shown: %s: %s", type(error).__name__, error)


class ProgressRelay:
    """Relay progress, written into the run by the workers of a training, to a listener."""

    def __init__(self, run: Run, training: Train, listen: ProgressListener) -> None:
        self._run, self._training, self._listen = run, training, GuardedListener(listen)
        self._reader: TrainingProgressReader | None = None
        self._last_error = ""
        self._read()

    def send_news(self) -> None:
        """Send new epochs and the latest step to the listener."""
        for line in self._read():
            self._listen(line)

    def _read(self) -> list[dict[str, Any]]:
        """Return new lines; empty if the progress is unreadable. Log each new cause once."""
        try:
            self._reader = self._reader or TrainingProgressReader(self._run, self._training)
            lines = self._reader.lines()
        except StorageError:
            # Not logged: the workers also meet a storage outage and report the error.
            return []
        except Exception as error:  # noqa: BLE001
            if str(error) != self._last_error:
                _log.warning("Cannot read the progress of the %s: %s", self._training, error)
            self._last_error = str(error)
            return []
        self._last_error = ""
        return lines


@contextmanager
def relay_progress(run: Run, training: Train, listen: ProgressListener) -> Iterator[None]:
    """Relay the progress of a training to a listener during the block."""
    # Progress goes through the storage: a relaying actor would take CPU time from the workers.
    relay = ProgressRelay(run, training, listen)
    has_ended = threading.Event()

    def poll() -> None:
        while not has_ended.wait(_POLL_S):
            relay.send_news()

    thread = threading.Thread(target=poll, name="mtil-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()
    # The last lines may have come after the last poll.
    relay.send_news()
