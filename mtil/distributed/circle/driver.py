"""A circle run from the driver's side: begin it, find or start its coordinator, and follow it."""

import time
from collections.abc import Mapping
from typing import Any

import ray

from mtil import errors
from mtil.circle import heartbeat
from mtil.circle.begin import Request
from mtil.circle.ledger import Ledger, probe
from mtil.circle.state import State, is_over
from mtil.config import digest
from mtil.distributed.circle import coordinator
from mtil.distributed.circle.coordinator import patiently
from mtil.distributed.circle.restarts import MAX_ERRORS
from mtil.distributed.runtime import failures
from mtil.distributed.runtime.resources import reserved_cpus, tell_of_waiting
from mtil.errors import RunError
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.run.relay import Guarded, Listener
from mtil.storage import open_store

_POLL_S = 2.0
_ANSWER_S = 30.0
_NOTHING: dict[str, Any] = {
    "answered": False,
    "over": False,
    "error": None,
    "errors": [],
    "deaths": 0,
    "cannot_start": None,
    "silent": False,
}
"""What a coordinator says that has nothing to say."""


def begin(request: Request) -> Run:
    """Make a circle run, or take up the one that is there if it was asked to do the same.

    Args:
        request: the folds, by `request_circle`.

    Raises:
        UserError: if the data set, the run, its storage or the resources are not as they must be.
    """
    config = request.config
    reserved_cpus(config)
    probe(open_store(request.run_uri))
    run = request.create()
    ledger = Ledger.open(run.store)
    state = ledger.begin(request.plan, request.manifest.fingerprint, digest(config))
    if state.stopped:
        ledger.go()
    tell_of_waiting(config)
    return run


def follow(run: Run, listen: Listener) -> State:
    """See a run to its end, or until it is stopped, with whoever does the work; return its state.

    The work is done by the coordinator on this cluster. Where one on another cluster is at it, that
    is followed, and this cluster takes over when it falls silent.

    Args:
        run: the run.
        listen: told `{"kind": "committed" | "failed", "action", …}` of what was not known at the
            start, `{"kind": "step", …}` of trainings, `{"kind": "elsewhere"}`,
            `{"kind": "waits", "text"}` of what the coordinator begins to wait for, and
            `{"kind": "trouble", "text"}` of what it fails by and is started again after. Its own
            errors end nothing.

    Raises:
        MtilError: what ended the coordinator.
    """
    listen = Guarded(listen)
    ledger = Ledger.open(run.store)
    state = ledger.state
    assert state is not None
    handle, is_told, waits = None, False, ""
    troubles = Troubles(listen)
    is_new = False  # whether the coordinator was started or has worked while this looked on
    while not (is_over(state) or state.stopped):
        if handle is None:
            handle, is_new = coordinator.find(run), False
        if handle is None and patiently(lambda: heartbeat.is_beating(run.store)):
            if not is_told:
                listen({"kind": "elsewhere"})
            is_told = True
        elif handle is None:
            handle, is_new = coordinator.start(run), True
        answer = _NOTHING if handle is None else _asked(handle)
        before, state = state, patiently(ledger.refresh)
        assert state is not None
        _report(run, before, state, listen)
        waits = _tell_of_waiting(run, waits, listen)
        troubles.hear(answer)
        is_new = is_new or (answer["answered"] and not answer["over"])
        if answer["error"] and is_new:  # it stays for a while, to tell others that follow
            kind, message = answer["error"]
            raise getattr(errors, kind, RunError)(message)
        if answer["over"]:
            coordinator.dismiss(handle)
            handle = None  # if there is more to do, another takes its place
        time.sleep(_POLL_S)
    if handle is not None:
        _see_off(handle)
    return state


class Troubles:
    """Tells a listener why a coordinator does not work, and gives up where it cannot even start."""

    def __init__(self, listen: Listener) -> None:
        self._listen = listen
        self._errors = self._deaths = self._starts = 0
        self._is_silent = False

    def hear(self, answer: Mapping[str, Any]) -> None:
        """Tell what is new in a coordinator's answer.

        Raises:
            MtilError: the cause, if it could not start several times in a row.
        """
        if answer["answered"]:
            self._starts, self._is_silent = 0, False
            for number, cause in enumerate(answer["errors"][self._errors :], self._errors + 1):
                self._tell(f"The coordinator failed ({number} of {MAX_ERRORS}): {cause}")
            if answer["deaths"] > self._deaths:
                self._tell("The coordinator's process died, and is started again.")
            self._errors, self._deaths = len(answer["errors"]), answer["deaths"]
        elif answer["cannot_start"] is not None:
            self._starts += 1
            error: Exception = answer["cannot_start"]
            ours = failures.cause(error)
            cause = str(ours or coordinator.told(error))
            self._tell(f"The coordinator cannot start ({self._starts} of {MAX_ERRORS}): {cause}")
            if self._starts == MAX_ERRORS:
                raise ours or RunError(f"The coordinator cannot start: {cause}")
        elif answer["silent"] and not self._is_silent:
            self._is_silent = True
            self._tell(f"The coordinator has not answered for {_ANSWER_S:.0f} s; it is waited for.")

    def _tell(self, text: str) -> None:
        self._listen({"kind": "trouble", "text": text})


def _asked(handle: Any) -> dict[str, Any]:
    """Ask a coordinator how it is; one that does not answer may be on its way back."""
    try:
        answer: dict[str, Any] = ray.get(handle.poll.remote(), timeout=_ANSWER_S)
    except ray.exceptions.RuntimeEnvSetupError as error:
        return _NOTHING | {"over": True, "cannot_start": error}
    except ray.exceptions.ActorDiedError as error:
        return _NOTHING | {"over": True, "cannot_start": error if error.actor_init_failed else None}
    except ray.exceptions.GetTimeoutError:
        return _NOTHING | {"silent": True}
    except ray.exceptions.RayError:
        return _NOTHING
    return _NOTHING | answer | {"answered": True}


def _see_off(handle: Any) -> None:
    """Wait until a coordinator has put down its work, and end it."""
    for _ in range(int(_ANSWER_S / _POLL_S)):
        if _asked(handle)["over"]:
            break
        time.sleep(_POLL_S)
    coordinator.dismiss(handle)


def _tell_of_waiting(run: Run, before: str, listen: Listener) -> str:
    """Tell what the coordinator waits for if that is new; return it."""
    beat = patiently(lambda: heartbeat.read(run.store))
    waits = "" if beat is None else beat.waits
    if waits and waits != before:
        listen({"kind": "waits", "text": waits})
    return waits


def _report(run: Run, before: State, state: State, listen: Listener) -> None:
    for action, result in state.done.items():
        if action not in before.done:
            listen({"kind": "committed", "action": action, "result": dict(result)})
    for action, causes in state.failures.items():
        for cause in causes[len(before.failures.get(action, ())) :]:
            listen({"kind": "failed", "action": action, "cause": cause})
    for action in state.running:
        if isinstance(action, Train):
            step = patiently(lambda action=action: run.step(action))  # type: ignore[misc]
            if step is not None:
                listen({"kind": "step", "action": action, **step})
