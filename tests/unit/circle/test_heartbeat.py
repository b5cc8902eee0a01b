"""Heartbeats: a live coordinator is detected, a dead or finished coordinator is not."""

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mtil.circle import heartbeat
from mtil.circle.heartbeat import (
    HEARTBEAT_FILE,
    Heartbeat,
    HeartbeatMonitor,
    HeartbeatThread,
    is_coordinator_alive,
    read_heartbeat,
)
from mtil.errors import RunError, StorageError
from mtil.storage import LocalStore
from tests.waiting import PATIENCE_S, until

SILENCE_S = 15.0


class Clock:
    """The clock of the listener, advanced only by sleeping."""

    def __init__(self) -> None:
        self.now = self.slept = 0.0
        self.in_a_sleep: Callable[[], object] = lambda: None

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds
        self.in_a_sleep()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(heartbeat, "time", found)
    monkeypatch.setattr(
        heartbeat, "HEARTBEAT_INTERVAL_S", 0.03
    )  # for beating threads, in real time
    monkeypatch.setattr(heartbeat, "_SILENCE_S", SILENCE_S)
    return found


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def wait_for(count: int, store: LocalStore) -> Heartbeat:
    found: list[Heartbeat] = []

    def is_there() -> bool:
        latest = read_heartbeat(store)
        found.extend([latest] if latest is not None and latest.count >= count else [])
        return bool(found)

    until(is_there)
    return found[0]


def beats_meanwhile(clock: Clock, store: LocalStore) -> None:
    """Write a new beat during every sleep of the listener."""
    clock.in_a_sleep = lambda: wait_for(wait_for(1, store).count + 1, store)


def test_where_nobody_has_begun_nothing_beats(store: LocalStore, clock: Clock) -> None:
    assert read_heartbeat(store) is None
    assert not is_coordinator_alive(store)
    assert clock.slept == 0.0  # no wait without a heartbeat
    assert not Path(store.uri).exists()


def test_a_session_at_work_beats_until_it_leaves(store: LocalStore, clock: Clock) -> None:
    with HeartbeatThread(store, "one"):
        assert wait_for(3, store).session == "one"
        beats_meanwhile(clock, store)
        assert is_coordinator_alive(store)
        assert clock.slept == pytest.approx(heartbeat.HEARTBEAT_INTERVAL_S / 3)
    assert read_heartbeat(store) is None
    assert not is_coordinator_alive(store)
    assert store.names() == []


def test_a_session_that_died_is_silent(store: LocalStore, clock: Clock) -> None:
    store.write(HEARTBEAT_FILE, json.dumps({"session": "dead", "count": 7}).encode())
    assert not is_coordinator_alive(store)
    assert SILENCE_S <= clock.slept < SILENCE_S + heartbeat.HEARTBEAT_INTERVAL_S
    assert read_heartbeat(store) == Heartbeat("dead", 7)


def test_a_beat_says_where_it_comes_from_and_what_is_waited_for(store: LocalStore) -> None:
    with HeartbeatThread(store, "one") as heart:
        first = wait_for(1, store)
        assert (first.host, first.waits) == (socket.gethostname(), "")
        heart.waits = "It waits for machines."
        assert wait_for(first.count + 2, store).waits == "It waits for machines."


def test_a_listener_hears_who_comes_works_and_dies(store: LocalStore, clock: Clock) -> None:
    listener = HeartbeatMonitor(store)
    assert not listener.is_beating()
    store.write(HEARTBEAT_FILE, json.dumps({"session": "dead", "count": 7}).encode())
    assert not listener.is_beating()
    store.delete(HEARTBEAT_FILE)
    with HeartbeatThread(store, "one"):
        wait_for(1, store)
        beats_meanwhile(clock, store)
        assert listener.is_beating()
        wait_for(3, store)
        slept = clock.slept
        assert listener.is_beating()
        assert clock.slept == slept  # answered without a wait
    store.write(HEARTBEAT_FILE, json.dumps({"session": "one", "count": 99}).encode())
    assert listener.is_beating()
    clock.now += SILENCE_S - 1
    assert listener.is_beating()
    clock.now += 2
    assert not listener.is_beating()


def test_one_that_leaves_while_it_is_listened_to_is_not_beating(
    store: LocalStore, clock: Clock
) -> None:
    store.write(HEARTBEAT_FILE, json.dumps({"session": "one", "count": 1}).encode())
    clock.in_a_sleep = lambda: store.delete(HEARTBEAT_FILE)
    assert not is_coordinator_alive(store)
    assert clock.slept < heartbeat.HEARTBEAT_INTERVAL_S


def test_a_successor_is_seen_at_once(store: LocalStore, clock: Clock) -> None:
    store.write(HEARTBEAT_FILE, json.dumps({"session": "dead", "count": 1}).encode())

    def come() -> None:
        store.write(HEARTBEAT_FILE, json.dumps({"session": "two", "count": 1}).encode())

    clock.in_a_sleep = come
    assert is_coordinator_alive(store)
    assert clock.slept < heartbeat.HEARTBEAT_INTERVAL_S


def test_who_leaves_lets_a_successor_s_beat_be(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 60.0)
    with HeartbeatThread(store, "one"):
        wait_for(1, store)
        store.write(HEARTBEAT_FILE, json.dumps({"session": "two", "count": 1}).encode())
    assert read_heartbeat(store) == Heartbeat("two", 1)


def test_a_storage_that_fails_for_a_while_does_not_end_the_beat(store: LocalStore) -> None:
    failing = threading.Event()
    tried = threading.Event()

    class Moody(LocalStore):
        def write(self, name: str, data: bytes) -> None:
            if failing.is_set():
                tried.set()
                raise StorageError("Bucket 'b' is out of reach.")
            super().write(name, data)

    with HeartbeatThread(Moody(store.uri), "one"):
        wait_for(1, store)
        failing.set()
        assert tried.wait(PATIENCE_S)
        before = read_heartbeat(store)
        assert before is not None
        failing.clear()
        assert wait_for(before.count + 2, store).session == "one"
    assert read_heartbeat(store) is None


def test_leaving_a_storage_that_fails_is_no_error(store: LocalStore) -> None:
    class Gone(LocalStore):
        def delete(self, name: str) -> None:
            raise StorageError("Bucket 'b' is out of reach.")

    with HeartbeatThread(Gone(store.uri), "one"):
        wait_for(1, store)
    assert read_heartbeat(store) is not None
    assert not is_coordinator_alive(store)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"session": "one"}'])
def test_a_file_that_is_no_beat_is_one_sentence(store: LocalStore, text: str) -> None:
    store.write(HEARTBEAT_FILE, text.encode())
    for listen in (read_heartbeat, is_coordinator_alive):
        with pytest.raises(RunError) as caught:
            listen(store)
        message = str(caught.value)
        assert message.startswith(f"{store.uri}/{HEARTBEAT_FILE} ")
        assert message.endswith("; delete it.")
