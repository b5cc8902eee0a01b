"""The ledger: a single chain, a single coordinator at a time, and every change is detected."""

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtil.circle.ledger import AppendConflict, Ledger, SessionFenced, check_conditional_writes
from mtil.circle.state import (
    ActionDone,
    ActionFailed,
    ActionStarted,
    CircleState,
    RunResumed,
    RunStopped,
    SessionBooted,
    next_actions,
)
from mtil.config import CircleConfig
from mtil.errors import (
    ConfigError,
    DataError,
    LedgerError,
    NotFoundError,
    RunError,
    StorageError,
)
from mtil.run.plan import CirclePlan, Evaluate, Summarise, Train, list_actions
from mtil.storage import LocalStore, Store

PLAN = CirclePlan.of(CircleConfig(num_rounds=1), [0, 1])
PRINT, DIGEST = "f" * 64, "c" * 64


class MemoryStore:
    """A store in memory. `create` can be made to fail like real servers."""

    uri = "s3://bucket/run"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.on_create: Callable[[str, bytes], bool] | None = None

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        if name not in self.objects:
            raise NotFoundError(f"{name} does not exist.")
        return self.objects[name]

    def chunks(self, name: str) -> Iterator[bytes]:
        yield self.read(name)

    def write(self, name: str, data: bytes) -> None:
        self.objects[name] = data

    def create(self, name: str, data: bytes) -> bool:
        if self.on_create is not None:
            act, self.on_create = self.on_create, None
            return act(name, data)
        return self.objects.setdefault(name, data) is data

    def exists(self, name: str) -> bool:
        return name in self.objects

    def names(self, prefix: str = "") -> list[str]:
        return sorted(name for name in self.objects if name.startswith(f"{prefix}/"))

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def clear(self, folder: str) -> None:
        for name in self.names(folder):
            self.delete(name)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "run"))


def begun(store: Store, session: str = "one") -> Ledger:
    ledger = Ledger.open(store, session=session)
    ledger.begin(PLAN, PRINT, DIGEST)
    ledger.boot()
    return ledger


def start(ledger: Ledger, fold: int = 0) -> CircleState:
    assert ledger.state is not None
    action = Train(0, fold)
    return ledger.append(ActionStarted(action=action, attempt=ledger.state.next_attempt(action)))


def values_of(store: Store, number: int) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(store.read(f"ledger/{number:06d}.json"))
    return values


def assert_chained(store: Store) -> list[dict[str, Any]]:
    """Verify the chain without the code under test; return the events."""
    names = store.names("ledger")
    assert names == [f"ledger/{number + 1:06d}.json" for number in range(len(names))]
    contents = [store.read(name) for name in names]
    events = [json.loads(data) for data in contents]
    assert [event["number"] for event in events] == list(range(1, len(names) + 1))
    assert events[0]["previous"] == ""
    for before, after in pairwise(range(len(names))):
        assert events[after]["previous"] == hashlib.sha256(contents[before]).hexdigest()
    return events


# Written events


def test_events_are_numbered_json_objects_that_name_the_one_before(store: LocalStore) -> None:
    ledger = begun(store)
    start(ledger)
    ledger.append(ActionDone(action=Train(0, 0), attempt=1, result={"dice": 0.5, "model": "ab"}))
    events = assert_chained(store)
    assert [event["kind"] for event in events] == ["begin", "boot", "started", "done"]
    assert {event["session"] for event in events} == {"one"}
    digest = hashlib.sha256(store.read("ledger/000003.json")).hexdigest()
    last = dict(events[3])
    assert list(last)[-1] == "sha256"
    own = last.pop("sha256")
    text = json.dumps(last, indent=1) + "\n"
    assert own == hashlib.sha256(text.encode()).hexdigest()
    assert last.pop("at").endswith("+00:00")
    assert last == {
        "number": 4,
        "previous": digest,
        "session": "one",
        "kind": "done",
        "action": {"kind": "train", "round": 0, "fold": 0, "part": None},
        "attempt": 1,
        "result": {"dice": 0.5, "model": "ab"},
    }
    assert events[0]["fingerprint"] == PRINT
    assert events[0]["plan"]["folds"] == [0, 1]
    assert events[0]["plan"]["circle"]["maps"] == "in_sample"


def test_what_is_read_again_is_what_was_written(store: LocalStore) -> None:
    ledger = begun(store)
    start(ledger, 0)
    start(ledger, 1)
    ledger.append(ActionFailed(action=Train(0, 1), attempt=1, cause="a worker died"))
    ledger.append(
        ActionDone(action=Train(0, 0), attempt=1, result={"auc": float("nan"), "ok": [1, "a"]})
    )
    ledger.stop()
    again = Ledger.open(store)
    assert again.state == ledger.state
    assert again.state is not None
    assert again.state.done == {Train(0, 0): {"auc": None, "ok": [1, "a"]}}
    assert again.state.begin.plan == PLAN
    assert again.refresh() == ledger.refresh()


def test_a_run_without_events_has_no_state(store: LocalStore) -> None:
    ledger = Ledger.open(store)
    assert ledger.state is None
    assert ledger.refresh() is None
    for call in (ledger.stop, ledger.go):
        with pytest.raises(RunError, match=r"/ledger has no events: run `mtil circle` first"):
            call()
    assert store.names() == []


def test_a_reader_follows_what_is_written(store: LocalStore) -> None:
    ledger = begun(store)
    reader = Ledger.open(store)
    start(ledger)
    assert reader.state != ledger.state
    assert reader.refresh() == ledger.state


def test_what_cannot_follow_is_not_written(store: LocalStore) -> None:
    ledger = begun(store)
    with pytest.raises(RunError, match="needs unfinished actions"):
        ledger.append(ActionStarted(action=Evaluate(0, 0), attempt=1))
    start(ledger)
    with pytest.raises(RunError, match="is running"):
        start(ledger)
    with pytest.raises(RunError, match="is not the coordinator one"):
        start(Ledger.open(store, session="other"), 1)
    assert len(store.names()) == 3


def test_beginning_again_takes_the_run_up_if_it_is_the_same(store: LocalStore) -> None:
    first = begun(store)
    second = Ledger.open(store)
    assert second.begin(PLAN, PRINT, DIGEST) == first.state
    with pytest.raises(DataError, match=r"began with fingerprint ffffffffffff…, not eeee"):
        second.begin(PLAN, "e" * 64, DIGEST)
    with pytest.raises(ConfigError, match=r"began with \[0, 1\], not \[0\]\. Choose"):
        second.begin(CirclePlan.of(PLAN.circle, [0]), PRINT, DIGEST)
    with pytest.raises(ConfigError, match=r"began with digest cccccccccccc…, not dddd"):
        second.begin(PLAN, PRINT, "d" * 64)
    with pytest.raises(ConfigError, match="Cannot change the configuration of a run"):
        second.begin(CirclePlan.of(CircleConfig(num_rounds=2), [0, 1]), PRINT, DIGEST)
    assert len(store.names()) == 2


# Several writers


def test_who_comes_second_takes_in_what_came_first(store: LocalStore) -> None:
    ledger = begun(store)
    cli = Ledger.open(store, session="cli")
    cli.append(RunStopped())
    with pytest.raises(
        AppendConflict, match=r"Event 3 of .*/ledger was written first by session cli"
    ):
        start(ledger)
    assert ledger.state == cli.state
    assert ledger.state is not None
    assert ledger.state.stopped
    assert len(store.names()) == 3


def test_a_later_session_fences_the_earlier(store: LocalStore) -> None:
    first, second = begun(store), Ledger.open(store, session="two")
    start(first)
    second.boot()
    for _ in range(2):
        with pytest.raises(
            SessionFenced,
            match=r"two has taken .* over from session one\. The older coordinator ends",
        ):
            first.append(ActionDone(action=Train(0, 0), attempt=1, result={}))
    for call in (first.boot, first.refresh, first.stop, lambda: first.append(SessionBooted())):
        with pytest.raises(SessionFenced):
            call()
    assert second.refresh() == first.state
    assert second.state is not None
    assert next_actions(second.state) == (Train(0, 0), Train(0, 1))
    assert len(store.names()) == 4


def test_stopping_and_going_on_are_said_once(store: LocalStore) -> None:
    begun(store)
    first, second = Ledger.open(store), Ledger.open(store)
    assert first.stop().stopped
    assert second.stop().stopped
    assert not second.go().stopped
    assert not first.go().stopped
    assert [values_of(store, n)["kind"] for n in (3, 4)] == ["stop", "go"]
    assert len(store.names()) == 4


def test_of_many_writers_at_once_one_wins_every_event(store: LocalStore) -> None:
    Ledger.open(store).begin(PLAN, PRINT, DIGEST)
    writers = [Ledger.open(store, session=f"w{number}") for number in range(8)]
    barrier = threading.Barrier(8)
    won: list[str] = []
    overtaken: list[str] = []

    def write(ledger: Ledger) -> None:
        barrier.wait()
        try:
            ledger.append(SessionBooted())
            won.append(ledger.session)
        except AppendConflict:
            overtaken.append(ledger.session)

    threads = [threading.Thread(target=write, args=(ledger,)) for ledger in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(overtaken)) == (1, 7)
    assert [event["session"] for event in assert_chained(store)][1:] == won
    (winner,) = [ledger for ledger in writers if ledger.session == won[0]]
    start(winner)
    for ledger in writers:
        assert ledger.session == won[0] or ledger.refresh() == winner.state


class Writer:
    """A coordinator or command line that sometimes decides on a stale state."""

    def __init__(self, store: Store, name: str) -> None:
        self.ledger = Ledger.open(store, session=name)
        self.is_fenced = False
        self.has_booted = False

    def step(self, rng: random.Random) -> None:
        if self.is_fenced:
            with pytest.raises(SessionFenced):
                self.ledger.append(rng.choice([SessionBooted(), RunStopped(), RunResumed()]))
            return
        try:
            if self.has_booted or rng.random() < 0.5:
                self.coordinate(rng)
            else:
                rng.choice([self.ledger.refresh, self.ledger.stop, self.ledger.go])()
        except AppendConflict:
            return
        except SessionFenced:
            assert self.has_booted
            self.is_fenced = True

    def coordinate(self, rng: random.Random) -> None:
        if not self.has_booted:
            self.has_booted = True
            self.ledger.boot()
            return
        state = self.ledger.state
        assert state is not None
        ready = next_actions(state)
        mine = [a for a, attempt in state.running.items() if attempt.session == state.session]
        if state.stopped:
            self.ledger.go()
        elif mine and rng.random() < 0.5:
            action = rng.choice(mine)
            attempt = state.attempts[action]
            self.ledger.append(
                ActionDone(action=action, attempt=attempt, result={"by": state.session})
            )
        elif ready:
            action = rng.choice(ready)
            self.ledger.append(ActionStarted(action=action, attempt=state.next_attempt(action)))
        else:
            self.ledger.refresh()


@pytest.mark.slow
@given(st.integers(0, 2**32).map(random.Random), st.integers(2, 4))
def test_writers_at_random_leave_one_chain_and_commit_everything_once(
    rng: random.Random, num_writers: int
) -> None:
    store = MemoryStore()
    plan = CirclePlan.of(CircleConfig(num_rounds=2, maps="cross_fit", num_parts=2), [0, 1])
    Ledger.open(store, session="cli").begin(plan, PRINT, DIGEST)
    writers = [Writer(store, f"w{number}") for number in range(num_writers)]
    for _ in range(60):
        rng.choice(writers).step(rng)
    last = Writer(store, "last")
    last.coordinate(rng)
    writers = [*(writer for writer in writers if writer.has_booted), last]
    while set(last.ledger.state.done) != set(list_actions(plan)):
        rng.choice(writers).step(rng)

    events = assert_chained(store)
    coordinator = ""
    for event in events:  # only the latest booted session has written actions
        if event["kind"] == "boot":
            coordinator = event["session"]
        elif event["kind"] in ("started", "done"):
            assert event["session"] == coordinator
    committed = Counter(str(event["action"]) for event in events if event["kind"] == "done")
    assert set(committed.values()) == {1}
    assert len(committed) == len(list_actions(plan))
    for writer in writers[:-1]:
        with pytest.raises(SessionFenced):
            writer.ledger.refresh()
    assert Ledger.open(store).state == last.ledger.refresh()


# A storage that fails


def test_an_event_whose_answer_was_lost_counts_once() -> None:
    store = MemoryStore()
    ledger = begun(store)

    def write_and_fail(name: str, data: bytes) -> bool:
        store.objects[name] = data
        raise StorageError("Bucket 'bucket' is out of reach.")

    def write_and_answer_no(name: str, data: bytes) -> bool:
        """Return the answer seen by a client with automatic retries."""
        store.objects[name] = data
        return False

    store.on_create = write_and_fail
    with pytest.raises(StorageError, match="out of reach"):
        start(ledger)
    state = start(ledger)
    assert list(state.running) == [Train(0, 0)]
    store.on_create = write_and_answer_no
    start(ledger, 1)
    assert len(store.objects) == 4
    assert Ledger.open(store).state == ledger.state

    store.on_create = write_and_fail
    with pytest.raises(StorageError):
        ledger.append(ActionDone(action=Train(0, 1), attempt=1, result={}))
    after = ledger.refresh()
    assert after is not None
    assert list(after.done) == [Train(0, 1)]


def test_an_event_that_was_not_written_is_appended_again() -> None:
    store = MemoryStore()
    ledger = begun(store)

    def fail(name: str, data: bytes) -> bool:
        raise StorageError("Bucket 'bucket' is out of reach.")

    store.on_create = fail
    before = ledger.state
    with pytest.raises(StorageError):
        start(ledger)
    assert ledger.refresh() == before
    start(ledger)
    assert len(store.objects) == 3


def test_a_stop_that_came_first_is_heard_of_by_a_storage_that_then_fails() -> None:
    class Failing(MemoryStore):
        """Fails to read event 4; the next event is 3."""

        def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
            if name == "ledger/000004.json":
                raise StorageError("Bucket 'bucket' is out of reach.")
            return super().read(name)

    store = Failing()
    ledger = begun(store)
    other = Ledger(store, session="cli")
    other.state, other._digest = ledger.state, ledger._digest
    other.append(RunStopped())
    with pytest.raises(AppendConflict):  # a StorageError would lead to a retry
        start(ledger)
    assert ledger.state is not None
    assert ledger.state.stopped


def test_a_storage_that_creates_only_once_passes_the_probe(store: LocalStore) -> None:
    store.write("run.json", b"{}")
    check_conditional_writes(store)
    assert store.names() == ["run.json"]


@pytest.mark.parametrize("kind", ["replaces", "refuses"])
def test_a_storage_that_does_not_is_refused_and_left_as_it_was(kind: str) -> None:
    class Other(MemoryStore):
        def create(self, name: str, data: bytes) -> bool:
            if kind == "refuses":
                raise StorageError("s3://bucket/run/x failed with NotImplemented.")
            self.objects[name] = data
            return True

    store = Other()
    with pytest.raises(StorageError, match=r"only if the name is free .* Choose a new --run"):
        check_conditional_writes(store)
    assert store.objects == {}


def test_a_storage_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"file/ledger-probe/\w+ cannot be written") as caught:
        check_conditional_writes(LocalStore(str(tmp_path / "file")))
    assert "only if the name is free" not in str(caught.value)


# Bad input


@pytest.fixture
def damaged(store: LocalStore) -> LocalStore:
    """Return a store with a ledger of five events, to be damaged."""
    ledger = begun(store)
    start(ledger, 0)
    start(ledger, 1)
    ledger.append(ActionDone(action=Train(0, 0), attempt=1, result={"dice": 0.5}))
    return store


def refused(store: Store) -> str:
    with pytest.raises(LedgerError) as caught:
        Ledger.open(store)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def rewrite(store: Store, number: int, **changes: object) -> None:
    """Change an event and update the sha256, like a forger."""
    values = values_of(store, number) | changes
    del values["sha256"]
    text = json.dumps(values, indent=1) + "\n"
    values["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    store.write(f"ledger/{number:06d}.json", (json.dumps(values, indent=1) + "\n").encode())


@pytest.mark.parametrize("number", [1, 3])
def test_a_gap_is_refused(damaged: LocalStore, number: int) -> None:
    damaged.delete(f"ledger/{number:06d}.json")
    assert refused(damaged) == (
        f"A ledger must have no gap, but event {number} of {damaged.uri}/ledger is missing and "
        "later events exist; restore the event, or choose a new --run."
    )


def test_a_changed_event_is_refused(damaged: LocalStore) -> None:
    rewrite(damaged, 3, at="2020-01-01T00:00:00+00:00")
    assert refused(damaged) == (
        f"A ledger must be a chain, but event 4 of {damaged.uri}/ledger does not name the sha256 "
        "of the previous event: an event was changed; restore the event, or choose a new --run."
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 5])
def test_any_byte_that_changed_in_the_first_or_last_event_is_refused(
    damaged: LocalStore, number: int
) -> None:
    name = f"ledger/{number:06d}.json"
    data = damaged.read(name)
    for place in range(len(data)):
        damaged.write(name, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        refused(damaged)
    damaged.write(name, data + b"\n")
    assert refused(damaged) == (
        f"Event {number} of {damaged.uri}/ledger was changed after writing: the sha256 of the text "
        "differs from the key `sha256`; restore the event, or choose a new --run."
    )
    damaged.write(name, data)
    assert Ledger.open(damaged).state is not None


def test_a_changed_figure_of_the_last_event_is_refused(damaged: LocalStore) -> None:
    name = "ledger/000005.json"
    data = damaged.read(name)
    for figure in (b"0.9", b"0.50"):
        damaged.write(name, data.replace(b"0.5", figure))
        assert "was changed after writing" in refused(damaged)
    for figure in (b"NaN", b"1e999"):
        damaged.write(name, data.replace(b"0.5", figure))
        assert "must hold finite numbers, but holds" in refused(damaged)


def test_a_ledger_of_before_events_were_sealed_is_refused(damaged: LocalStore) -> None:
    values = values_of(damaged, 1)
    del values["sha256"]
    damaged.write("ledger/000001.json", (json.dumps(values, indent=1) + "\n").encode())
    assert "is wrong at `sha256`: it is missing; restore the event" in refused(damaged)


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("keep", [0, 30])
def test_a_truncated_event_is_refused(damaged: LocalStore, number: int, keep: int) -> None:
    name = f"ledger/{number:06d}.json"
    damaged.write(name, damaged.read(name)[:keep])
    assert f"Event {number} of" in refused(damaged)
    assert "must be JSON, but is not at line" in refused(damaged)


def test_bytes_that_are_no_object_are_refused(damaged: LocalStore) -> None:
    damaged.write("ledger/000005.json", b"\xff\xfe")
    assert "must be UTF-8 text" in refused(damaged)
    damaged.write("ledger/000005.json", b"[1]")
    assert "Event 5 of" in refused(damaged)
    assert "must be a JSON object" in refused(damaged)


def test_an_unknown_kind_is_refused(damaged: LocalStore) -> None:
    rewrite(damaged, 5, kind="pause")
    why = refused(damaged)
    assert "has the kind 'pause', unknown to mtil" in why
    assert why.endswith("Use the mtil version of the writer.")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attempt": 0}, "`done.attempt`: should be greater than or equal to 1"),
        ({"action": {"kind": "dream"}}, "`done.action`: tag 'dream'"),
        ({"result": None}, "`done.result`: should be an object, but got None"),
        ({"colour": "red"}, "`done.colour`: unexpected keyword argument"),
        ({"session": 7}, "`session`: should be a valid string, but got 7"),
    ],
)
def test_an_event_with_a_wrong_value_is_refused(
    damaged: LocalStore, changes: dict[str, object], why: str
) -> None:
    rewrite(damaged, 5, **changes)
    assert f"Event 5 of {damaged.uri}/ledger" in refused(damaged)
    assert why in refused(damaged)


def test_an_event_under_another_name_is_refused(damaged: LocalStore) -> None:
    damaged.write("ledger/000004.json", damaged.read("ledger/000005.json"))
    assert "Event 4 of" in refused(damaged)
    assert "has `number` 5; restore the event" in refused(damaged)


def test_an_event_that_is_no_event_at_all_is_refused(damaged: LocalStore) -> None:
    damaged.write("ledger/000005.json", b"{}")
    assert "Event 5 of" in refused(damaged)
    assert "is wrong at `number`: it is missing" in refused(damaged)


def test_an_event_that_cannot_follow_is_refused(damaged: LocalStore) -> None:
    rewrite(damaged, 5, action={"kind": "summarise", "round": 0})
    why = refused(damaged)
    assert why.startswith(f"{damaged.uri}/ledger: Event 5 of the ledger cannot be 'done': ")
    assert f"attempt 1 at the {Summarise(0)} is not running" in why


@pytest.mark.parametrize("name", ["notes.txt", "3.json", "0000003.json", "old/000001.json"])
def test_a_foreign_file_is_refused(damaged: LocalStore, name: str) -> None:
    damaged.write(f"ledger/{name}", b"")
    assert refused(damaged) == (
        "A ledger folder may hold only events, but "
        f"{damaged.uri}/ledger/{name} is no event. Remove the file."
    )


def test_a_reader_refuses_a_bad_event_and_keeps_what_it_had(damaged: LocalStore) -> None:
    reader = Ledger.open(damaged)
    before = reader.state
    damaged.write("ledger/000006.json", b"{")
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"Event 6 of .* must be JSON"):
            reader.refresh()
    assert reader.state == before


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b'{"number": ' + b"1" * 5000 + b"}", b'{"number": 1, "number": 1}']
)
def test_an_event_that_no_parser_bounds_is_one_sentence(damaged: LocalStore, text: bytes) -> None:
    damaged.write("ledger/000005.json", text)
    assert refused(damaged).startswith(f"Event 5 of {damaged.uri}/ledger must ")


def test_a_plan_that_no_memory_holds_is_refused(damaged: LocalStore) -> None:
    """The event has a valid sha256; only the folds are forged."""
    plan = {**values_of(damaged, 1)["plan"], "folds": list(range(100_000))}
    rewrite(damaged, 1, plan=plan)
    assert "must have at most 100000 actions, but its rounds, folds and parts make" in refused(
        damaged
    )
