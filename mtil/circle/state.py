"""State of a circle run and the actions that may run next. Pure values, no input or output.

The state is folded from ledger events. `next_actions` lists the actions that may run. An action
is exhausted after `circle.max_attempts` failures: the fold fails, and no dependent action runs.
All other useful actions still run, so the final figures do not depend on scheduling order.
Attempts that died with their coordinator do not count as failures.
"""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, JsonValue
from pydantic.dataclasses import dataclass

from mtil.config import STRICT, PositiveInt
from mtil.errors import RunError
from mtil.run.plan import (
    Action,
    CirclePlan,
    Evaluate,
    Summarise,
    Train,
    WriteMaps,
    build_action_graph,
    find_prerequisites,
)

FoldStage = Literal["waiting", "training", "maps", "evaluating", "done", "failed"]

_RANK: Mapping[type, int] = {WriteMaps: 0, Evaluate: 1, Summarise: 2, Train: 3}
"""Priority within a round, lowest first: short actions and actions with dependants."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunBegan:
    """Start of a run: the plan, the data set, the configuration and the mtil version."""

    plan: CirclePlan
    fingerprint: str
    config_digest: str
    version: str
    kind: Literal["begin"] = "begin"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SessionBooted:
    """Takeover of the run by the writer. Earlier sessions are fenced off."""

    kind: Literal["boot"] = "boot"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActionStarted:
    """Start of an attempt, or adoption of an attempt left running by an older session."""

    action: Action
    attempt: PositiveInt
    kind: Literal["started"] = "started"


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ActionDone:
    """Commit of an attempt."""

    action: Action
    attempt: PositiveInt
    result: dict[str, JsonValue]
    """Names and figures of the output. Every ledger reader holds all results in memory: keep them
    small."""
    kind: Literal["done"] = "done"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ActionFailed:
    """Failure of an attempt."""

    action: Action
    attempt: PositiveInt
    cause: str
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunStopped:
    """Request to start nothing more."""

    kind: Literal["stop"] = "stop"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunResumed:
    """Request to continue a stopped run."""

    kind: Literal["go"] = "go"


LedgerChange = Annotated[
    RunBegan | SessionBooted | ActionStarted | ActionDone | ActionFailed | RunStopped | RunResumed,
    Field(discriminator="kind"),
]


@plain_dataclass(frozen=True)
class LedgerEvent:
    """A numbered event of the ledger. The first event has number 1."""

    number: int
    session: str
    """Session of the writer."""
    change: LedgerChange
    at: str = ""
    """Time of writing, for display only: no decision depends on a clock."""


@plain_dataclass(frozen=True)
class ActionAttempt:
    """An attempt in flight."""

    number: int
    session: str
    """Session of the coordinator running the attempt. After a later boot, the attempt is lost or
    adopted.
    """
    at: str = ""
    """Start time, for display only."""


@plain_dataclass(frozen=True, kw_only=True)
class CircleState:
    """A run after the first `number` events."""

    begin: RunBegan
    number: int
    session: str
    """Session of the latest boot; empty before the first boot."""
    stopped: bool
    done: Mapping[Action, Mapping[str, JsonValue]]
    """Committed result of every finished action."""
    running: Mapping[Action, ActionAttempt]
    """Attempts in flight, by action."""
    attempts: Mapping[Action, int]
    """Number of the latest attempt, by action. For a finished action, the committed attempt."""
    failures: Mapping[Action, tuple[str, ...]]
    """Causes of all failed attempts, by action."""
    failed_folds: Mapping[int, str]
    """Failed folds, with the first cause."""

    @property
    def plan(self) -> CirclePlan:
        """The plan of the run."""
        return self.begin.plan

    def next_attempt(self, action: Action) -> int:
        """Return the number for the next attempt at an action."""
        return self.attempts.get(action, 0) + 1


def replay_events(
    events: Iterable[LedgerEvent], state: CircleState | None = None
) -> CircleState | None:
    """Fold events into a state. Return None without any event.

    Takes linear time in the number of events plus, once per call, the number of actions in `state`.

    Raises:
        RunError: naming the first event impossible after the previous events.
    """
    draft = None if state is None else _Draft(state)
    for event in events:
        if draft is None:
            draft = _Draft(_initial_state(event))
        else:
            draft.apply(event)
    return None if draft is None else draft.state()


def next_actions(state: CircleState) -> tuple[Action, ...]:
    """Return the actions that may start now in the present session, most urgent first.

    Includes actions left in flight by an older session, to be adopted or restarted. Excludes
    actions with no further use, because the rest of the fold depends on an exhausted action.
    """
    if state.stopped:
        return ()
    lost = _lost_actions(state.plan, state.failures)
    ready = [
        action
        for action, needed in _open_actions(state, lost).items()
        if not _is_running(state, action) and _is_ready(action, needed, state.done, lost)
    ]
    return tuple(sorted(ready, key=_urgency))


def is_finished(state: CircleState) -> bool:
    """Return True if every reachable summary is done. Folds may have failed.

    Actions still in flight then belong to failed folds and have no further use.
    """
    return not _open_actions(state, _lost_actions(state.plan, state.failures))


def compute_stages(state: CircleState) -> dict[int, dict[int, FoldStage]]:
    """Return the stage of every fold in every round, as `{round: {fold: stage}}`.

    Training wins over other actions in flight. In a stopped run nothing counts as running.
    """
    lost = _lost_actions(state.plan, state.failures)
    cells: dict[tuple[int, int], list[Action]] = {}
    for action in build_action_graph(state.plan):
        if not isinstance(action, Summarise):
            cells.setdefault((action.round, action.fold), []).append(action)
    return {
        round_: {fold: _stage(state, lost, cells[round_, fold]) for fold in state.plan.folds}
        for round_ in range(state.plan.circle.num_rounds)
    }


def _urgency(action: Action) -> tuple[int, int, int, int]:
    fold = -1 if isinstance(action, Summarise) else action.fold
    part = getattr(action, "part", None)
    return action.round, _RANK[type(action)], fold, -1 if part is None else part


def _is_exhausted(
    plan: CirclePlan, failures: Mapping[Action, tuple[str, ...]], action: Action
) -> bool:
    return len(failures.get(action, ())) >= plan.circle.max_attempts


def _lost_actions(plan: CirclePlan, failures: Mapping[Action, tuple[str, ...]]) -> Set[Action]:
    """Return the actions that can never be done: exhausted, or dependent on a lost action."""
    lost = {action for action in failures if _is_exhausted(plan, failures, action)}
    if lost:
        for action, needed in build_action_graph(plan).items():
            # A summary covers the folds that finished, so only the loss of all its evaluations is
            # fatal.
            quantifier = all if isinstance(action, Summarise) else any
            if quantifier(other in lost for other in needed):
                lost.add(action)
    return lost


def _open_actions(state: CircleState, lost: Set[Action]) -> dict[Action, tuple[Action, ...]]:
    """Return the unfinished actions that a reachable summary needs, with their own needs."""
    wanted: set[Action] = set()
    open_actions = {}
    # `build_action_graph` lists needs before their dependants: reversed, every wanted action is
    # known in time.
    for action, needed in reversed(build_action_graph(state.plan).items()):
        wants = isinstance(action, Summarise) or action in wanted
        if wants and action not in lost and action not in state.done:
            wanted.update(needed)
            open_actions[action] = needed
    return open_actions


def _is_running(state: "CircleState | _Draft", action: Action) -> bool:
    attempt = state.running.get(action)
    return attempt is not None and attempt.session == state.session


def _is_ready(
    action: Action, needed: Collection[Action], done: Container[Action], lost: Set[Action]
) -> bool:
    missing = {other for other in needed if other not in done}
    if isinstance(action, Summarise):
        # A summary waits until every fold is either evaluated or lost.
        return len(missing) < len(needed) and missing <= lost
    return not missing


def _stage(state: CircleState, lost: Set[Action], cell: Sequence[Action]) -> FoldStage:
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


def _initial_state(event: LedgerEvent) -> CircleState:
    if event.number != 1 or not isinstance(event.change, RunBegan):
        raise _impossible_event_error(event, "a ledger must open with 'begin' as event 1")
    return CircleState(
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


def _impossible_event_error(event: LedgerEvent, why: str) -> RunError:
    return RunError(
        f"Event {event.number} of the ledger cannot be {event.change.kind!r}: {why}. Restore the "
        "ledger, or choose a new --run."
    )


class _Draft:
    """A mutable state under construction, with private copies of the mappings."""

    def __init__(self, state: CircleState) -> None:
        self.begin = state.begin
        self.number = state.number
        self.session = state.session
        self.stopped = state.stopped
        self.done = dict(state.done)
        self.running = dict(state.running)
        self.attempts = dict(state.attempts)
        self.failures = dict(state.failures)
        self.failed_folds = dict(state.failed_folds)

    def state(self) -> CircleState:
        return CircleState(**vars(self))

    def apply(self, event: LedgerEvent) -> None:
        change = event.change
        objection = self._find_objection(event)
        if objection:
            raise _impossible_event_error(event, objection)
        self.number = event.number
        if isinstance(change, SessionBooted):
            self.session = event.session
        elif isinstance(change, RunStopped | RunResumed):
            self.stopped = isinstance(change, RunStopped)
        elif isinstance(change, ActionStarted):
            self.running[change.action] = ActionAttempt(change.attempt, event.session, event.at)
            self.attempts[change.action] = change.attempt
        elif isinstance(change, ActionDone):
            del self.running[change.action]
            self.done[change.action] = change.result
        elif isinstance(change, ActionFailed):
            self._record_failure(change)

    def _record_failure(self, change: ActionFailed) -> None:
        action = change.action
        del self.running[action]
        self.failures[action] = (*self.failures.get(action, ()), change.cause)
        exhausted = _is_exhausted(self.begin.plan, self.failures, action)
        if exhausted and not isinstance(action, Summarise):
            self.failed_folds.setdefault(action.fold, f"{action}: {change.cause}")

    def _find_objection(self, event: LedgerEvent) -> str:
        """Return the reason why an event is impossible now; empty if possible."""
        change = event.change
        if event.number != self.number + 1:
            return f"the previous event has number {self.number}"
        if isinstance(change, RunBegan):
            return "the run has begun already"
        if isinstance(change, SessionBooted):
            return f"{event.session} already runs the run" if event.session == self.session else ""
        if isinstance(change, RunStopped | RunResumed):
            already = self.stopped == isinstance(change, RunStopped)
            return f"the run is already {'stopped' if self.stopped else 'going on'}" * already
        if event.session != self.session:
            return f"the writer {event.session} is not the coordinator {self.session or '(none)'}"
        if isinstance(change, ActionStarted):
            return self._find_objection_to_start(change)
        attempt = self.running.get(change.action)
        if attempt is None or attempt.number != change.attempt:
            return f"attempt {change.attempt} at the {change.action} is not running"
        return ""

    def _find_objection_to_start(self, change: ActionStarted) -> str:
        action = change.action
        if self.stopped:
            return "the run is stopped"
        if action not in build_action_graph(self.begin.plan):
            return f"the {action} is not in the plan"
        if action in self.done:
            return f"the {action} is done"
        if _is_running(self, action):
            return f"the {action} is running"
        if _is_exhausted(self.begin.plan, self.failures, action):
            return f"the {action} has failed too often"
        # Only summaries depend on lost actions; finding them walks the whole graph.
        lost = (
            _lost_actions(self.begin.plan, self.failures)
            if isinstance(action, Summarise)
            else set()
        )
        if not _is_ready(action, find_prerequisites(self.begin.plan, action), self.done, lost):
            return f"the {action} needs unfinished actions"
        latest = self.attempts.get(action, 0)
        # An adopted attempt keeps the number given by the older session; a restart takes the next.
        numbers = {latest, latest + 1} if action in self.running else {latest + 1}
        if change.attempt not in numbers:
            return f"the {action} is at attempt {latest}, not {change.attempt}"
        return ""
