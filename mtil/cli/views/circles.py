"""How far a circle is, for a person and as JSON."""

import time
from typing import Any

from mtil.circle import heartbeat
from mtil.circle.ledger import Ledger
from mtil.circle.state import State, is_over, progress
from mtil.cli.console import Output
from mtil.cli.views import rounds
from mtil.cli.views.rounds import describe
from mtil.errors import StorageError
from mtil.run.folder import Run
from mtil.run.plan import Action, Train

_EVERY_S = 2.0
_FOLDS_A_LINE = 6
"""So that a table fits 80 columns."""


def tell(
    record: Run, ledger: Ledger, state: State, uri: str, output: Output, *, watch: bool
) -> None:
    """Print how far a circle is; with `watch`, until it has ended."""
    listener = heartbeat.Listener(record.store)
    before = values = _values(record, state, listener, uri)
    _tell(record, state, values, output)
    trouble = ""
    while watch and not (is_over(state) or state.stopped):
        time.sleep(_EVERY_S)
        try:
            state = ledger.refresh() or state
            values = _values(record, state, listener, uri)
        except StorageError as error:
            if str(error) != trouble:
                output.line(f"The run's storage failed, which is tried again: {error}")
            trouble = str(error)
            continue
        if values != before:
            _tell(record, state, values, output)
        before, trouble = values, ""
    output.result(values)


def _tell(record: Run, state: State, values: dict[str, Any], output: Output) -> None:
    stages = progress(state)
    for start in range(0, len(state.plan.folds), _FOLDS_A_LINE):
        folds = state.plan.folds[start:][:_FOLDS_A_LINE]
        output.table(
            ["round", *(f"fold {fold}" for fold in folds)],
            [
                [str(number), *(of_round[fold] for fold in folds)]
                for number, of_round in stages.items()
            ],
        )
    for one in values["running"]:
        epoch = f", epoch {one['epoch'] + 1} of {one['epochs']}" if "epoch" in one else ""
        hosts = f" on {', '.join(one['hosts'])}" if one.get("hosts") else ""
        output.line(f"Running: {one['action']}, attempt {one['attempt']}{epoch}{hosts}")
    for fold, cause in sorted(state.failed_folds.items()):
        output.line(f"Fold {fold} has failed: {cause}")
    rounds.tell(describe(record, state), output)
    if values["waits"]:
        output.line(values["waits"])
    output.line(f"{state.number} events, one chain. {_said(values)}")


def _progress(record: Run, action: Action) -> dict[str, Any]:
    """Return how far an action in flight is, and where it runs, if it has said so."""
    step = record.step(action) if isinstance(action, Train) else None
    if step is None:
        return {}
    epochs = record.config.train.num_epochs
    return {"epoch": step["epoch"], "epochs": epochs, "hosts": step.get("hosts", [])}


def _condition(state: State, listener: heartbeat.Listener) -> str:
    if is_over(state):
        return "over"
    if state.stopped:
        return "stopped"
    return "running" if listener.is_beating() else "waiting"


def _said(values: dict[str, Any]) -> str:
    return {
        "over": "The run is over.",
        "stopped": "The run is stopped; `mtil circle` goes on.",
        "running": f"A coordinator on {values['host']} is at it.",
        "waiting": "Nobody works on the run; `mtil circle` goes on.",
    }[values["condition"]]


def _values(record: Run, state: State, listener: heartbeat.Listener, uri: str) -> dict[str, Any]:
    told = describe(record, state)
    condition = _condition(state, listener)
    beat = listener.latest if condition == "running" else None
    at_work = not (is_over(state) or state.stopped)
    return {
        "run": uri,
        "verified": True,
        "events": state.number,
        "condition": condition,
        "host": beat.host if beat else "",
        "waits": beat.waits if beat else "",
        "stages": {
            str(number): {str(fold): stage for fold, stage in of_round.items()}
            for number, of_round in progress(state).items()
        },
        "running": [
            {"action": str(action), "attempt": attempt.number} | _progress(record, action)
            for action, attempt in state.running.items()
            if at_work
        ],
        "failed_folds": told.failed,
        "rounds": told.rounds,
    }
