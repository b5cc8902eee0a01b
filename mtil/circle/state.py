"""How far a circle run is, and what may run now: its events, and the state that they add up to.

The state is folded from the events of the ledger, and `next_actions` says what may run now. An
action that has failed `circle.max_attempts` times is exhausted: its fold is failed, and what needs
it never runs. What can still be of use does run, so that which figures there are in the end does
not depend on who was faster. Attempts that died with their coordinator are no failures. Pure
values only.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

from mtil.config import STRICT, Count
from mtil.errors import RunError
from mtil.run.plan import (
    Action,
    Evaluate,
    Plan,
    Summarise,
    Train,
    WriteMaps,
    graph,
    needs,
)

Stage = Literal["waiting", "training", "maps", "evaluating", "done", "failed"]

_RANK: Mapping[type, int] = {WriteMaps: 0, Evaluate: 1, Summarise: 2, Train: 3}
"""What goes first within a round: what is short, and what others wait for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Begin:
    """A run begins: what it has to do, with which data, configuration and version."""

    plan: Plan
    fingerprint: str
    config_digest: str
    version: str
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Boot:
    """The writer takes the run over; earlier sessions are fenced off."""

    kind: Literal["boot"] = "boot"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Started:
    """An attempt begins, or an older session's attempt that still runs is adopted."""

    action: Action
    attempt: Count
    kind: Literal["started"] = "started"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Done:
    """An attempt is committed."""

    action: Action
    attempt: Count
    result: dict[str, JsonValue]
    """Names and measures what was made; every reader of the ledger holds it in memory."""
    kind: Literal["done"] = "done"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Failed:
    """An attempt has failed."""

    action: Action
    attempt: Count
    cause: str
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stop:
    """Nothing more is started."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Go:
    """A stopped run goes on."""

    kind: Literal["go"] = "go"


Change = Annotated[
    Begin | Boot | Started | Done | Failed | Stop | Go,
    Field(discriminator="kind"),
]


@plain_dataclass(frozen=True)
class Event:
    """A numbered event of the ledger; the first is number 1."""

    number: int
    session: str
    """Who wrote it."""
    change: Change
    at: str = ""
    """When, for people: nothing is decided by it."""


@plain_dataclass(frozen=True)
class Attempt:
    """An attempt in flight."""

    number: int
    session: str
    """The coordinator's session that runs it; with a later one, it is lost or to be adopted."""
    at: str = ""
    """When it began, for people."""


@plain_dataclass(frozen=True, kw_only=True)
class State:
    """A run as the events up to `number` tell it."""

    begin: Begin
    number: int
    session: str
    """The latest session that took the run over; empty before the first."""
    stopped: bool
    done: Mapping[Action, Mapping[str, JsonValue]]
    """The committed result of each action that is done."""
    running: Mapping[Action, Attempt]
    """What is in flight."""
    attempts: Mapping[Action, int]
    """The number of the latest attempt; of an action that is done, the committed one's."""
    failures: Mapping[Action, tuple[str, ...]]
    """The causes of each failed attempt."""
    failed_folds: Mapping[int, str]
    """The first cause that ended each failed fold."""

    @property
    def plan(self) -> Plan:
        """What the run has to do."""
        return self.begin.plan

    def next_attempt(self, action: Action) -> int:
        """Return the number that an action's next attempt will have."""
        return self.attempts.get(action, 0) + 1


def replay(events: Iterable[Event], state: State | None = None) -> State | None:
    """Fold events into a state; there is none before the first event.

    The time is linear in the events and, once a call, in the actions so far.

    Raises:
        RunError: naming the first event that cannot follow on what was before.
    """
    draft = None if state is None else _Draft(state)
    for event in events:
        if draft is None:
            draft = _Draft(_begun(event))
        else:
            draft.take(event)
    return None if draft is None else draft.state()


def next_actions(state: State) -> tuple[Action, ...]:
    """Return what may run now and is not running under the present session, most urgent first.

    What an older session has left in flight is listed, to be adopted or started again. What
    nothing can use any more, since the rest of its fold needs an exhausted action, is not.
    """
    if state.stopped:
        return ()
    lost = _lost(state.plan, state.failures)
    ready = [
        action
        for action, needed in _open(state, lost).items()
        if not _is_running(state, action) and _is_ready(action, needed, state.done, lost)
    ]
    return tuple(sorted(ready, key=_urgency))


def is_over(state: State) -> bool:
    """Say whether all summaries that can be reached are done; folds may have failed.

    What is in flight then, of a failed fold, is of no use any more.
    """
    return not _open(state, _lost(state.plan, state.failures))


def progress(state: State) -> dict[int, dict[int, Stage]]:
    """Return the stage of every fold in every round, as `{round: {fold: stage}}`.

    Of several actions in flight a training counts first. Nothing runs in a stopped run.
    """
    lost = _lost(state.plan, state.failures)
    cells: dict[tuple[int, int], list[Action]] = {}
    for action in graph(state.plan):
        if not isinstance(action, Summarise):
            cells.setdefault((action.round, action.fold), []).append(action)
    return {
        number: {fold: _stage(state, lost, cells[number, fold]) for fold in state.plan.folds}
        for number in range(state.plan.circle.num_rounds)
    }


def _urgency(action: Action) -> tuple[int, int, int, int]:
    fold = -1 if isinstance(action, Summarise) else action.fold
    part = getattr(action, "part", None)
    return action.round, _RANK[type(action)], fold, -1 if part is None else part


def _is_exhausted(plan: Plan, failures: Mapping[Action, tuple[str, ...]], action: Action) -> bool:
    return len(failures.get(action, ())) >= plan.circle.max_attempts


def _lost(plan: Plan, failures: Mapping[Action, tuple[str, ...]]) -> Set[Action]:
    """Return what can never be done: what is exhausted, and what needs something lost."""
    lost = {action for action in failures if _is_exhausted(plan, failures, action)}
    if lost:
        for action, needed in graph(plan).items():
            enough = all if isinstance(action, Summarise) else any
            if enough(other in lost for other in needed):
                lost.add(action)
    return lost


def _open(state: State, lost: Set[Action]) -> dict[Action, tuple[Action, ...]]:
    """Return what is still to be done for a summary that can be reached, and what it needs."""
    wanted: set[Action] = set()
    found = {}
    for action, needed in reversed(graph(state.plan).items()):
        wants = isinstance(action, Summarise) or action in wanted
        if wants and action not in lost and action not in state.done:
            wanted.update(needed)
            found[action] = needed
    return found


def _is_running(state: "State | _Draft", action: Action) -> bool:
    attempt = state.running.get(action)
    return attempt is not None and attempt.session == state.session


def _is_ready(
    action: Action, needed: Collection[Action], done: Container[Action], lost: Set[Action]
) -> bool:
    missing = {other for other in needed if other not in done}
    if isinstance(action, Summarise):
        return len(missing) < len(needed) and missing <= lost
    return not missing


def _stage(state: State, lost: Set[Action], cell: Sequence[Action]) -> Stage:
    plan, failures = state.plan, state.failures
    evaluation = next(action for action in cell if isinstance(action, Evaluate))
    if evaluation in lost or any(_is_exhausted(plan, failures, action) for action in cell):
        return "failed"
    if all(action in state.done for action in cell):
        return "done"
    running = set() if state.stopped else {type(a) for a in cell if a in state.running}
    if Train in running:
        return "training"
    if WriteMaps in running:
        return "maps"
    return "evaluating" if Evaluate in running else "waiting"


def _begun(event: Event) -> State:
    if event.number != 1 or not isinstance(event.change, Begin):
        raise _impossible(event, "a ledger must open with what the run has to do")
    return State(
        begin=event.change,
        number=1,
        session="",
        stopped=False,
        done={},
        running={},
        attempts={},
        failures={},
        failed_folds={},
    )


def _impossible(event: Event, why: str) -> RunError:
    return RunError(
        f"Event {event.number} of a ledger must follow on those before it, but it is "
        f"{event.change.kind!r} and {why}; restore the ledger, or name another --run."
    )


class _Draft:
    """A state in the making: its books are its own and change in place."""

    def __init__(self, state: State) -> None:
        self.begin = state.begin
        self.number = state.number
        self.session = state.session
        self.stopped = state.stopped
        self.done = dict(state.done)
        self.running = dict(state.running)
        self.attempts = dict(state.attempts)
        self.failures = dict(state.failures)
        self.failed_folds = dict(state.failed_folds)

    def state(self) -> State:
        return State(**vars(self))

    def take(self, event: Event) -> None:
        change = event.change
        why = self._objection(event)
        if why:
            raise _impossible(event, why)
        self.number = event.number
        if isinstance(change, Boot):
            self.session = event.session
        elif isinstance(change, Stop | Go):
            self.stopped = isinstance(change, Stop)
        elif isinstance(change, Started):
            self.running[change.action] = Attempt(change.attempt, event.session, event.at)
            self.attempts[change.action] = change.attempt
        elif isinstance(change, Done):
            del self.running[change.action]
            self.done[change.action] = change.result
        elif isinstance(change, Failed):
            self._fail(change)

    def _fail(self, change: Failed) -> None:
        action = change.action
        del self.running[action]
        self.failures[action] = (*self.failures.get(action, ()), change.cause)
        exhausted = _is_exhausted(self.begin.plan, self.failures, action)
        if exhausted and not isinstance(action, Summarise):
            self.failed_folds.setdefault(action.fold, f"{action}: {change.cause}")

    def _objection(self, event: Event) -> str:
        """Say why an event cannot come now; nothing if it can."""
        change = event.change
        if event.number != self.number + 1:
            return f"the one before is number {self.number}"
        if isinstance(change, Begin):
            return "the run has begun already"
        if isinstance(change, Boot):
            return f"{event.session} runs it already" if event.session == self.session else ""
        if isinstance(change, Stop | Go):
            already = self.stopped == isinstance(change, Stop)
            return f"the run is {'stopped' if self.stopped else 'going on'} already" * already
        if event.session != self.session:
            return f"its writer {event.session} is not the coordinator {self.session or '(none)'}"
        if isinstance(change, Started):
            return self._objection_to_start(change)
        attempt = self.running.get(change.action)
        if attempt is None or attempt.number != change.attempt:
            return f"attempt {change.attempt} at the {change.action} is not running"
        return ""

    def _objection_to_start(self, change: Started) -> str:
        action = change.action
        if self.stopped:
            return "the run is stopped"
        if action not in graph(self.begin.plan):
            return f"the {action} is not planned"
        if action in self.done:
            return f"the {action} is done"
        if _is_running(self, action):
            return f"the {action} is running"
        if _is_exhausted(self.begin.plan, self.failures, action):
            return f"the {action} has failed too often"
        lost = _lost(self.begin.plan, self.failures) if isinstance(action, Summarise) else set()
        if not _is_ready(action, needs(self.begin.plan, action), self.done, lost):
            return f"the {action} needs what is not done"
        latest = self.attempts.get(action, 0)
        numbers = {latest, latest + 1} if action in self.running else {latest + 1}
        if change.attempt not in numbers:
            return f"the {action} is at attempt {latest}, not {change.attempt}"
        return ""
