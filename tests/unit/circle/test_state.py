"""Scheduling rules of the circle: runnable actions, and equal results in every order."""

import hashlib
import json
import pickle
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtil.circle.state import (
    ActionDone,
    ActionFailed,
    ActionStarted,
    CircleState,
    LedgerChange,
    LedgerEvent,
    RunBegan,
    RunResumed,
    RunStopped,
    SessionBooted,
    compute_stages,
    is_finished,
    next_actions,
    replay_events,
)
from mtil.errors import RunError
from mtil.run.plan import (
    Action,
    CirclePlan,
    Evaluate,
    Summarise,
    Train,
    WriteMaps,
    find_prerequisites,
    list_actions,
)
from tests.unit.plans import CROSS_FIT, IN_SAMPLE, a_plan, plans, randoms


class Simulated:
    """A run with a coordinator in memory. Keeps all events."""

    def __init__(self, plan: CirclePlan) -> None:
        self.events: list[LedgerEvent] = []
        self.state: CircleState
        self.sessions = 0
        self.write(RunBegan(plan=plan, fingerprint="f", config_digest="c", version="1"), "cli")
        self.boot()

    def write(self, change: LedgerChange, session: str | None = None) -> None:
        event = LedgerEvent(len(self.events) + 1, session or f"s{self.sessions}", change)
        before = self.state if self.events else None
        state = replay_events([event], before)
        assert state is not None
        self.events.append(event)
        self.state = state

    def boot(self) -> None:
        self.sessions += 1
        self.write(SessionBooted())

    def start(self, action: Action) -> None:
        self.write(ActionStarted(action=action, attempt=self.state.next_attempt(action)))

    def finish(self, action: Action, result: dict[str, object] | None = None) -> None:
        attempt = self.state.attempts[action]
        made = {"made": made_of(self.state, action)} if result is None else result
        self.write(ActionDone(action=action, attempt=attempt, result=made))

    def fail(self, action: Action, cause: str = "out of memory") -> None:
        attempt = self.state.attempts[action]
        self.write(ActionFailed(action=action, attempt=attempt, cause=cause))

    def do(self, *wanted: Action) -> None:
        for action in wanted:
            self.start(action)
            self.finish(action)

    def exhaust(self, action: Action) -> None:
        for number in range(self.state.plan.circle.max_attempts):
            self.start(action)
            self.fail(action, f"cause {number}")

    def finish_in_order(self, doomed: frozenset[Action] = frozenset()) -> "Simulated":
        """Run all actions in sequence."""
        while ready := next_actions(self.state):
            self.start(ready[0])
            (self.fail if ready[0] in doomed else self.finish)(ready[0])
        return self


def made_of(state: CircleState, action: Action) -> str:
    """Return a result dependent on all inputs of the action."""
    needed = [n for n in find_prerequisites(state.plan, action) if n in state.done]
    parts = [str(action), *(str(state.done[n]["made"]) for n in needed)]
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:8]


def run_at_random(
    plan: CirclePlan, rng: random.Random, doomed: frozenset[Action], num_restarts: int
) -> Simulated:
    """Start, finish, fail and restart actions at random until all are done. Check every step."""
    run = Simulated(plan)
    while True:
        state = run.state
        mine = [a for a, attempt in state.running.items() if attempt.session == state.session]
        ready = next_actions(state)
        assert not set(ready) & set(mine)
        assert not set(ready) & set(state.done)
        if not ready and not mine:
            return run
        choice = rng.random()
        if choice < 0.1 and num_restarts:
            num_restarts -= 1
            run.boot()
            take_over(run, rng, doomed)
        elif ready and (choice < 0.6 or not mine):
            action = rng.choice(ready)
            assert_can_run(state, action)
            run.start(action)
        else:
            end(run, rng, rng.choice(mine), doomed)


def end(run: Simulated, rng: random.Random, action: Action, doomed: frozenset[Action]) -> None:
    """End an attempt. Actions not doomed fail less often than allowed."""
    left = run.state.plan.circle.max_attempts - len(run.state.failures.get(action, ()))
    if action in doomed or (left > 1 and rng.random() < 0.3):
        run.fail(action)
    else:
        run.finish(action)


def take_over(run: Simulated, rng: random.Random, doomed: frozenset[Action]) -> None:
    """Adopt, finish or ignore the attempts left by the last session."""
    for action, attempt in run.state.running.items():
        choice = rng.random()
        if choice < 0.3:
            run.write(ActionStarted(action=action, attempt=attempt.number))
        elif choice < 0.5:
            end(run, rng, action, doomed)


def assert_can_run(state: CircleState, action: Action) -> None:
    missing = [other for other in find_prerequisites(state.plan, action) if other not in state.done]
    if isinstance(action, Summarise):
        assert len(missing) < len(state.plan.folds)
        assert {other.fold for other in missing} <= set(state.failed_folds)
    else:
        assert missing == []


def figures(run: Simulated) -> dict[Action, object]:
    """Return the results of evaluations and summaries."""
    done = run.state.done
    return {a: done[a]["made"] for a in done if isinstance(a, Evaluate | Summarise)}


def all_events(run: Simulated, kind: type) -> Iterator[Action]:
    return (event.change.action for event in run.events if isinstance(event.change, kind))


# Runnable actions


def test_what_is_short_and_what_others_wait_for_goes_first() -> None:
    run = Simulated(a_plan(0, 1, 2, num_rounds=2))
    assert next_actions(run.state) == (Train(0, 0), Train(0, 1), Train(0, 2))
    run.do(Train(0, 1), Train(0, 0), WriteMaps(0, 0))
    assert next_actions(run.state) == (
        WriteMaps(0, 1),
        Evaluate(0, 0),
        Evaluate(0, 1),
        Train(0, 2),
        Train(1, 0),
    )


def test_folds_do_not_wait_for_each_other() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=2))
    run.do(Train(0, 1), WriteMaps(0, 1), Evaluate(0, 1), Train(1, 1), Evaluate(1, 1))
    assert next_actions(run.state) == (Train(0, 0),)


def test_what_runs_is_not_listed_until_a_later_session_takes_over() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=1))
    run.start(Train(0, 0))
    assert next_actions(run.state) == (Train(0, 1),)
    run.boot()
    assert next_actions(run.state) == (Train(0, 0), Train(0, 1))
    assert run.state.next_attempt(Train(0, 0)) == 2
    run.start(Train(0, 0))
    assert run.state.running[Train(0, 0)].number == 2
    assert next_actions(run.state) == (Train(0, 1),)


def test_an_attempt_that_outlived_its_coordinator_is_adopted_or_committed_as_it_is() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=1))
    run.start(Train(0, 0))
    run.start(Train(0, 1))
    run.boot()
    run.write(ActionStarted(action=Train(0, 0), attempt=1))
    assert next_actions(run.state) == (Train(0, 1),)
    run.finish(Train(0, 1))
    run.finish(Train(0, 0))
    assert run.state.attempts == {Train(0, 0): 1, Train(0, 1): 1}
    assert set(run.state.done) == {Train(0, 0), Train(0, 1)}


def test_restarts_use_up_no_attempts() -> None:
    run = Simulated(a_plan(0, num_rounds=1, max_attempts=1))
    for _ in range(5):
        run.start(Train(0, 0))
        run.boot()
    run.finish_in_order()
    assert run.state.attempts[Train(0, 0)] == 6
    assert set(run.state.done) == set(list_actions(run.state.plan))


def test_a_failed_action_runs_again_until_its_fold_is_failed() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=1, max_attempts=2))
    run.start(Train(0, 0))
    run.fail(Train(0, 0), "worker 3 died")
    assert next_actions(run.state) == (Train(0, 0), Train(0, 1))
    assert run.state.failed_folds == {}
    run.start(Train(0, 0))
    run.fail(Train(0, 0), "out of memory")
    assert run.state.attempts[Train(0, 0)] == 2
    assert run.state.failures == {Train(0, 0): ("worker 3 died", "out of memory")}
    assert run.state.failed_folds == {0: "training of round 0, fold 0: out of memory"}
    assert next_actions(run.state) == (Train(0, 1),)


def test_a_summary_goes_over_the_folds_that_are_left() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=1))
    run.exhaust(Train(0, 0))
    run.do(Train(0, 1))
    assert next_actions(run.state) == (Evaluate(0, 1),)
    run.do(Evaluate(0, 1))
    assert next_actions(run.state) == (Summarise(0),)
    assert not is_finished(run.state)
    run.do(Summarise(0))
    assert next_actions(run.state) == ()
    assert is_finished(run.state)


def test_a_run_whose_folds_have_all_failed_is_over_without_a_summary() -> None:
    run = Simulated(a_plan(0, 1, num_rounds=2))
    run.exhaust(Train(0, 0))
    run.exhaust(Train(0, 1))
    assert next_actions(run.state) == ()
    assert is_finished(run.state)
    with pytest.raises(RunError, match="summary of round 0 needs unfinished actions"):
        run.start(Summarise(0))
    assert run.state.done == {}


def test_what_was_trained_before_a_fold_failed_is_still_evaluated() -> None:
    run = Simulated(a_plan(0, num_rounds=2))
    run.do(Train(0, 0))
    run.exhaust(WriteMaps(0, 0))
    assert next_actions(run.state) == (Evaluate(0, 0),)
    run.finish_in_order()
    assert set(run.state.done) == {Train(0, 0), Evaluate(0, 0), Summarise(0)}


def test_inner_models_that_nobody_can_use_any_more_are_not_trained() -> None:
    run = Simulated(a_plan(0, num_rounds=2, maps="cross_fit", num_parts=3))
    run.exhaust(Train(0, 0, 1))
    assert next_actions(run.state) == (Train(0, 0),)
    run.finish_in_order()
    assert set(run.state.done) == {Train(0, 0), Evaluate(0, 0), Summarise(0)}


def test_a_summary_that_fails_too_often_fails_no_fold() -> None:
    run = Simulated(a_plan(0, num_rounds=2))
    run.do(Train(0, 0), Evaluate(0, 0))
    run.exhaust(Summarise(0))
    run.finish_in_order()
    assert run.state.failed_folds == {}
    assert is_finished(run.state)
    assert set(run.state.done) == set(list_actions(run.state.plan)) - {Summarise(0)}


def test_a_stopped_run_starts_nothing_and_goes_on_where_it_was() -> None:
    run = Simulated(a_plan(0, num_rounds=1))
    before = next_actions(run.state)
    run.start(Train(0, 0))
    run.write(RunStopped(), "cli")
    assert run.state.stopped
    assert next_actions(run.state) == ()
    assert not is_finished(run.state)
    run.write(RunResumed(), "cli")
    assert next_actions(run.state) == ()  # the action still runs in the session
    run.boot()
    assert next_actions(run.state) == before


def test_an_attempt_may_end_after_a_stop() -> None:
    run = Simulated(a_plan(0, num_rounds=1))
    run.start(Train(0, 0))
    run.write(RunStopped(), "cli")
    run.finish(Train(0, 0))
    assert set(run.state.done) == {Train(0, 0)}


# Random sequences of events


@pytest.mark.slow
@given(plans, randoms, st.integers(0, 6))
def test_any_course_with_failures_and_restarts_commits_the_same(
    plan: CirclePlan, rng: random.Random, num_restarts: int
) -> None:
    run = run_at_random(plan, rng, frozenset(), num_restarts)
    undisturbed = Simulated(plan).finish_in_order()
    assert set(run.state.done) == set(list_actions(plan))
    assert run.state.done == undisturbed.state.done
    committed = list(all_events(run, ActionDone))
    assert len(committed) == len(set(committed))
    assert run.state.running == {}
    assert run.state.failed_folds == {}
    assert is_finished(run.state)
    assert {stage for row in compute_stages(run.state).values() for stage in row.values()} == {
        "done"
    }


@pytest.mark.slow
@given(plans, randoms, st.integers(0, 6), st.floats(0, 0.3))
def test_what_always_fails_takes_only_what_needs_it_along(
    plan: CirclePlan, rng: random.Random, num_restarts: int, share: float
) -> None:
    doomed = frozenset(action for action in list_actions(plan) if rng.random() < share)
    run = run_at_random(plan, rng, doomed, num_restarts)
    assert is_finished(run.state)
    assert figures(run) == figures(Simulated(plan).finish_in_order(doomed))
    broken = {action.fold for action in doomed if not isinstance(action, Summarise)}
    assert set(run.state.failed_folds) <= broken
    for action in list_actions(plan):
        if not isinstance(action, Summarise) and action.fold not in broken:
            assert action in run.state.done
    for fold in run.state.failed_folds:
        assert "failed" in {row[fold] for row in compute_stages(run.state).values()}
    for fold in broken:  # the first doomed action of a fold is always reached
        assert fold in run.state.failed_folds
    for action, causes in run.state.failures.items():
        assert len(causes) <= plan.circle.max_attempts, action


@settings(max_examples=50)
@given(plans, randoms, st.data())
def test_a_state_and_what_came_later_make_the_same_as_all_events(
    plan: CirclePlan, rng: random.Random, data: st.DataObject
) -> None:
    run = run_at_random(plan, rng, frozenset(), 3)
    cut = data.draw(st.integers(0, len(run.events)))
    before = replay_events(run.events[:cut])
    kept = pickle.dumps(before)
    assert replay_events(run.events[cut:], before) == replay_events(run.events) == run.state
    assert before == pickle.loads(kept)  # replaying changes no earlier state
    assert replay_events([], before) == before


def test_states_actions_and_errors_survive_pickling() -> None:
    run = Simulated(CROSS_FIT).finish_in_order()
    assert pickle.loads(pickle.dumps(run.state)) == run.state
    assert pickle.loads(pickle.dumps(list_actions(CROSS_FIT))) == list_actions(CROSS_FIT)


# Refused events


@pytest.mark.parametrize(
    ("change", "session", "why"),
    [
        (SessionBooted(), "s1", "s1 already runs the run"),
        (RunResumed(), "cli", "the run is already going on"),
        (
            ActionStarted(action=Train(0, 1), attempt=1),
            "s0",
            "the writer s0 is not the coordinator s1",
        ),
        (
            ActionStarted(action=Train(0, 0), attempt=2),
            "s1",
            "the training of round 0, fold 0 is done",
        ),
        (
            ActionStarted(action=WriteMaps(0, 0), attempt=2),
            "s1",
            "the maps of round 0, fold 0 is running",
        ),
        (
            ActionStarted(action=Evaluate(0, 1), attempt=1),
            "s1",
            "evaluation of round 0, fold 1 needs unfinished actions",
        ),
        (ActionStarted(action=Summarise(0), attempt=1), "s1", "summary of round 0 needs"),
        (ActionStarted(action=Train(0, 7), attempt=1), "s1", "fold 7 is not in the plan"),
        (
            ActionStarted(action=Train(0, 1, 2), attempt=1),
            "s1",
            "fold 1, part 2 is not in the plan",
        ),
        (ActionStarted(action=Train(0, 1), attempt=2), "s1", "fold 1 is at attempt 0, not 2"),
        (ActionStarted(action=Train(0, 2), attempt=4), "s1", "fold 2 has failed too often"),
        (ActionDone(action=Train(0, 0), attempt=1, result={}), "s1", "attempt 1 .* is not running"),
        (
            ActionDone(action=WriteMaps(0, 0), attempt=2, result={}),
            "s1",
            "attempt 2 .* not running",
        ),
        (
            ActionDone(action=WriteMaps(0, 0), attempt=1, result={}),
            "s0",
            "s0 is not the coordinator",
        ),
        (
            ActionFailed(action=Train(0, 1), attempt=1, cause=""),
            "s1",
            "attempt 1 .* is not running",
        ),
        (
            RunBegan(plan=IN_SAMPLE, fingerprint="", config_digest="", version=""),
            "cli",
            "the run has begun already",
        ),
    ],
)
def test_an_event_that_cannot_follow_is_refused_with_the_reason(
    change: LedgerChange, session: str, why: str
) -> None:
    run = Simulated(a_plan(0, 1, 2, num_rounds=2))
    run.do(Train(0, 0))
    run.exhaust(Train(0, 2))
    run.start(WriteMaps(0, 0))
    number, before = len(run.events) + 1, run.state
    with pytest.raises(RunError, match=why) as caught:
        run.write(change, session)
    assert str(caught.value).startswith(f"Event {number} of the ledger cannot be {change.kind!r}: ")
    assert run.state == before


def test_a_stopped_run_refuses_to_start_or_stop_again() -> None:
    run = Simulated(a_plan(0))
    run.write(RunStopped(), "cli")
    with pytest.raises(RunError, match="the run is already stopped"):
        run.write(RunStopped(), "cli")
    with pytest.raises(RunError, match=r"the run is stopped\. Restore"):
        run.start(Train(0, 0))


def test_events_come_without_gaps_and_open_with_the_plan() -> None:
    run = Simulated(a_plan(0))
    with pytest.raises(RunError, match=r"Event 4 .*the previous event has number 2"):
        replay_events([LedgerEvent(4, "s2", SessionBooted())], run.state)
    with pytest.raises(RunError, match=r"Event 1 .*must open with 'begin'"):
        replay_events([LedgerEvent(1, "s1", SessionBooted())])
    with pytest.raises(RunError, match=r"Event 2 .*must open with"):
        replay_events([LedgerEvent(2, "cli", run.state.begin)])
    assert replay_events([]) is None


# Progress


def test_progress_shows_every_fold_in_every_round() -> None:
    run = Simulated(a_plan(0, 1, 2, 3, num_rounds=2, max_attempts=1))
    assert compute_stages(run.state) == {
        number: dict.fromkeys(range(4), "waiting") for number in range(2)
    }
    run.do(Train(0, 0), Evaluate(0, 0))
    run.start(WriteMaps(0, 0))
    run.do(Train(0, 1), WriteMaps(0, 1), Evaluate(0, 1))
    run.start(Train(1, 1))
    run.exhaust(Train(0, 2))
    run.do(Train(0, 3))
    run.start(Evaluate(0, 3))
    assert compute_stages(run.state) == {
        0: {0: "maps", 1: "done", 2: "failed", 3: "evaluating"},
        1: {0: "waiting", 1: "training", 2: "failed", 3: "waiting"},
    }
    assert json.loads(json.dumps(compute_stages(run.state)))["0"]["3"] == "evaluating"
    run.start(WriteMaps(0, 3))
    assert compute_stages(run.state)[0][3] == "maps"
    run.write(RunStopped(), "cli")
    assert compute_stages(run.state) == {
        0: {0: "waiting", 1: "done", 2: "failed", 3: "waiting"},
        1: {0: "waiting", 1: "waiting", 2: "failed", 3: "waiting"},
    }


def test_the_round_whose_maps_failed_is_failed_though_it_was_evaluated() -> None:
    run = Simulated(a_plan(0, num_rounds=3, max_attempts=1))
    run.do(Train(0, 0), Evaluate(0, 0), WriteMaps(0, 0), Train(1, 0), Evaluate(1, 0))
    run.exhaust(WriteMaps(1, 0))
    assert compute_stages(run.state) == {0: {0: "done"}, 1: {0: "failed"}, 2: {0: "failed"}}
