"""Coordinator actor: schedules the actions of a circle run, with the ledger as memory.

The actor is detached, named after the run and restarted by Ray after every death. Methods return
at once: a worker thread reads the ledger, starts actions as Ray tasks and commits their results as
events. All state outside the ledger may be lost.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray

from mtil.circle.heartbeat import HeartbeatThread
from mtil.circle.ledger import AppendConflict, Ledger, SessionFenced
from mtil.circle.state import (
    ActionDone,
    ActionFailed,
    ActionStarted,
    CircleState,
    is_finished,
    next_actions,
)
from mtil.distributed.circle.actions import run_action
from mtil.distributed.circle.restarts import RestartCounter
from mtil.distributed.runtime import cluster, failures
from mtil.distributed.runtime.gauges import COORDINATOR_GAUGES, Gauges
from mtil.distributed.runtime.resources import count_parallel_trainings, plan_reserved_cpus
from mtil.errors import (
    MtilError,
    NotFoundError,
    RefusedError,
    ResourceError,
    RunError,
    StorageError,
)
from mtil.process.logs import log_json_to_stderr
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Train, WriteMaps, max_parallel_trainings

COORDINATOR_NAMESPACE = "mtil"
_POLL_S = 1.0
_RETRY_PAUSE_S = (1.0, 30.0)
"""First and longest pause before a retry after an outage of the storage or a machine."""
_REFUSED_S = 60.0
"""Time after which a refusing storage counts as misconfigured. A starting server may not know its
users yet."""
_MAX_LOSSES = 8
"""Consecutive losses of processes after which an action counts as failed."""
_RESTART_S = (3.0, 10.0)
"""Pause before a failed coordinator exits for a restart by Ray, by number of consecutive errors."""
_NEW_COUNT_S = 600.0
"""Working time after which an error starts a new count of consecutive errors."""
_GRACE_S = 300.0
"""Idle time without a client after which a coordinator ends for good."""
_CANCEL_S = 20.0
_SETTLE_S = 3.0
"""Wait after cancelled tasks: their actors die a moment later."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass
class _Task:
    """Action in flight."""

    action: Action
    attempt: int
    losses: int = 0
    progress: tuple[str, ...] = ()
    """Files committed by the action at the last loss of its processes."""
    not_before: float = 0.0

    def record_loss(self, progress: tuple[str, ...], now: float) -> bool:
        """Record a loss. Return True if the action may be retried after a pause.

        Args:
            progress: files committed by the action up to now. New files reset the count of losses.
            now: present time, from `time.monotonic`.
        """
        if progress != self.progress:
            self.progress, self.losses = progress, 0
        self.not_before = now + min(_RETRY_PAUSE_S[0] * 2**self.losses, _RETRY_PAUSE_S[1])
        self.losses += 1
        return self.losses <= _MAX_LOSSES


class Coordinator:
    """Actor that schedules the actions of a run. See `start_coordinator`."""

    def __init__(self, run_uri: str, grace_s: float = _GRACE_S) -> None:
        log_json_to_stderr(run=run_uri)
        self._last_poll = time.monotonic()
        # Read before the first poll: a client counts the reported errors, and the count must not
        # fall after a restart.
        restarts = RestartCounter(_actor_name(run_uri))
        self._errors, self._deaths = list(restarts.errors), restarts.deaths
        self._worker = ThreadPoolExecutor(1, "mtil-circle").submit(
            self._work_until_end, run_uri, restarts
        )
        threading.Thread(target=self._end_when_idle, args=(grace_s,), daemon=True).start()

    def _work_until_end(self, run_uri: str, restarts: RestartCounter) -> None:
        """Work until the run ends.

        Exit the process after an unexpected error, so Ray restarts the actor, up to a limit.
        """
        # Counted as a death until the session works: a killed process cannot count itself.
        restarts.begin()
        self._raise_if_exhausted(restarts)
        start = time.monotonic()
        try:
            self._open_session(run_uri, restarts).work()
        except MtilError:
            # A final error: `poll` passes the exception to the clients.
            restarts.reset()
            raise
        except Exception as error:  # noqa: BLE001
            _log.exception("The coordinator has failed")
            if time.monotonic() - start > _NEW_COUNT_S:
                restarts.reset()
            restarts.fail(describe_coordinator_error(error))
            self._errors = list(restarts.errors)
            self._raise_if_exhausted(restarts)
            time.sleep(_RESTART_S[len(self._errors) - 1])
            # Ray restarts an actor only if the process dies.
            os._exit(1)
        restarts.reset()

    def _open_session(self, run_uri: str, restarts: RestartCounter) -> "CoordinatorSession":
        return CoordinatorSession(run_uri, restarts)

    def _raise_if_exhausted(self, restarts: RestartCounter) -> None:
        """Raise the last cause after too many consecutive failures.

        Raises:
            RunError: with the last cause.
        """
        reason = restarts.verdict()
        if reason:
            restarts.reset()
            raise RunError(reason)

    def _end_when_idle(self, grace_s: float) -> None:
        """End the idle actor after `grace_s` without a poll. Detached runs have no client."""
        wait([self._worker])
        while time.monotonic() - self._last_poll < grace_s:
            time.sleep(min(_POLL_S, grace_s))
        this_actor: Any = ray.get_runtime_context().current_actor
        this_actor.leave.options(max_task_retries=0).remote()

    def poll(self) -> dict[str, Any]:
        """Return the status of the coordinator.

        Returns:
            `over`: True after the end of the work. `error`: kind and message of the final error, or
            None. `errors`: causes of consecutive errors with restarts. `deaths`: number of
            consecutive deaths.
        """
        self._last_poll = time.monotonic()
        answer = {"over": False, "error": None, "errors": self._errors, "deaths": self._deaths}
        if not self._worker.done():
            return answer
        error = self._worker.exception()
        kind = None if error is None else (type(error).__name__, str(error))
        return answer | {"over": True, "error": kind}

    def leave(self) -> None:
        """End the actor for good."""
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


class CoordinatorSession:
    """Work of a coordinator process, from boot to end."""

    _cannot_free = False
    """True after the first failure to free resources, which is logged once."""

    def __init__(self, run_uri: str, restarts: RestartCounter) -> None:
        self._restarts = restarts
        self._run = retry_storage(lambda: Run.open(run_uri))
        self._ledger = retry_storage(lambda: Ledger.open(self._run.store))
        self._tasks: dict[ray.ObjectRef[Any], _Task] = {}
        self._lost: list[_Task] = []
        """Tasks waiting for a retry. Each keeps its place among the running tasks."""
        self._heart = HeartbeatThread(self._run.store, self._ledger.session)
        self._gauges = Gauges(COORDINATOR_GAUGES, run=run_uri)

    def work(self) -> None:
        """Run actions until all are done, or the run is stopped or taken over.

        Raises:
            MtilError: if the ledger is damaged, the run is unreadable, or an action failed by a
                user error.
        """
        state = retry_storage(self._ledger.boot)
        try:
            # The heart beats until all tasks have ended: no successor may start while they write.
            with self._heart:
                try:
                    while not (is_finished(state) or state.stopped):
                        self._free_orphans()
                        state = self._start_actions(state)
                        self._set_gauges(state)
                        state = self._collect_results(state)
                        self._restarts.work()
                finally:
                    self._cancel_tasks()
        except SessionFenced as fenced:
            _log.warning("%s", fenced)

    def _free_orphans(self) -> None:
        """Free placement groups of dead actors. Called repeatedly: an actor may die at any time.

        Uses internals of Ray. On a failure of the internals a training may wait longer, but still
        runs.
        """
        try:
            cluster.free_orphaned_groups()
        except Exception:  # noqa: BLE001
            if not self._cannot_free:
                _log.exception("Resources of dead actors could not be freed")
            self._cannot_free = True

    def _cancel_tasks(self) -> None:
        """Cancel all tasks and wait for their end."""
        for ref in self._tasks:
            ray.cancel(ref, force=True, recursive=True)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_CANCEL_S)
            time.sleep(_SETTLE_S)

    def _set_gauges(self, state: CircleState) -> None:
        waiting = next_actions(state)
        tasks = [*self._tasks.values(), *self._lost]
        here = [*waiting, *(task.action for task in tasks)]
        self._gauges.set(
            actions_waiting=len(waiting),
            actions_running=len(tasks),
            actions_done=len(state.done),
            actions_failed=sum(len(causes) for causes in state.failures.values()),
            round=min((action.round for action in here), default=0),
        )

    def _start_actions(self, state: CircleState) -> CircleState:
        """Start actions as far as the cluster has room. Lost actions go first."""
        ready = next_actions(state)
        due = [task for task in self._lost if task.not_before <= time.monotonic()]
        if not (ready or due):
            return state
        room = self._count_room()
        for task in due[: max(0, room - len(self._tasks))]:
            self._lost.remove(task)
            self._launch_task(task, state, room)
        for action in ready:
            if len(self._tasks) + len(self._lost) >= room:
                break
            # The event precedes the launch: an action without an event never runs.
            started = self._append(ActionStarted(action=action, attempt=state.next_attempt(action)))
            if started is None:
                # A different writer came first, perhaps with a stop: decide again.
                break
            state = started
            self._launch_task(_Task(action, state.attempts[action]), state, room)
        return state

    def _launch_task(self, task: _Task, state: CircleState, room: int) -> None:
        action = task.action
        num_parallel = min(room, max_parallel_trainings(state.plan))
        evaluated = (other for other in state.done if isinstance(other, Evaluate))
        folds = sorted(other.fold for other in evaluated if other.round == action.round)
        # The task itself reserves no CPUs: its workers and actors do. No retries by Ray, since the
        # coordinator counts losses and retries after a pause.
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(run_action)
        ref = remote.options(name=str(action)).remote(self._run.uri, action, folds, num_parallel)
        self._tasks[ref] = task
        _log.info("started", extra={"fields": asdict(action) | {"attempt": task.attempt}})

    def _collect_results(self, state: CircleState) -> CircleState:
        """Wait briefly for tasks, commit their results and read new events of other writers."""
        ready: list[ray.ObjectRef[Any]] = []
        if self._tasks:
            ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)
        for ref in ready:
            task = self._tasks.pop(ref)
            change = self._resolve_outcome(task, ref)
            if change is None:
                self._lost.append(task)
                continue
            # None means that a different writer took the number: try the next number.
            while self._append(change) is None:
                pass
            self._restarts.reset()
            cause = {"cause": change.cause} if isinstance(change, ActionFailed) else {}
            _log.info(change.kind, extra={"fields": asdict(task.action) | cause})
        refreshed = retry_storage(self._ledger.refresh)
        assert refreshed is not None
        return refreshed

    def _resolve_outcome(
        self, task: _Task, ref: "ray.ObjectRef[Any]"
    ) -> ActionDone | ActionFailed | None:
        """Return the event for a finished task. None if the task is to be retried.

        Raises:
            UserError: if the task failed by a user error, which a retry would not fix.
        """
        action, attempt = task.action, task.attempt
        try:
            return ActionDone(action=action, attempt=attempt, result=ray.get(ref))
        except (MtilError, ray.exceptions.RayError) as error:
            # A lost process or machine is no failure of the action.
            if failures.is_loss(error) and task.record_loss(
                self._list_progress(action), time.monotonic()
            ):
                _log.warning("The %s lost a process or a machine: %s", action, error)
                return None
            if (user_error := failures.find_user_error(error)) is not None:
                raise user_error from error
            return ActionFailed(
                action=action, attempt=attempt, cause=describe_coordinator_error(error)
            )

    def _list_progress(self, action: Action) -> tuple[str, ...]:
        """Return the files already committed by an unfinished action."""
        if isinstance(action, Train):
            folder = names.checkpoint_folder(action)
        elif isinstance(action, WriteMaps):
            folder = self._run.map_folder(action)
        else:
            return ()
        return tuple(retry_storage(lambda: self._run.store.names(folder)))

    def _append(self, change: ActionStarted | ActionDone | ActionFailed) -> CircleState | None:
        """Write an event. None if a different writer came first; the event has been read."""
        try:
            return retry_storage(lambda: self._ledger.append(change))
        except AppendConflict:
            return None

    def _count_room(self) -> int:
        """Return the number of actions with room on the cluster at once."""
        try:
            cpus = plan_reserved_cpus(self._run.config)
        except ResourceError as error:
            # The plan fitted at the start, so machines have been lost since.
            self._set_waiting(f"The coordinator waits for machines: {error}")
            return 0
        self._set_waiting("")
        return count_parallel_trainings(self._run.config, cpus)

    def _set_waiting(self, reason: str) -> None:
        """Set the reason for waiting, for the log and `mtil status`. Empty if not waiting."""
        if reason and reason != self._heart.waits:
            _log.warning("%s", reason)
        self._heart.waits = reason


def retry_storage(function: Callable[[], _T]) -> _T:
    """Call a function until the storage answers.

    Raises:
        NotFoundError: from the function, at once.
        RefusedError: after the storage has refused for `_REFUSED_S`.
    """
    pause, max_pause = _RETRY_PAUSE_S
    refused_s = 0.0
    while True:
        try:
            return function()
        except NotFoundError:
            raise
        except StorageError as error:
            is_refused = isinstance(error, RefusedError)
            if is_refused and refused_s >= _REFUSED_S:
                raise
            _log.warning("The run's storage failed, which is tried again: %s", error)
            time.sleep(pause)
            refused_s = refused_s + pause if is_refused else 0.0
            pause = min(2 * pause, max_pause)


def find_coordinator(run: Run) -> Any | None:
    """Return a handle of the run's coordinator on the connected cluster. None if none exists."""
    with suppress(ValueError):
        return ray.get_actor(_actor_name(run.uri), COORDINATOR_NAMESPACE)
    return None


def start_coordinator(run: Run, grace_s: float = _GRACE_S) -> Any:
    """Return a handle of the run's coordinator on the connected cluster, created if missing.

    Args:
        run: the run.
        grace_s: idle time before the actor ends, so clients can poll the final status.
    """
    # Ray restarts the actor without limit; `RestartCounter` ends repeated failures.
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
    # The variable may be set only on the head: pass the value to the machine of the actor.
    machines = os.environ.get(cluster.MACHINES_VARIABLE)
    return actor.options(
        name=_actor_name(run.uri),
        namespace=COORDINATOR_NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        runtime_env={"env_vars": {cluster.MACHINES_VARIABLE: machines}} if machines else None,
    ).remote(run.uri, grace_s)


def dismiss_coordinator(handle: Any) -> None:
    """End an idle coordinator."""
    with suppress(ray.exceptions.RayActorError):
        ray.get(handle.leave.options(max_task_retries=0).remote())


def _actor_name(run_uri: str) -> str:
    """Return the actor name of a run. Hashed, because Ray restricts the characters of names."""
    return f"circle-{hashlib.sha256(run_uri.encode()).hexdigest()[:16]}"


def describe_coordinator_error(error: BaseException) -> str:
    """Return the cause of an error as a line of text."""
    mtil_error = failures.find_mtil_error(error)
    if mtil_error is not None:
        return str(mtil_error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    # A Ray error quotes the text of the original error, so the kind of Ray adds nothing.
    if isinstance(error, ray.exceptions.RayError):
        return lines[-1] if lines else type(error).__name__
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
