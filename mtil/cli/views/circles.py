"""`mtil status` of a circle: progress as text and JSON."""

import time
from typing import Any

from mtil.circle import heartbeat
from mtil.circle.ledger import Ledger
from mtil.circle.state import CircleState, compute_stages, is_finished
from mtil.cli.console import CommandOutput
from mtil.cli.views import rounds
from mtil.cli.views.rounds import summarise_rounds
from mtil.errors import StorageError
from mtil.run.folder import Run
from mtil.run.plan import Action, Train

_POLL_S = 2.0
_FOLDS_PER_TABLE = 6
"""With six folds a table fits 80 columns."""


def print_circle(
    record: Run, ledger: Ledger, state: CircleState, uri: str, output: CommandOutput, *, watch: bool
) -> None:
    """Print a circle's progress. With `watch`, repeat after each change until the end."""
    listener = heartbeat.HeartbeatMonitor(record.store)
    before = values = _values(record, state, listener, uri)
    with output.live():
        _print(record, state, values, output)
        last_error = ""
        while watch and not (is_finished(state) or state.stopped):
            time.sleep(_POLL_S)
            try:
                state = ledger.refresh() or state
                values = _values(record, state, listener, uri)
            except StorageError as error:
                # A long outage fails every poll: an equal message is printed once.
                if str(error) != last_error:
                    output.line(f"The run's storage failed; retrying. {error}")
                last_error = str(error)
                continue
            if values != before:
                _print(record, state, values, output)
            before, last_error = values, ""
    output.result(values)


def _print(record: Run, state: CircleState, values: dict[str, Any], output: CommandOutput) -> None:
    """Print stages by round and fold, running actions, failures, metrics and the condition."""
    with output.frame():
        _print_parts(record, state, values, output)


def _print_parts(
    record: Run, state: CircleState, values: dict[str, Any], output: CommandOutput
) -> None:
    stages = compute_stages(state)
    for start in range(0, len(state.plan.folds), _FOLDS_PER_TABLE):
        folds = state.plan.folds[start:][:_FOLDS_PER_TABLE]
        output.table(
            ["round", *(f"fold {fold}" for fold in folds)],
            [
                [str(round_index), *(round_stages[fold] for fold in folds)]
                for round_index, round_stages in stages.items()
            ],
        )
    for action in values["running"]:
        epoch = f", epoch {action['epoch'] + 1} of {action['epochs']}" if "epoch" in action else ""
        hosts = f" on {', '.join(action['hosts'])}" if action.get("hosts") else ""
        output.line(f"Running: {action['action']}, attempt {action['attempt']}{epoch}{hosts}")
    for fold, cause in sorted(state.failed_folds.items()):
        output.line(f"Fold {fold} has failed: {cause}")
    rounds.print_rounds(summarise_rounds(record, state), output)
    if values["waits"]:
        output.line(values["waits"])
    # Opening the ledger verified the chain: every event names the digest of the previous event.
    output.line(f"{state.number} events, one chain. {_describe_condition(values)}")


def _action_progress(record: Run, action: Action) -> dict[str, Any]:
    """Return a running training's epoch, number of epochs and hosts; empty before its first step.

    Other actions have no progress.
    """
    step = record.step(action) if isinstance(action, Train) else None
    if step is None:
        return {}
    epochs = record.config.train.num_epochs
    return {"epoch": step["epoch"], "epochs": epochs, "hosts": step.get("hosts", [])}


def _condition(state: CircleState, listener: heartbeat.HeartbeatMonitor) -> str:
    """Return `over`, `stopped`, `running` (a coordinator is alive) or `waiting`."""
    if is_finished(state):
        return "over"
    if state.stopped:
        return "stopped"
    return "running" if listener.is_beating() else "waiting"


def _describe_condition(values: dict[str, Any]) -> str:
    return {
        "over": "The run is over.",
        "stopped": "The run is stopped; `mtil circle` resumes.",
        "running": f"A coordinator on {values['host']} runs the circle.",
        "waiting": "No coordinator runs the circle; `mtil circle` resumes.",
    }[values["condition"]]


def _values(
    record: Run, state: CircleState, listener: heartbeat.HeartbeatMonitor, uri: str
) -> dict[str, Any]:
    """Return the JSON values of a circle's progress."""
    summary = summarise_rounds(record, state)
    condition = _condition(state, listener)
    beat = listener.latest if condition == "running" else None
    # After a stop the state can still list actions without an end.
    is_active = not (is_finished(state) or state.stopped)
    return {
        "run": uri,
        "verified": True,
        "events": state.number,
        "condition": condition,
        "host": beat.host if beat else "",
        "waits": beat.waits if beat else "",
        "stages": {
            str(round_index): {str(fold): stage for fold, stage in round_stages.items()}
            for round_index, round_stages in compute_stages(state).items()
        },
        "running": [
            {"action": str(action), "attempt": attempt.number} | _action_progress(record, action)
            for action, attempt in state.running.items()
            if is_active
        ],
        "failed_folds": summary.failed,
        "rounds": summary.rounds,
    }
