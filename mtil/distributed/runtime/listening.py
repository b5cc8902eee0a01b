"""Progress on its way to a listener: what cannot be read or shown ends no training."""

import logging
from collections.abc import Callable
from typing import Any

from mtil.errors import StorageError
from mtil.run.folder import News, Run
from mtil.run.plan import Train

Listener = Callable[[dict[str, Any]], None]

_log = logging.getLogger(__name__)


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
