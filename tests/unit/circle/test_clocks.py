"""Clocks hours apart: a run never compares times of different machines."""

import itertools
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from mtil.circle import heartbeat
from mtil.circle import ledger as ledgers
from mtil.circle.heartbeat import HEARTBEAT_FILE, HeartbeatThread, is_coordinator_alive
from mtil.circle.ledger import Ledger, SessionFenced
from mtil.circle.state import ActionDone, ActionStarted, CircleState, SessionBooted, next_actions
from mtil.config import CircleConfig
from mtil.run.plan import CirclePlan, Train
from mtil.storage import LocalStore
from tests.waiting import PATIENCE_S, until

HOURS = (0, 7, -9, 30)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


@pytest.fixture(autouse=True)
def _jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer every query of the time with the clock of a different machine."""
    hours = itertools.cycle(HOURS)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return super().now(tz) + timedelta(hours=next(hours))

    really = time.time
    monkeypatch.setattr(ledgers, "datetime", Clock)
    monkeypatch.setattr(time, "time", lambda: really() + 3600 * next(hours))
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL_S", 0.03)
    monkeypatch.setattr(heartbeat, "_SILENCE_S", PATIENCE_S)  # long enough for a busy machine


def test_a_coordinator_at_work_is_seen_and_a_dead_one_is_not_waited_for(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HeartbeatThread(store, "one"):
        until(lambda: store.exists(HEARTBEAT_FILE))
        assert is_coordinator_alive(store)
        latest = store.read(HEARTBEAT_FILE)
    store.write(HEARTBEAT_FILE, latest)  # left by a crashed coordinator
    monkeypatch.setattr(heartbeat, "_SILENCE_S", 0.6)
    assert not is_coordinator_alive(store)  # no hours of waiting despite the clocks


def test_events_count_in_the_order_of_their_numbers(store: LocalStore) -> None:
    plan = CirclePlan.of(CircleConfig(num_rounds=2), [0])
    first, second = (Ledger.open(store, session=name) for name in ("first", "second"))
    first.begin(plan, "f" * 64, "c" * 64)
    first.boot()
    first.append(ActionStarted(action=Train(0, 0), attempt=1))
    assert _taken_over(second).session == "second"
    with pytest.raises(SessionFenced):
        first.append(ActionDone(action=Train(0, 0), attempt=1, result={}))
    assert next_actions(_taken(second)) == (Train(0, 0),)  # adopted or restarted at once
    second.append(ActionStarted(action=Train(0, 0), attempt=1))
    second.append(ActionDone(action=Train(0, 0), attempt=1, result={}))
    read = Ledger.open(store).state
    assert read is not None
    assert read == second.state
    assert set(read.done) == {Train(0, 0)}
    times = [_at(store, number) for number in range(1, read.number + 1)]
    assert times != sorted(times)


def _taken_over(ledger: Ledger) -> CircleState:
    ledger.refresh()
    return ledger.append(SessionBooted())


def _taken(ledger: Ledger) -> CircleState:
    assert ledger.state is not None
    return ledger.state


def _at(store: LocalStore, number: int) -> str:
    text = store.read(f"ledger/{number:06d}.json").decode()
    return text.partition('"at": "')[2].partition('"')[0]
