"""Lock of a search against a second driver."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from mtil.circle import heartbeat
from mtil.circle.heartbeat import HeartbeatThread
from mtil.errors import RunError
from mtil.storage import Store

DRIVERS_FOLDER = "drivers"
"""Folder with an object per running or killed driver, named by consecutive numbers."""


@contextmanager
def hold_driver_lock(store: Store) -> Iterator[None]:
    """Hold the lock of a search while the block runs.

    Raises:
        RunError: if a second driver runs the search.
    """
    refusal = RunError(
        f"Another `mtil-tune run` is running in {store.uri}. Wait for the other command or stop it."
    )
    known_drivers = sorted(store.names(DRIVERS_FOLDER))
    # A driver may have started just now, without a heartbeat yet.
    if known_drivers and heartbeat.read_heartbeat(store) is None:
        time.sleep(heartbeat.HEARTBEAT_INTERVAL_S)
    if heartbeat.is_coordinator_alive(store):
        raise refusal
    session = uuid.uuid4().hex
    number = int(PurePosixPath(known_drivers[-1]).stem) + 1 if known_drivers else 0
    own_name = f"{DRIVERS_FOLDER}/{number:04d}"
    # Creation is atomic: of two drivers with the same number, the second is refused.
    if not store.create(own_name, session.encode()):
        raise refusal
    with HeartbeatThread(store, session):
        try:
            yield
        finally:
            # Objects of killed drivers are deleted only now: the next number follows the last.
            for name in (*known_drivers, own_name):
                store.delete(name)
