"""Signs of life: who gives them is seen, who has died or left is not."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from mtil import heartbeat
from mtil.errors import RunError, StorageError
from mtil.heartbeat import NAME, Beat, Heart, Listener, is_beating, read
from mtil.storage import LocalStore


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.03)
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 60.0)  # a busy machine is not silent


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 0.6)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def wait_for(count: int, store: LocalStore) -> Beat:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        latest = read(store)
        if latest is not None and latest.count >= count:
            return latest
        time.sleep(0.005)
    raise AssertionError(f"no beat of number {count}")


def test_where_nobody_has_begun_nothing_beats(store: LocalStore) -> None:
    begin = time.monotonic()
    assert read(store) is None
    assert not is_beating(store)
    assert time.monotonic() - begin < 30  # there is nothing to wait for
    assert not Path(store.uri).exists()


def test_a_session_at_work_beats_until_it_leaves(store: LocalStore) -> None:
    with Heart(store, "one"):
        assert wait_for(3, store).session == "one"
        assert is_beating(store)
    assert read(store) is None
    assert not is_beating(store)
    assert store.names() == []


@pytest.mark.usefixtures("_impatient")
def test_a_session_that_died_is_silent(store: LocalStore) -> None:
    store.write(NAME, json.dumps({"session": "dead", "count": 7}).encode())
    begin = time.monotonic()
    assert not is_beating(store)
    assert time.monotonic() - begin >= 0.6  # it was listened to for long enough
    assert read(store) == Beat("dead", 7)


def test_a_beat_says_where_it_comes_from_and_what_is_waited_for(store: LocalStore) -> None:
    with Heart(store, "one") as heart:
        first = wait_for(1, store)
        assert (first.host, first.waits) == (socket.gethostname(), "")
        heart.waits = "It waits for machines."
        assert wait_for(first.count + 2, store).waits == "It waits for machines."


@pytest.mark.usefixtures("_impatient")
def test_a_listener_hears_who_comes_works_and_dies(store: LocalStore) -> None:
    listener = Listener(store)
    assert not listener.is_beating()
    store.write(NAME, json.dumps({"session": "dead", "count": 7}).encode())
    assert not listener.is_beating()
    store.delete(NAME)
    with Heart(store, "one"):
        wait_for(1, store)
        assert listener.is_beating()
        wait_for(3, store)
        begin = time.monotonic()
        assert listener.is_beating()
        assert time.monotonic() - begin < 0.5  # without a wait
    store.write(NAME, json.dumps({"session": "one", "count": 99}).encode())
    assert listener.is_beating()
    time.sleep(0.7)
    assert not listener.is_beating()


def test_one_that_leaves_while_it_is_listened_to_is_not_beating(store: LocalStore) -> None:
    store.write(NAME, json.dumps({"session": "one", "count": 1}).encode())
    leaving = threading.Timer(0.1, store.delete, [NAME])
    leaving.start()
    assert not is_beating(store)
    leaving.join()


def test_a_successor_is_seen_at_once(store: LocalStore) -> None:
    store.write(NAME, json.dumps({"session": "dead", "count": 1}).encode())
    with Heart(store, "two"):
        assert is_beating(store)


def test_who_leaves_lets_a_successor_s_beat_be(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 60.0)
    with Heart(store, "one"):
        wait_for(1, store)
        store.write(NAME, json.dumps({"session": "two", "count": 1}).encode())
    assert read(store) == Beat("two", 1)


def test_a_storage_that_fails_for_a_while_does_not_end_the_beat(store: LocalStore) -> None:
    failing = threading.Event()
    tried = threading.Event()

    class Moody(LocalStore):
        def write(self, name: str, data: bytes) -> None:
            if failing.is_set():
                tried.set()
                raise StorageError("Bucket 'b' is out of reach.")
            super().write(name, data)

    with Heart(Moody(store.uri), "one"):
        wait_for(1, store)
        failing.set()
        assert tried.wait(10)
        before = read(store)
        assert before is not None
        failing.clear()
        assert wait_for(before.count + 2, store).session == "one"
    assert read(store) is None


@pytest.mark.usefixtures("_impatient")
def test_leaving_a_storage_that_fails_is_no_error(store: LocalStore) -> None:
    class Gone(LocalStore):
        def delete(self, name: str) -> None:
            raise StorageError("Bucket 'b' is out of reach.")

    with Heart(Gone(store.uri), "one"):
        wait_for(1, store)
    assert read(store) is not None
    assert not is_beating(store)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"session": "one"}'])
def test_a_file_that_is_no_beat_is_one_sentence(store: LocalStore, text: str) -> None:
    store.write(NAME, text.encode())
    for listen in (read, is_beating):
        with pytest.raises(RunError) as caught:
            listen(store)
        message = str(caught.value)
        assert message.startswith(f"{store.uri}/{NAME} ")
        assert message.endswith("; delete it.")
