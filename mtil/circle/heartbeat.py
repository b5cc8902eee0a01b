"""Heartbeat of a coordinator: a counter in the run's storage. Compares no clocks across machines.

The fence of the ledger prevents damage by two coordinators. The heartbeat prevents the second
coordinator from taking over while the first still works.
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

from mtil.config import NonNegativeInt
from mtil.documents import Document
from mtil.errors import NotFoundError, RunError, StorageError
from mtil.storage import Store

HEARTBEAT_FILE = "coordinator.json"
HEARTBEAT_INTERVAL_S = 3.0
_SILENCE_S = 5 * HEARTBEAT_INTERVAL_S
"""Time without a new beat after which a coordinator counts as dead."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Heartbeat:
    """Latest beat of a session."""

    session: str
    count: NonNegativeInt
    host: str = ""
    """Host name of the coordinator."""
    waits: str = ""
    """Sentence about resources that the coordinator waits for; empty if not waiting."""


_BEATS: TypeAdapter[Heartbeat] = TypeAdapter(Heartbeat)


def read_heartbeat(store: Store) -> Heartbeat | None:
    """Return the latest beat. None if no coordinator has started, or the last one has left.

    Raises:
        RunError: if the file holds no beat.
    """
    document = Document(f"{store.uri}/{HEARTBEAT_FILE}", "delete it", RunError)
    try:
        values = document.object(document.read(store, HEARTBEAT_FILE))
    except NotFoundError:
        return None
    return document.validate(_BEATS, values)


def is_coordinator_alive(store: Store) -> bool:
    """Watch a run for up to 15 s. Return True as soon as a new beat arrives."""
    first = read_heartbeat(store)
    end = time.monotonic() + _SILENCE_S
    while first is not None and time.monotonic() < end:
        time.sleep(HEARTBEAT_INTERVAL_S / 3)
        latest = read_heartbeat(store)
        if latest != first:
            return latest is not None
    return False


class HeartbeatMonitor:
    """Repeated checks of a heartbeat. Only the first check may block."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.latest: Heartbeat | None = None
        self._heard_at = 0.0

    def is_beating(self) -> bool:
        """Return True if the latest new beat is under 15 s old.

        The first call blocks for up to 15 s, as `is_coordinator_alive` does.
        """
        latest = read_heartbeat(self._store)
        if latest is None or self.latest is None:
            is_alive = latest is not None and is_coordinator_alive(self._store)
            self.latest, self._heard_at = latest, time.monotonic() if is_alive else -math.inf
        elif latest != self.latest:
            self.latest, self._heard_at = latest, time.monotonic()
        return time.monotonic() - self._heard_at < _SILENCE_S


class HeartbeatThread:
    """Thread that writes beats for a session until the context ends."""

    def __init__(self, store: Store, session: str) -> None:
        self._store, self._session = store, session
        self.waits = ""
        """Text of `Beat.waits` in the next beat."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="mtil-heartbeat", daemon=True)

    def __enter__(self) -> "HeartbeatThread":
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop beating. Delete the file if the latest beat belongs to the session."""
        self._stopped.set()
        self._thread.join()
        try:
            latest = read_heartbeat(self._store)
            # After a takeover the file belongs to the successor and must stay.
            if latest is not None and latest.session == self._session:
                self._store.delete(HEARTBEAT_FILE)
        except StorageError:
            # Watchers then wait for the end of the silence interval instead.
            return

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            beat = Heartbeat(self._session, count, socket.gethostname(), self.waits)
            # A storage outage also keeps watchers from reading, so a missed beat costs nothing.
            with suppress(StorageError):
                self._store.write(HEARTBEAT_FILE, json.dumps(asdict(beat)).encode())
            if self._stopped.wait(HEARTBEAT_INTERVAL_S):
                return
