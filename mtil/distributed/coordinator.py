"""The coordinator: an actor that has a circle's actions done, and the ledger for its memory.

It is named after the run, detached from whoever started it, and comes back as often as it dies.
Its methods answer at once: a thread of its own does the work, which is to read the ledger, to
start what may run as Ray tasks, and to commit what comes back as events. Whatever it knows beside
the ledger it can lose.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import ray

from mtil.circle import Done, Failed, Started, State, is_over, next_actions
from mtil.distributed import cluster, preflight
from mtil.distributed.actions import perform
from mtil.distributed.gauges import COORDINATOR, Gauges
from mtil.distributed.trainer import reserved_cpus
from mtil.errors import MtilError, NotFoundError, RefusedError, ResourceError, StorageError
from mtil.heartbeat import Heart
from mtil.ledger import Fenced, Ledger, Overtaken
from mtil.logs import to_stderr
from mtil.plan import Action, Evaluate
from mtil.run import Run

NAMESPACE = "mtil"
_POLL_S = 1.0
_WAIT_S = (1.0, 30.0)
"""Before what failed for want of the storage or a machine is tried again: at first, and at most."""
_REFUSED_S = 60.0
"""After which a storage that refuses is believed: one that comes up may not know its users yet."""
_MAX_LOSSES = 8
"""How often in a row an action may lose its processes before that counts as a failure."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass
class _Task:
    """An action in flight."""

    action: Action
    attempt: int
    losses: int = 0


class Coordinator:
    """Schedules the actions of the run at a URI; see `start`."""

    def __init__(self, run_uri: str) -> None:
        to_stderr(run=run_uri)
        work = ThreadPoolExecutor(1, "mtil-circle")
        self._work = work.submit(lambda: Session(run_uri).work())

    def poll(self) -> dict[str, Any]:
        """Say whether this has ended, and by which error, as its kind and its message."""
        if not self._work.done():
            return {"over": False, "error": None}
        error = self._work.exception()
        told = None if error is None else (type(error).__name__, str(error))
        return {"over": True, "error": told}

    def leave(self) -> None:
        """End this actor for good."""
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


class Session:
    """A coordinator's work from its boot to its end."""

    def __init__(self, run_uri: str) -> None:
        self._run = patiently(lambda: Run.open(run_uri))
        self._ledger = patiently(lambda: Ledger.open(self._run.store))
        self._tasks: dict[ray.ObjectRef[Any], _Task] = {}
        self._gauges = Gauges(COORDINATOR, run=run_uri)

    def work(self) -> None:
        """Have actions done until there are none, or the run is stopped or taken over.

        Raises:
            MtilError: if the ledger is damaged or the run cannot be read.
        """
        state = patiently(self._ledger.boot)
        try:
            with Heart(self._run.store, self._ledger.session):
                while not (is_over(state) or state.stopped):
                    cluster.free_orphans()  # an actor may die at any time
                    state = self._start(state)
                    self._gauge(state)
                    state = self._collect(state)
        except Fenced as fenced:
            _log.warning("%s", fenced)
        finally:
            for ref in self._tasks:
                ray.cancel(ref, force=True, recursive=True)

    def _gauge(self, state: State) -> None:
        waiting = next_actions(state)
        here = [*waiting, *(task.action for task in self._tasks.values())]
        self._gauges.set(
            actions_waiting=len(waiting),
            actions_running=len(self._tasks),
            actions_done=len(state.done),
            actions_failed=sum(len(causes) for causes in state.failures.values()),
            round=min((action.round for action in here), default=0),
        )

    def _start(self, state: State) -> State:
        """Start what may run and finds room."""
        for action in next_actions(state):
            if len(self._tasks) >= self._room():
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
                self._launch(task, state)
                continue
            while self._append(change) is None:
                pass  # somebody else's event came first
            told = {"cause": change.cause} if isinstance(change, Failed) else {}
            _log.info(change.kind, extra={"fields": asdict(task.action) | told})
        refreshed = patiently(self._ledger.refresh)
        assert refreshed is not None
        return refreshed

    def _outcome(self, task: _Task, ref: "ray.ObjectRef[Any]") -> Done | Failed | None:
        """Return what a task came to; None if it is to be launched again."""
        action, attempt = task.action, task.attempt
        try:
            return Done(action=action, attempt=attempt, result=ray.get(ref))
        except (MtilError, ray.exceptions.RayError) as error:
            if cluster.is_loss(error) and task.losses < _MAX_LOSSES:
                _log.warning("The %s lost what it ran on: %s", action, error)
                time.sleep(min(_WAIT_S[0] * 2**task.losses, _WAIT_S[1]))
                task.losses += 1
                return None
            return Failed(action=action, attempt=attempt, cause=_told(error))

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
            cpus = config.num_workers * reserved_cpus(self._run.config) + preflight.DATA_TASK_CPUS
        except ResourceError:
            return 0  # machines that there were at the start are lost
        nodes = cluster.nodes()
        room = sum(node.cpus for node in nodes) / cpus
        if config.gpus_per_worker:
            gpus = config.num_workers * config.gpus_per_worker
            room = min(room, sum(node.gpus for node in nodes) / gpus)
        return max(1, int(room))


def patiently(function: Callable[[], _T]) -> _T:
    """Call a function again and again until the storage is reached, or has refused for long."""
    wait, most = _WAIT_S
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
            time.sleep(wait)
            refused_s = refused_s + wait if is_refused else 0.0
            wait = min(2 * wait, most)


def find(run: Run) -> Any | None:
    """Return a handle of the run's coordinator on this cluster, if there is one."""
    with suppress(ValueError):
        return ray.get_actor(_name(run), NAMESPACE)
    return None


def start(run: Run) -> Any:
    """Return a handle of the run's coordinator on this cluster, which is made if need be."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
    machines = os.environ.get(cluster.MACHINES)  # set on the head alone, perhaps
    return actor.options(
        name=_name(run),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        runtime_env={"env_vars": {cluster.MACHINES: machines}} if machines else None,
    ).remote(run.uri)


def dismiss(handle: Any) -> None:
    """End a coordinator that has nothing more to do."""
    with suppress(ray.exceptions.RayActorError):
        ray.get(handle.leave.options(max_task_retries=0).remote())


def _name(run: Run) -> str:
    return f"circle-{hashlib.sha256(run.uri.encode()).hexdigest()[:16]}"


def _told(error: BaseException) -> str:
    ours = cluster.cause(error)
    if ours is not None:
        return str(ours)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
