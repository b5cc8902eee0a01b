"""A run's ledger: numbered events in its storage, each created once and chained to the one before.

It is the coordinator's memory and its fence. Whoever fails to create the next event reads what is
there and follows; a coordinator that finds a later one's `boot` must end. Events are JSON objects
`ledger/000001.json …` that nothing ever changes: each carries the sha256 of its own text, so that a
change to the last one is noticed too. A ledger whose events have none is refused.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from mtil import __version__
from mtil.circle.state import Begin, Boot, Change, Event, Go, State, Stop, replay
from mtil.config import STRICT, Count
from mtil.documents import MIB, Document, Sha256, shown
from mtil.errors import (
    ConfigError,
    DataError,
    LedgerError,
    NotFoundError,
    RunError,
    StorageError,
)
from mtil.run.plan import Plan
from mtil.storage import Store

FOLDER = "ledger"
PROBE_FOLDER = "ledger-probe"
_NAME = re.compile(rf"{FOLDER}/(\d{{6,}})\.json")
_NUM_READERS = 16
_MAX_EVENT_BYTES = 4 * MIB
_KINDS = ("begin", "boot", "started", "done", "failed", "stop", "go")
_MAX_UNLISTED = 1000
"""Events that a listing may leave out because they were written while it was made."""
_RESTORE = "restore it, or name another --run"


class Overtaken(RunError):  # noqa: N818
    """Another writer's event came first; it has been taken in, and the writer decides again."""


class Fenced(RunError):  # noqa: N818
    """A later session has taken the run over; this one must end."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Envelope:
    """What every event has; the keys of its change stand beside these."""

    number: Count
    previous: str
    """The sha256 of the bytes of the event before, in hex; empty for the first."""
    at: str
    session: str
    sha256: Sha256
    """Of the event's own text without this key, in hex."""


_ENVELOPE: TypeAdapter[_Envelope] = TypeAdapter(_Envelope)
_CHANGE: TypeAdapter[Change] = TypeAdapter(Change)


class Ledger:
    """A reader of a run's ledger and, if it appends, one of its writers. Not for several threads.

    After a `StorageError` it is not known whether an event was written: append the same again, or
    refresh and go by the state.
    """

    def __init__(self, store: Store, *, session: str | None = None) -> None:
        self.store = store
        self.session = session or secrets.token_hex(8)
        self.state: State | None = None
        self._digest = ""
        self._has_booted = False

    @classmethod
    def open(cls, store: Store, *, session: str | None = None) -> "Ledger":
        """Read a run's ledger from its first event and verify it; it may be empty.

        Args:
            store: the run's folder.
            session: what the writer is called; it must be its alone. Random by default.

        Raises:
            LedgerError: if an event is missing, was changed, cannot be read or cannot follow on
                those before it, or the folder holds something else.
        """
        ledger = cls(store, session=session)
        numbers = {ledger._number_of(name) for name in store.names(FOLDER)}
        last = max(numbers, default=0)
        if last > len(numbers) + _MAX_UNLISTED:
            raise ledger._gap(next(n for n in range(1, last) if n not in numbers))
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            found = readers.map(ledger._read, range(1, last + 1))
            ledger._take(found)
        return ledger

    @property
    def uri(self) -> str:
        """The folder of the events."""
        return f"{self.store.uri}/{FOLDER}"

    def refresh(self) -> State | None:
        """Take in what others have written since.

        Raises:
            LedgerError: as `open`.
            Fenced: if this session ran the run and a later one has taken it over.
        """
        while True:
            try:
                data = self._document(self._number + 1).read(self.store, _name(self._number + 1))
            except NotFoundError:
                break
            self._take([data])
        self._check_fence()
        return self.state

    def append(self, change: Change) -> State:
        """Write the next event.

        Raises:
            RunError: if the change cannot follow on the state; nothing is written then.
            Overtaken: if another writer came first; its event has been taken in.
            Fenced: if this session ran the run and a later one has taken it over.
            StorageError: if the storage fails.
        """
        self._check_fence()
        number = self._number + 1
        data = self._encoded(number, change)
        event, _ = self._decoded(number, data, self._digest)
        state = replay([event], self.state)
        if not self.store.create(_name(number), data):
            data = self.store.read(_name(number))
            stored, _ = self._decoded(number, data, self._digest)
            if (stored.session, stored.change) != (self.session, event.change):
                self._take([data])
                self._check_fence()
                raise Overtaken(
                    f"Event {number} of {self.uri} is {stored.session}'s, which came first."
                )
            state = replay([stored], self.state)  # ours: an answer of the storage was lost
        assert state is not None
        self._settle(state, data, is_own_boot=isinstance(change, Boot))
        return state

    def begin(self, plan: Plan, fingerprint: str, config_digest: str) -> State:
        """Begin a run, or take up the one that has begun if it was asked to do the same.

        Raises:
            ConfigError: if it has another configuration or other folds.
            DataError: if it has another data set.
        """
        wanted = Begin(
            plan=plan, fingerprint=fingerprint, config_digest=config_digest, version=__version__
        )
        state = self.refresh() or self._append_or_follow(wanted)
        self._check_same(state.begin, wanted)
        return state

    def boot(self) -> State:
        """Take the run over; every earlier session is fenced off from now on."""
        while True:
            state = self._append_or_follow(Boot())
            if state.session == self.session:
                return state

    def stop(self) -> State:
        """Ask that nothing more be started; whoever runs the run sees it when it refreshes."""
        return self._set_stopped(True)

    def go(self) -> State:
        """Let a stopped run go on."""
        return self._set_stopped(False)

    def _set_stopped(self, stopped: bool) -> State:
        state = self.refresh()
        if state is None:
            raise RunError(f"A run must have begun first, but {self.uri} has no events.")
        while state.stopped != stopped:
            state = self._append_or_follow(Stop() if stopped else Go())
        return state

    def _append_or_follow(self, change: Change) -> State:
        try:
            return self.append(change)
        except Overtaken:
            assert self.state is not None
            return self.state

    def _check_same(self, begun: Begin, wanted: Begin) -> None:
        if begun.fingerprint != wanted.fingerprint:
            raise DataError(
                f"A run must stay with its data set, but {self.uri} began with fingerprint "
                f"{begun.fingerprint[:12]}… and {wanted.fingerprint[:12]}… was asked for; "
                "name another --run."
            )
        if begun.plan.folds != wanted.plan.folds:
            raise ConfigError(
                f"A run must keep its folds, but {self.uri} began with {list(begun.plan.folds)} "
                f"and {list(wanted.plan.folds)} were asked for; name another --run."
            )
        if (begun.plan, begun.config_digest) != (wanted.plan, wanted.config_digest):
            raise ConfigError(
                f"A run must keep its configuration, but {self.uri} began with "
                f"{begun.config_digest[:12]}… and {wanted.config_digest[:12]}… was asked for; "
                "name another --run."
            )

    def _check_fence(self) -> None:
        if self._has_booted and self.state is not None and self.state.session != self.session:
            raise Fenced(
                f"A run must have one coordinator, but {self.state.session} has taken "
                f"{self.store.uri} over from {self.session}; this one ends."
            )

    @property
    def _number(self) -> int:
        return 0 if self.state is None else self.state.number

    def _number_of(self, name: str) -> int:
        match = _NAME.fullmatch(name)
        if match is None or _name(int(match[1])) != name:
            raise LedgerError(
                f"A ledger's folder must hold its events alone, but {self.store.uri}/{name} is "
                "none; remove it."
            )
        return int(match[1])

    def _read(self, number: int) -> bytes:
        try:
            return self._document(number).read(self.store, _name(number))
        except NotFoundError:
            raise self._gap(number) from None

    def _gap(self, number: int) -> LedgerError:
        return LedgerError(
            f"A ledger must have no gap, but event {number} of {self.uri} is missing and "
            f"there are later ones; {_RESTORE}."
        )

    def _document(self, number: int) -> Document:
        return Document(
            f"Event {number} of {self.uri}", _RESTORE, LedgerError, max_bytes=_MAX_EVENT_BYTES
        )

    def _take(self, found: Iterable[bytes]) -> None:
        """Take in the next events, all or none."""
        number, digest, data = self._number, self._digest, b""
        events = []
        for data in found:
            number += 1
            event, digest = self._decoded(number, data, digest)
            events.append(event)
        try:
            state = replay(events, self.state)
        except RunError as error:
            raise LedgerError(f"{self.uri}: {error}") from None
        if state is not None and events:
            booted = any(
                isinstance(event.change, Boot) and event.session == self.session for event in events
            )
            self._settle(state, data, is_own_boot=booted)

    def _settle(self, state: State, data: bytes, *, is_own_boot: bool) -> None:
        self.state, self._digest = state, _sha256(data)
        self._has_booted = self._has_booted or is_own_boot

    def _encoded(self, number: int, change: Change) -> bytes:
        values = {
            "number": number,
            "previous": self._digest,
            "at": datetime.now(UTC).isoformat(),
            "session": self.session,
        }
        values |= json.loads(_CHANGE.dump_json(change))  # a figure that is undefined becomes null
        return _sealed(values)

    def _decoded(self, number: int, data: bytes, previous: str) -> tuple[Event, str]:
        """Return an event and the sha256 of its bytes, after the event with sha256 `previous`."""
        name = f"Event {number} of {self.uri}"
        document = self._document(number)
        values = document.object(data)
        keys = _Envelope.__dataclass_fields__.keys()
        if values.get("kind", _KINDS[0]) not in _KINDS:
            raise LedgerError(
                f"{name} must be of a kind that mtil {__version__} knows, but is "
                f"{shown(values['kind'])}; use the version that wrote it."
            )
        envelope = document.validate(_ENVELOPE, {k: v for k, v in values.items() if k in keys})
        change = document.validate(_CHANGE, {k: v for k, v in values.items() if k not in keys})
        if _sealed({k: v for k, v in values.items() if k != "sha256"}) != data:
            raise LedgerError(
                f"{name} must be as it was written, but has another sha256 than it says; "
                f"{_RESTORE}."
            )
        if envelope.number != number:
            raise LedgerError(f"{name} must say so, but says {envelope.number}; {_RESTORE}.")
        if envelope.previous != previous:
            raise LedgerError(
                f"A ledger must be one chain, but {name[0].lower()}{name[1:]} does not follow on "
                f"the one before: one of them was changed; {_RESTORE}."
            )
        return Event(number, envelope.session, change, envelope.at), _sha256(data)


def probe(store: Store) -> None:
    """Make sure that a run's storage never creates an object twice, which the ledger rests on.

    Raises:
        StorageError: if it does, or cannot be written at all.
    """
    name = f"{PROBE_FOLDER}/{secrets.token_hex(8)}"
    rule = (
        "A run's storage must create an object only if there is none of its name (on S3, "
        f"`If-None-Match` on writes), but {store.uri}"
    )
    try:
        # one whose answer was lost is asked again, and then refused for what it did itself
        honoured = store.create(name, b"first") or store.read(name) == b"first"
    except StorageError as error:
        store.write(name, b"plain")  # says itself why nothing at all can be written
        store.delete(name)
        raise StorageError(f"{rule} refuses that: {error} Name another --run.") from None
    honoured = honoured and not store.create(name, b"second") and store.read(name) == b"first"
    store.delete(name)
    if not honoured:
        raise StorageError(f"{rule} does not; name another --run.")


def _sealed(values: dict[str, object]) -> bytes:
    """Return an event's text, which ends with the sha256 of what it is without that."""
    return _text(values | {"sha256": _sha256(_text(values))})


def _text(values: dict[str, object]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
