"""One driver at a time: of two commands that begin together, one is refused."""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath

from mtil.circle import heartbeat
from mtil.circle.heartbeat import Heart
from mtil.errors import RunError
from mtil.storage import Store

FOLDER = "drivers"
"""Holds an object for each driver that is here, or was killed: the next takes the next number."""


@contextmanager
def alone(store: Store) -> Iterator[None]:
    """Be the only driver of a search while the block runs.

    Raises:
        RunError: if another is at it.
    """
    refused = RunError(f"Another `mtil-tune run` is at {store.uri}; let it go on, or end it.")
    before = sorted(store.names(FOLDER))
    if before and heartbeat.read(store) is None:
        time.sleep(heartbeat.INTERVAL_S)  # it may have begun just now
    if heartbeat.is_beating(store):
        raise refused
    session = uuid.uuid4().hex
    number = int(PurePosixPath(before[-1]).stem) + 1 if before else 0
    mine = f"{FOLDER}/{number:04d}"
    if not store.create(mine, session.encode()):
        raise refused
    with Heart(store, session):
        try:
            yield
        finally:
            for name in (*before, mine):
                store.delete(name)
