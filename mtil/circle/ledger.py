"""Append-only ledger of a circle run: numbered, hash-chained events in the run's storage.

The ledger is the memory and the fence of the coordinator. Events are JSON objects
`ledger/000001.json …`, created once and never changed. A writer losing the race for the next
number reads the winning event and continues. A coordinator must end on reading the `boot` of a
later session.

Every event carries two sha256: of the previous event, and of the event text without the key
`sha256`. The second digest protects the last event, which no later event confirms. Events
without the second digest are refused.
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
from mtil.circle.state import (
    CircleState,
    LedgerChange,
    LedgerEvent,
    RunBegan,
    RunResumed,
    RunStopped,
    SessionBooted,
    replay_events,
)
from mtil.config import STRICT, PositiveInt
from mtil.documents import MIB, Document, Sha256, format_value
from mtil.errors import (
    ConfigError,
    DataError,
    LedgerError,
    NotFoundError,
    RunError,
    StorageError,
)
from mtil.run.plan import CirclePlan
from mtil.storage import Store

LEDGER_FOLDER = "ledger"
LEDGER_PROBE_FOLDER = "ledger-probe"
_NAME = re.compile(rf"{LEDGER_FOLDER}/(\d{{6,}})\.json")
_NUM_READERS = 16
_MAX_EVENT_BYTES = 4 * MIB
_KINDS = ("begin", "boot", "started", "done", "failed", "stop", "go")
_MAX_UNLISTED = 1000
"""Events that a listing may miss because they were written during the listing."""
_RESTORE = "restore the event, or choose a new --run"


class AppendConflict(RunError):  # noqa: N818
    """Event number already taken by a different writer. Decide again on the refreshed state."""


class SessionFenced(RunError):  # noqa: N818
    """Run taken over by a later session. The present session must end."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class _Envelope:
    """Keys common to all events. In the JSON, the keys of the change follow."""

    number: PositiveInt
    previous: str
    """Sha256 of the bytes of the previous event, in hex; empty for the first event."""
    at: str
    """Time of writing, ISO 8601 in UTC."""
    session: str
    sha256: Sha256
    """Sha256 of the event text without the key `sha256`, in hex."""


_ENVELOPE: TypeAdapter[_Envelope] = TypeAdapter(_Envelope)
_CHANGE: TypeAdapter[LedgerChange] = TypeAdapter(LedgerChange)


class Ledger:
    """Reader and writer of a run's ledger. Not thread-safe.

    After a `StorageError` from `append`, the event may or may not be stored. Repeat the append, or
    refresh and decide by the state.
    """

    def __init__(self, store: Store, *, session: str | None = None) -> None:
        self.store = store
        self.session = session or secrets.token_hex(8)
        self.state: CircleState | None = None
        self._digest = ""
        self._has_booted = False

    @classmethod
    def open(cls, store: Store, *, session: str | None = None) -> "Ledger":
        """Read and verify a run's ledger from the first event. The ledger may be empty.

        Args:
            store: the run's folder.
            session: unique name of the writer. Random by default.

        Raises:
            LedgerError: if an event is missing, changed, unreadable or impossible after the
                previous events, or if the folder holds foreign files.
        """
        ledger = cls(store, session=session)
        numbers = {ledger._parse_event_number(name) for name in store.names(LEDGER_FOLDER)}
        last = max(numbers, default=0)
        # A listing may miss events written meanwhile: small gaps are settled by reading. Refusing
        # a large gap here keeps a forged file name from causing millions of reads.
        if last > len(numbers) + _MAX_UNLISTED:
            raise ledger._gap_error(next(n for n in range(1, last) if n not in numbers))
        with ThreadPoolExecutor(_NUM_READERS) as readers:
            contents = readers.map(ledger._read_event, range(1, last + 1))
            ledger._ingest(contents)
        return ledger

    @property
    def uri(self) -> str:
        """URI of the event folder."""
        return f"{self.store.uri}/{LEDGER_FOLDER}"

    def refresh(self) -> CircleState | None:
        """Read the events written since the last read. Return the state.

        Returns:
            the state; None for an empty ledger.

        Raises:
            LedgerError: see `open`.
            Fenced: if the session has booted and a later session has taken the run over.
        """
        while True:
            try:
                data = self._document(self._number + 1).read(
                    self.store, _file_name(self._number + 1)
                )
            except NotFoundError:
                break
            self._ingest([data])
        self._check_fence()
        return self.state

    def append(self, change: LedgerChange) -> CircleState:
        """Write the next event. Return the state after the event.

        Raises:
            RunError: if the change is impossible in the current state; nothing is written.
            Overtaken: if a different writer created the event first; the event has been read.
            Fenced: if the session has booted and a later session has taken the run over.
            StorageError: if the storage fails.
        """
        self._check_fence()
        number = self._number + 1
        data = self._encode_event(number, change)
        # Decode and replay before writing: readers would refuse an impossible event for ever.
        event, _ = self._decode_event(number, data, self._digest)
        state = replay_events([event], self.state)
        if not self.store.create(_file_name(number), data):
            data = self.store.read(_file_name(number))
            stored, _ = self._decode_event(number, data, self._digest)
            if (stored.session, stored.change) != (self.session, event.change):
                self._ingest([data])
                self._check_fence()
                raise AppendConflict(
                    f"Event {number} of {self.uri} was written first by session {stored.session}."
                )
            # The stored event is ours: the write succeeded, but the answer of the storage was lost.
            state = replay_events([stored], self.state)
        assert state is not None
        self._set_state(state, data, is_own_boot=isinstance(change, SessionBooted))
        return state

    def begin(self, plan: CirclePlan, fingerprint: str, config_digest: str) -> CircleState:
        """Append `begin` to an empty ledger. On an existing run, check the request against the run.

        Raises:
            ConfigError: if the configuration or the folds differ from the run's.
            DataError: if the data set differs from the run's.
        """
        request = RunBegan(
            plan=plan, fingerprint=fingerprint, config_digest=config_digest, version=__version__
        )
        state = self.refresh() or self._append_or_follow(request)
        self._check_same_request(state.begin, request)
        return state

    def boot(self) -> CircleState:
        """Take the run over. All earlier sessions are fenced off from now on."""
        while True:
            state = self._append_or_follow(SessionBooted())
            if state.session == self.session:
                return state

    def stop(self) -> CircleState:
        """Append `stop`: the coordinator starts nothing more after the next refresh."""
        return self._set_stopped(True)

    def go(self) -> CircleState:
        """Append `go`: a stopped run continues."""
        return self._set_stopped(False)

    def _set_stopped(self, stopped: bool) -> CircleState:
        state = self.refresh()
        if state is None:
            raise RunError(f"{self.uri} has no events: run `mtil circle` first.")
        while state.stopped != stopped:
            state = self._append_or_follow(RunStopped() if stopped else RunResumed())
        return state

    def _append_or_follow(self, change: LedgerChange) -> CircleState:
        try:
            return self.append(change)
        except AppendConflict:
            assert self.state is not None
            return self.state

    def _check_same_request(self, begun: RunBegan, request: RunBegan) -> None:
        if begun.fingerprint != request.fingerprint:
            raise DataError(
                f"Cannot change the data set of a run: {self.uri} began with fingerprint "
                f"{begun.fingerprint[:12]}…, not {request.fingerprint[:12]}…. Choose a new --run."
            )
        if begun.plan.folds != request.plan.folds:
            raise ConfigError(
                f"Cannot change the folds of a run: {self.uri} began with "
                f"{list(begun.plan.folds)}, not {list(request.plan.folds)}. Choose a new --run."
            )
        if (begun.plan, begun.config_digest) != (request.plan, request.config_digest):
            raise ConfigError(
                f"Cannot change the configuration of a run: {self.uri} began with "
                f"digest {begun.config_digest[:12]}…, not {request.config_digest[:12]}…. "
                "Choose a new --run."
            )

    def _check_fence(self) -> None:
        if self._has_booted and self.state is not None and self.state.session != self.session:
            raise SessionFenced(
                f"Session {self.state.session} has taken {self.store.uri} over from session "
                f"{self.session}. The older coordinator ends."
            )

    @property
    def _number(self) -> int:
        return 0 if self.state is None else self.state.number

    def _parse_event_number(self, name: str) -> int:
        match = _NAME.fullmatch(name)
        if match is None or _file_name(int(match[1])) != name:
            raise LedgerError(
                f"A ledger folder may hold only events, but {self.store.uri}/{name} is no event. "
                "Remove the file."
            )
        return int(match[1])

    def _read_event(self, number: int) -> bytes:
        try:
            return self._document(number).read(self.store, _file_name(number))
        except NotFoundError:
            raise self._gap_error(number) from None

    def _gap_error(self, number: int) -> LedgerError:
        return LedgerError(
            f"A ledger must have no gap, but event {number} of {self.uri} is missing and "
            f"later events exist; {_RESTORE}."
        )

    def _document(self, number: int) -> Document:
        return Document(
            f"Event {number} of {self.uri}", _RESTORE, LedgerError, max_bytes=_MAX_EVENT_BYTES
        )

    def _ingest(self, contents: Iterable[bytes]) -> None:
        """Decode and replay the next events. The state stays unchanged on an error."""
        number, digest, data = self._number, self._digest, b""
        events = []
        for data in contents:
            number += 1
            event, digest = self._decode_event(number, data, digest)
            events.append(event)
        try:
            state = replay_events(events, self.state)
        except RunError as error:
            raise LedgerError(f"{self.uri}: {error}") from None
        if state is not None and events:
            booted = any(
                isinstance(event.change, SessionBooted) and event.session == self.session
                for event in events
            )
            self._set_state(state, data, is_own_boot=booted)

    def _set_state(self, state: CircleState, data: bytes, *, is_own_boot: bool) -> None:
        self.state, self._digest = state, _sha256(data)
        self._has_booted = self._has_booted or is_own_boot

    def _encode_event(self, number: int, change: LedgerChange) -> bytes:
        values = {
            "number": number,
            "previous": self._digest,
            "at": datetime.now(UTC).isoformat(),
            "session": self.session,
        }
        # Pydantic writes an undefined metric (NaN) as null; plain `json` would write invalid JSON.
        values |= json.loads(_CHANGE.dump_json(change))
        return _encode_sealed(values)

    def _decode_event(self, number: int, data: bytes, previous: str) -> tuple[LedgerEvent, str]:
        """Decode and verify an event after the event with sha256 `previous`.

        Returns:
            the event and the sha256 of `data`.
        """
        name = f"Event {number} of {self.uri}"
        document = self._document(number)
        values = document.object(data)
        keys = _Envelope.__dataclass_fields__.keys()
        # Checked first: an event of a newer mtil may have any keys. Only an unknown kind tells of
        # a version mismatch; all later errors tell of damage.
        if values.get("kind", _KINDS[0]) not in _KINDS:
            raise LedgerError(
                f"{name} has the kind {format_value(values['kind'])}, unknown to mtil "
                f"{__version__}. Use "
                "the mtil version of the writer."
            )
        envelope = document.validate(_ENVELOPE, {k: v for k, v in values.items() if k in keys})
        change = document.validate(_CHANGE, {k: v for k, v in values.items() if k not in keys})
        # Compare the whole text, not the digest alone: a change of whitespace is noticed too.
        if _encode_sealed({k: v for k, v in values.items() if k != "sha256"}) != data:
            raise LedgerError(
                f"{name} was changed after writing: the sha256 of the text differs from the key "
                f"`sha256`; {_RESTORE}."
            )
        if envelope.number != number:
            raise LedgerError(f"{name} has `number` {envelope.number}; {_RESTORE}.")
        if envelope.previous != previous:
            raise LedgerError(
                f"A ledger must be a chain, but {name[0].lower()}{name[1:]} does not name the "
                f"sha256 of the previous event: an event was changed; {_RESTORE}."
            )
        return LedgerEvent(number, envelope.session, change, envelope.at), _sha256(data)


def check_conditional_writes(store: Store) -> None:
    """Check a run's storage: an existing object must never be replaced by `create`.

    The fence between coordinators depends on the refusal.

    Raises:
        StorageError: if the storage replaces an existing object or cannot be written at all.
    """
    name = f"{LEDGER_PROBE_FOLDER}/{secrets.token_hex(8)}"
    rule = (
        "A run's storage must create an object only if the name is free (on S3: "
        f"`If-None-Match` on writes), but {store.uri}"
    )
    try:
        # After a lost answer the client repeats the request, which then fails on the object of
        # the first request. The content decides.
        honoured = store.create(name, b"first") or store.read(name) == b"first"
    except StorageError as error:
        # A storage without any write access raises here, with the actual cause.
        store.write(name, b"plain")
        store.delete(name)
        raise StorageError(
            f"{rule} refuses conditional writes: {error} Choose a new --run."
        ) from None
    honoured = honoured and not store.create(name, b"second") and store.read(name) == b"first"
    store.delete(name)
    if not honoured:
        raise StorageError(f"{rule} replaces the object. Choose a new --run.")


def _encode_sealed(values: dict[str, object]) -> bytes:
    """Return the event text: the values, then the sha256 of the text without the digest."""
    return _encode_json(values | {"sha256": _sha256(_encode_json(values))})


def _encode_json(values: dict[str, object]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _file_name(number: int) -> str:
    return f"{LEDGER_FOLDER}/{number:06d}.json"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
