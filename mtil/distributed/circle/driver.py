"""Driver of a circle run: begin the run, start or find the coordinator, and follow it."""

import time
from collections.abc import Mapping
from typing import Any

import ray

from mtil import errors
from mtil.circle import heartbeat
from mtil.circle.ledger import Ledger, check_conditional_writes
from mtil.circle.request import TrainingRequest
from mtil.circle.state import CircleState, is_finished
from mtil.config import compute_config_digest
from mtil.distributed.circle import coordinator
from mtil.distributed.circle.coordinator import retry_storage
from mtil.distributed.circle.restarts import MAX_COORDINATOR_ERRORS
from mtil.distributed.runtime import failures
from mtil.distributed.runtime.resources import plan_reserved_cpus, report_missing_resources
from mtil.errors import RunError
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.run.relay import GuardedListener, ProgressListener
from mtil.storage import open_store

_POLL_S = 2.0
_ANSWER_TIMEOUT_S = 30.0
_NO_ANSWER: dict[str, Any] = {
    "answered": False,
    "over": False,
    "error": None,
    "errors": [],
    "deaths": 0,
    "cannot_start": None,
    "silent": False,
}
"""Default status of a coordinator, for all keys without an answer."""


def begin_circle(request: TrainingRequest) -> Run:
    """Create a circle run, or reopen an existing run with the same request.

    Args:
        request: checked request by `request_circle`.

    Raises:
        UserError: if data set, run, storage or resources are unsuitable.
    """
    config = request.config
    # Check resources and storage first: a refused request leaves no run behind.
    plan_reserved_cpus(config)
    check_conditional_writes(open_store(request.run_uri))
    run = request.create()
    ledger = Ledger.open(run.store)
    state = ledger.begin(request.plan, request.manifest.fingerprint, compute_config_digest(config))
    if state.stopped:
        ledger.go()
    report_missing_resources(config)
    return run


def follow_circle(run: Run, listen: ProgressListener) -> CircleState:
    """Follow a run until it finishes or is stopped. Return the final state.

    The coordinator on the connected cluster does the work. If a coordinator on a different cluster
    owns the run, follow that coordinator, and take over when its heartbeat stops.

    Args:
        run: the run.
        listen: receives `{"kind": "committed" | "failed", "action", …}` for results newer than the
            call, `{"kind": "step", …}` for trainings, `{"kind": "elsewhere"}` for a coordinator on
            a different cluster, `{"kind": "waits", "text"}` when the coordinator starts to wait,
            and `{"kind": "trouble", "text"}` for failures followed by a restart. Errors of the
            listener are logged and end nothing.

    Raises:
        MtilError: the final error of the coordinator.
    """
    listen = GuardedListener(listen)
    ledger = Ledger.open(run.store)
    state = ledger.state
    assert state is not None
    handle, is_reported, waits = None, False, ""
    troubles = TroubleReporter(listen)
    # True once the coordinator was started here or has been seen at work.
    is_new = False
    while not (is_finished(state) or state.stopped):
        if handle is None:
            handle, is_new = coordinator.find_coordinator(run), False
        if handle is None and retry_storage(lambda: heartbeat.is_coordinator_alive(run.store)):
            if not is_reported:
                listen({"kind": "elsewhere"})
            is_reported = True
        elif handle is None:
            handle, is_new = coordinator.start_coordinator(run), True
        answer = _NO_ANSWER if handle is None else _poll_coordinator(handle)
        before, state = state, retry_storage(ledger.refresh)
        assert state is not None
        _report_news(run, before, state, listen)
        waits = _report_waiting(run, waits, listen)
        troubles.report(answer)
        is_new = is_new or (answer["answered"] and not answer["over"])
        # An ended coordinator stays for a while, so all clients can read the error. An error from
        # before this call is ignored, and a new coordinator is started below.
        if answer["error"] and is_new:
            kind, message = answer["error"]
            raise getattr(errors, kind, RunError)(message)
        if answer["over"]:
            coordinator.dismiss_coordinator(handle)
            # The loop starts a successor if work is left.
            handle = None
        time.sleep(_POLL_S)
    if handle is not None:
        _release_coordinator(handle)
    return state


class TroubleReporter:
    """Report failures of a coordinator to a listener. Give up if the actor cannot start."""

    def __init__(self, listen: ProgressListener) -> None:
        self._listen = listen
        self._errors = self._deaths = self._starts = 0
        self._is_silent = False

    def report(self, answer: Mapping[str, Any]) -> None:
        """Report news in a coordinator's status.

        Raises:
            MtilError: the cause, after `MAX_COORDINATOR_ERRORS` failed starts in a row.
        """
        if answer["answered"]:
            self._starts, self._is_silent = 0, False
            for count, cause in enumerate(answer["errors"][self._errors :], self._errors + 1):
                self._report_trouble(
                    f"The coordinator failed ({count} of {MAX_COORDINATOR_ERRORS}): {cause}"
                )
            if answer["deaths"] > self._deaths:
                self._report_trouble("The coordinator's process died and is being restarted.")
            self._errors, self._deaths = len(answer["errors"]), answer["deaths"]
        elif answer["cannot_start"] is not None:
            self._starts += 1
            error: Exception = answer["cannot_start"]
            mtil_error = failures.find_mtil_error(error)
            cause = str(mtil_error or coordinator.describe_coordinator_error(error))
            self._report_trouble(
                f"The coordinator cannot start ({self._starts} of {MAX_COORDINATOR_ERRORS}): "
                f"{cause}"
            )
            if self._starts == MAX_COORDINATOR_ERRORS:
                raise mtil_error or RunError(f"The coordinator cannot start: {cause}")
        elif answer["silent"] and not self._is_silent:
            self._is_silent = True
            self._report_trouble(
                f"The coordinator has not answered for {_ANSWER_TIMEOUT_S:.0f} s; still waiting."
            )

    def _report_trouble(self, text: str) -> None:
        self._listen({"kind": "trouble", "text": text})


def _poll_coordinator(handle: Any) -> dict[str, Any]:
    """Return the status of a coordinator. No answer may mean that a restart is in progress."""
    try:
        answer: dict[str, Any] = ray.get(handle.poll.remote(), timeout=_ANSWER_TIMEOUT_S)
    except ray.exceptions.RuntimeEnvSetupError as error:
        return _NO_ANSWER | {"over": True, "cannot_start": error}
    except ray.exceptions.ActorDiedError as error:
        return _NO_ANSWER | {
            "over": True,
            "cannot_start": error if error.actor_init_failed else None,
        }
    except ray.exceptions.GetTimeoutError:
        return _NO_ANSWER | {"silent": True}
    except ray.exceptions.RayError:
        return _NO_ANSWER
    return _NO_ANSWER | answer | {"answered": True}


def _release_coordinator(handle: Any) -> None:
    """Wait until a coordinator has cancelled its tasks, then end the actor."""
    for _ in range(int(_ANSWER_TIMEOUT_S / _POLL_S)):
        if _poll_coordinator(handle)["over"]:
            break
        time.sleep(_POLL_S)
    coordinator.dismiss_coordinator(handle)


def _report_waiting(run: Run, previous: str, listen: ProgressListener) -> str:
    """Report a new reason for waiting. Return the present reason."""
    latest = retry_storage(lambda: heartbeat.read_heartbeat(run.store))
    waits = "" if latest is None else latest.waits
    if waits and waits != previous:
        listen({"kind": "waits", "text": waits})
    return waits


def _report_news(
    run: Run, previous: CircleState, state: CircleState, listen: ProgressListener
) -> None:
    for action, result in state.done.items():
        if action not in previous.done:
            listen({"kind": "committed", "action": action, "result": dict(result)})
    for action, causes in state.failures.items():
        for cause in causes[len(previous.failures.get(action, ())) :]:
            listen({"kind": "failed", "action": action, "cause": cause})
    for action in state.running:
        if isinstance(action, Train):
            step = retry_storage(lambda action=action: run.step(action))  # type: ignore[misc]
            if step is not None:
                listen({"kind": "step", "action": action, **step})
