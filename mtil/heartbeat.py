"""Whether somebody works on a run: a count in its storage that goes on. No clock is compared.

The ledger's fence keeps two coordinators from doing harm; this keeps the second from taking over
what the first is still at.
"""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from mtil.errors import NotFoundError, RunError, StorageError
from mtil.storage import Store

NAME = "coordinator.json"
INTERVAL_S = 3.0
_SILENCE_S = 5 * INTERVAL_S
"""After which nobody is thought to be there."""


@dataclass(frozen=True)
class Beat:
    """A session's latest sign of life."""

    session: str
    count: int


def read(store: Store) -> Beat | None:
    """Return the latest beat; none if nobody has begun, or the last one has left.

    Raises:
        RunError: if the file holds something else.
    """
    try:
        return Beat(**json.loads(store.read(NAME)))
    except NotFoundError:
        return None
    except (TypeError, json.JSONDecodeError, UnicodeDecodeError):
        raise RunError(f"{store.uri}/{NAME} is not a coordinator's; delete it.") from None


def is_beating(store: Store) -> bool:
    """Watch a run until it gives a sign of life, or for long enough to know that it does not."""
    first = read(store)
    end = time.monotonic() + _SILENCE_S
    while first is not None and time.monotonic() < end:
        time.sleep(INTERVAL_S / 3)
        latest = read(store)
        if latest != first:
            return latest is not None
    return False


class Heart:
    """Beats for a session from a thread of its own, until it is stopped."""

    def __init__(self, store: Store, session: str) -> None:
        self._store, self._session = store, session
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mtil-heartbeat", daemon=True)

    def __enter__(self) -> "Heart":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop, and say so if the latest beat is this session's."""
        self._stopped.set()
        self._thread.join()
        try:
            latest = read(self._store)
            if latest is not None and latest.session == self._session:
                self._store.delete(NAME)
        except StorageError:
            return  # the silence tells it, a little later

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            text = json.dumps({"session": self._session, "count": count})
            with suppress(StorageError):  # who listens hears nothing either
                self._store.write(NAME, text.encode())
            if self._stopped.wait(INTERVAL_S):
                return
