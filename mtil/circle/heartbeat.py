"""Whether somebody works on a run: a count in its storage that goes on. No clock is compared.

The ledger's fence keeps two coordinators from doing harm; this keeps the second from taking over
what the first is still at.
"""

import json
import math
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass

from mtil.config import Whole
from mtil.documents import Document
from mtil.errors import NotFoundError, RunError, StorageError
from mtil.storage import Store

NAME = "coordinator.json"
INTERVAL_S = 3.0
_SILENCE_S = 5 * INTERVAL_S
"""After which nobody is thought to be there."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Beat:
    """A session's latest sign of life."""

    session: str
    count: Whole
    host: str = ""
    """The machine that it comes from."""
    waits: str = ""
    """What it waits for, in a sentence, if for anything."""


_BEATS: TypeAdapter[Beat] = TypeAdapter(Beat)


def read(store: Store) -> Beat | None:
    """Return the latest beat; none if nobody has begun, or the last one has left.

    Raises:
        RunError: if the file holds something else.
    """
    document = Document(f"{store.uri}/{NAME}", "delete it", RunError)
    try:
        values = document.object(document.read(store, NAME))
    except NotFoundError:
        return None
    return document.validate(_BEATS, values)


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


class Listener:
    """Listens to a run again and again, without a wait each time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.latest: Beat | None = None
        self._heard = 0.0

    def is_beating(self) -> bool:
        """Say whether a sign of life was new lately; the first time as `is_beating`."""
        latest = read(self._store)
        if latest is None or self.latest is None:
            is_there = latest is not None and is_beating(self._store)
            self.latest, self._heard = latest, time.monotonic() if is_there else -math.inf
        elif latest != self.latest:
            self.latest, self._heard = latest, time.monotonic()
        return time.monotonic() - self._heard < _SILENCE_S


class Heart:
    """Beats for a session from a thread of its own, until it is stopped."""

    def __init__(self, store: Store, session: str) -> None:
        self._store, self._session = store, session
        self.waits = ""
        """What the session waits for, as the next beat will say."""
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
            beat = Beat(self._session, count, socket.gethostname(), self.waits)
            with suppress(StorageError):  # who listens hears nothing either
                self._store.write(NAME, json.dumps(asdict(beat)).encode())
            if self._stopped.wait(INTERVAL_S):
                return
