"""The coordinator: an actor that has a circle's actions done, and the ledger for its memory.

It is named after the run, detached from whoever started it, and comes back as often as it dies.
Its methods answer at once: a thread of its own does the work, which is to read the ledger, to
start what may run as Ray tasks, and to commit what comes back as events. Whatever it knows beside
the ledger it can lose.
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

from mtil.circle.heartbeat import Heart
from mtil.circle.ledger import Fenced, Ledger, Overtaken
from mtil.circle.state import Done, Failed, Started, State, is_over, next_actions
from mtil.distributed.circle.actions import perform
from mtil.distributed.circle.restarts import Restarts
from mtil.distributed.runtime import cluster, failures, preflight
from mtil.distributed.runtime.gauges import COORDINATOR, Gauges
from mtil.distributed.runtime.resources import reserved_cpus
from mtil.errors import (
    MtilError,
    NotFoundError,
    RefusedError,
    ResourceError,
    RunError,
    StorageError,
)
from mtil.process.logs import to_stderr
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Action, Evaluate, Train, WriteMaps

NAMESPACE = "mtil"
_POLL_S = 1.0
_WAIT_S = (1.0, 30.0)
"""Before what failed for want of the storage or a machine is tried again: at first, and at most."""
_REFUSED_S = 60.0
"""After which a storage that refuses is believed: one that comes up may not know its users yet."""
_MAX_LOSSES = 8
"""How often in a row an action may lose its processes before that counts as a failure."""
_RESTART_S = (3.0, 10.0)
"""Before a coordinator that has failed ends, for Ray to start it again: by errors in a row."""
_APART_S = 600.0
"""Errors of processes that worked for longer are not in a row."""
_GRACE_S = 300.0
"""After which a coordinator that has nothing to do, and is asked by nobody, ends for good."""
_CANCEL_S = 20.0
_AFTER_S = 3.0
"""Actors die a moment after the tasks that they work for."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass
class _Task:
    """An action in flight."""

    action: Action
    attempt: int
    losses: int = 0
    reached: tuple[str, ...] = ()
    """What it had committed when it last lost its processes."""
    not_before: float = 0.0

    def lose(self, reached: tuple[str, ...], now: float) -> bool:
        """Say whether the action is to be tried again, after a while, now that it has lost those.

        One that has come further since the time before has not lost them in a row.
        """
        if reached != self.reached:
            self.reached, self.losses = reached, 0
        self.not_before = now + min(_WAIT_S[0] * 2**self.losses, _WAIT_S[1])
        self.losses += 1
        return self.losses <= _MAX_LOSSES


class Coordinator:
    """Schedules the actions of the run at a URI; see `start`."""

    def __init__(self, run_uri: str, grace_s: float = _GRACE_S) -> None:
        to_stderr(run=run_uri)
        self._asked = time.monotonic()
        self._errors: list[str] = []
        self._deaths = 0
        self._work = ThreadPoolExecutor(1, "mtil-circle").submit(self._do, run_uri)
        threading.Thread(target=self._retire, args=(grace_s,), daemon=True).start()

    def _do(self, run_uri: str) -> None:
        """Work until the run ends; after an error, in a new process, and not for ever."""
        restarts = Restarts(_name(run_uri))
        self._errors, self._deaths = list(restarts.errors), restarts.deaths
        restarts.begin()
        self._end_after(restarts)
        start = time.monotonic()
        try:
            self._session(run_uri, restarts).work()
        except MtilError:  # the clients are told
            restarts.forget()
            raise
        except Exception as error:  # noqa: BLE001
            _log.exception("The coordinator has failed")
            if time.monotonic() - start > _APART_S:
                restarts.forget()
            restarts.fail(told(error))
            self._errors = list(restarts.errors)
            self._end_after(restarts)
            time.sleep(_RESTART_S[len(self._errors) - 1])
            os._exit(1)  # Ray starts it again
        restarts.forget()

    def _session(self, run_uri: str, restarts: Restarts) -> "Session":
        return Session(run_uri, restarts)

    def _end_after(self, restarts: Restarts) -> None:
        """End if there were too many failures in a row.

        Raises:
            RunError: with the last cause.
        """
        verdict = restarts.verdict()
        if verdict:
            restarts.forget()
            raise RunError(verdict)

    def _retire(self, grace_s: float) -> None:
        """End this actor once nobody has asked for a while; nobody does who was detached."""
        wait([self._work])
        while time.monotonic() - self._asked < grace_s:
            time.sleep(min(_POLL_S, grace_s))
        me: Any = ray.get_runtime_context().current_actor
        me.leave.options(max_task_retries=0).remote()

    def poll(self) -> dict[str, Any]:
        """Say how this is.

        Returns:
            whether it is `over`, by which `error`, as its kind and its message; the causes of the
            `errors` in a row that it was started again after, and the number of `deaths`.
        """
        self._asked = time.monotonic()
        answer = {"over": False, "error": None, "errors": self._errors, "deaths": self._deaths}
        if not self._work.done():
            return answer
        error = self._work.exception()
        kind = None if error is None else (type(error).__name__, str(error))
        return answer | {"over": True, "error": kind}

    def leave(self) -> None:
        """End this actor for good."""
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


class Session:
    """A coordinator's work from its boot to its end."""

    _cannot_free = False
    """Whether it was logged that dead actors keep what they hold."""

    def __init__(self, run_uri: str, restarts: Restarts) -> None:
        self._restarts = restarts
        self._run = patiently(lambda: Run.open(run_uri))
        self._ledger = patiently(lambda: Ledger.open(self._run.store))
        self._tasks: dict[ray.ObjectRef[Any], _Task] = {}
        self._lost: list[_Task] = []
        """What waits to be tried again; it keeps its place among what runs."""
        self._heart = Heart(self._run.store, self._ledger.session)
        self._gauges = Gauges(COORDINATOR, run=run_uri)

    def work(self) -> None:
        """Have actions done until there are none, or the run is stopped or taken over.

        Raises:
            MtilError: if the ledger is damaged, the run cannot be read, or an action failed by a
                user's mistake.
        """
        state = patiently(self._ledger.boot)
        try:
            with self._heart:  # until nothing writes any more
                try:
                    while not (is_over(state) or state.stopped):
                        self._free_orphans()
                        state = self._start(state)
                        self._gauge(state)
                        state = self._collect(state)
                        self._restarts.work()
                finally:
                    self._put_down()
        except Fenced as fenced:
            _log.warning("%s", fenced)

    def _free_orphans(self) -> None:
        """Free what dead actors hold: one may die at any time.

        By means that Ray promises nothing of: where they fail, a training may wait, but goes on.
        """
        try:
            cluster.free_orphans()
        except Exception:  # noqa: BLE001
            if not self._cannot_free:
                _log.exception("What dead actors hold could not be freed")
            self._cannot_free = True

    def _put_down(self) -> None:
        """End what is in flight, and wait for its end."""
        for ref in self._tasks:
            ray.cancel(ref, force=True, recursive=True)
        if self._tasks:
            ray.wait(list(self._tasks), num_returns=len(self._tasks), timeout=_CANCEL_S)
            time.sleep(_AFTER_S)

    def _gauge(self, state: State) -> None:
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

    def _start(self, state: State) -> State:
        """Start what may run and finds room, first what was lost."""
        ready = next_actions(state)
        due = [task for task in self._lost if task.not_before <= time.monotonic()]
        if not (ready or due):
            return state
        room = self._room()
        for task in due[: max(0, room - len(self._tasks))]:
            self._lost.remove(task)
            self._launch(task, state)
        for action in ready:
            if len(self._tasks) + len(self._lost) >= room:
                break
            started = self._append(Started(action=action, attempt=state.next_attempt(action)))
            if started is None:
                break  # decide again
            state = started
            self._launch(_Task(action, state.attempts[action]), state)
        return state

    def _launch(self, task: _Task, state: State) -> None:
        action = task.action
        evaluated = (other for other in state.done if isinstance(other, Evaluate))
        folds = sorted(other.fold for other in evaluated if other.round == action.round)
        remote: Any = ray.remote(num_cpus=0, max_retries=0)(perform)
        ref = remote.options(name=str(action)).remote(self._run.uri, action, folds)
        self._tasks[ref] = task
        _log.info("started", extra={"fields": asdict(action) | {"attempt": task.attempt}})

    def _collect(self, state: State) -> State:
        """Wait a little for tasks, commit what came of them, and see who else has written."""
        ready: list[ray.ObjectRef[Any]] = []
        if self._tasks:
            ready, _ = ray.wait(list(self._tasks), num_returns=1, timeout=_POLL_S)
        else:
            time.sleep(_POLL_S)
        for ref in ready:
            task = self._tasks.pop(ref)
            change = self._outcome(task, ref)
            if change is None:
                self._lost.append(task)
                continue
            while self._append(change) is None:
                pass  # somebody else's event came first
            self._restarts.forget()
            cause = {"cause": change.cause} if isinstance(change, Failed) else {}
            _log.info(change.kind, extra={"fields": asdict(task.action) | cause})
        refreshed = patiently(self._ledger.refresh)
        assert refreshed is not None
        return refreshed

    def _outcome(self, task: _Task, ref: "ray.ObjectRef[Any]") -> Done | Failed | None:
        """Return what a task came to; None if it is to be launched again.

        Raises:
            UserError: if it failed by a user's mistake, which another attempt would not mend.
        """
        action, attempt = task.action, task.attempt
        try:
            return Done(action=action, attempt=attempt, result=ray.get(ref))
        except (MtilError, ray.exceptions.RayError) as error:
            if failures.is_loss(error) and task.lose(self._reached(action), time.monotonic()):
                _log.warning("The %s lost what it ran on: %s", action, error)
                return None
            if (mistaken := failures.mistake(error)) is not None:
                raise mistaken from error
            return Failed(action=action, attempt=attempt, cause=told(error))

    def _reached(self, action: Action) -> tuple[str, ...]:
        """Return what an action has committed of its own on its way."""
        if isinstance(action, Train):
            folder = names.checkpoints(action)
        elif isinstance(action, WriteMaps):
            folder = self._run.map_folder(action)
        else:
            return ()
        return tuple(patiently(lambda: self._run.store.names(folder)))

    def _append(self, change: Started | Done | Failed) -> State | None:
        """Write an event; None if another's came first, which has been taken in."""
        try:
            return patiently(lambda: self._ledger.append(change))
        except Overtaken:
            return None

    def _room(self) -> int:
        """Return how many actions the cluster has room for at once."""
        config = self._run.config.train
        try:
            cpus = reserved_cpus(self._run.config)
        except ResourceError as error:  # machines that there were at the start are lost
            self._wait_for(f"The coordinator waits for machines: {error}")
            return 0
        self._wait_for("")
        return preflight.room(
            cluster.nodes(), num_workers=config.num_workers, cpus=cpus, gpus=config.gpus_per_worker
        )

    def _wait_for(self, what: str) -> None:
        """Say what is waited for, in a sentence, to whoever reads the log or the status."""
        if what and what != self._heart.waits:
            _log.warning("%s", what)
        self._heart.waits = what


def patiently(function: Callable[[], _T]) -> _T:
    """Call a function again and again until the storage is reached, or has refused for long."""
    pause, most = _WAIT_S
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
            pause = min(2 * pause, most)


def find(run: Run) -> Any | None:
    """Return a handle of the run's coordinator on this cluster, if there is one."""
    with suppress(ValueError):
        return ray.get_actor(_name(run.uri), NAMESPACE)
    return None


def start(run: Run, grace_s: float = _GRACE_S) -> Any:
    """Return a handle of the run's coordinator on this cluster, which is made if need be.

    Args:
        run: the run.
        grace_s: how long it stays for whoever asks how it ended.
    """
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
    machines = os.environ.get(cluster.MACHINES)  # set on the head alone, perhaps
    return actor.options(
        name=_name(run.uri),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        runtime_env={"env_vars": {cluster.MACHINES: machines}} if machines else None,
    ).remote(run.uri, grace_s)


def dismiss(handle: Any) -> None:
    """End a coordinator that has nothing more to do."""
    with suppress(ray.exceptions.RayActorError):
        ray.get(handle.leave.options(max_task_retries=0).remote())


def _name(run_uri: str) -> str:
    """Return the name of the actor: letters that Ray takes, whatever the run is called."""
    return f"circle-{hashlib.sha256(run_uri.encode()).hexdigest()[:16]}"


def told(error: BaseException) -> str:
    """Say in a line what failed."""
    ours = failures.cause(error)
    if ours is not None:
        return str(ours)
    lines = [line for line in str(error).splitlines() if line.strip()]
    if isinstance(error, ray.exceptions.RayError):  # which quotes another error's text
        return lines[-1] if lines else type(error).__name__
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__
