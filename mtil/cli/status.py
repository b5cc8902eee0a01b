"""`mtil status` and `mtil stop`: from the run's files alone, with no cluster."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtil import heartbeat
from mtil.circle import State, is_over, progress
from mtil.cli.console import Output
from mtil.cli.rounds import describe, tell
from mtil.errors import ConfigError, DataError, LedgerError, RunError
from mtil.ledger import Ledger
from mtil.plan import Train
from mtil.run import Run

_EVERY_S = 2.0
_FOLDS_A_LINE = 6
"""So that a table fits 80 columns."""


def run(options: argparse.Namespace) -> None:
    """Run the command that the options name."""
    output = Output(as_json=options.json)
    record = Run.open(options.run)
    if options.command == "stop":
        _stop(record, options.run, output)
        return
    if options.fold is not None and options.lineage is None:
        raise ConfigError("`--fold` says whose map `--lineage` is of; give both, or neither.")
    if options.lineage is not None:
        _trace(record, options, output)
        return
    with _verified(options.run, output):
        _status(record, options, output)


@contextmanager
def _verified(uri: str, output: Output) -> Iterator[None]:
    """Print what a damaged run is said to be by `--json`, too."""
    try:
        yield
    except (LedgerError, RunError) as error:
        output.result({"run": uri, "verified": False, "error": str(error)})
        raise


def _trace(record: Run, options: argparse.Namespace, output: Output) -> None:
    from mtil.cli.lineage import tell
    from mtil.lineage import trace

    with _verified(options.run, output):
        found = trace(record, options.lineage, options.fold)
    tell(found, options.run, output)


def _status(record: Run, options: argparse.Namespace, output: Output) -> None:
    ledger, state = _opened(record)
    before = 0
    while True:
        if state.number != before:
            before = state.number
            _tell(record, state, output)
        if not options.watch or is_over(state) or state.stopped:
            break
        time.sleep(_EVERY_S)
        state = ledger.refresh() or state
    output.result(_values(record, state, options.run))


def _stop(record: Run, uri: str, output: Output) -> None:
    ledger, state = _opened(record)
    if is_over(state):
        raise DataError(f"A run must still be going on to be stopped, but {record.uri} has ended.")
    ledger.stop()
    output.line(
        f"{record.uri} is told to stop; the same `mtil circle` goes on from what is committed."
    )
    output.result({"run": uri, "stopped": True})


def _opened(record: Run) -> tuple[Ledger, State]:
    ledger = Ledger.open(record.store)
    if ledger.state is None:
        raise DataError(
            f"A circle must have begun, but {record.uri} has no ledger; "
            "begin one with `mtil circle`."
        )
    return ledger, ledger.state


def _tell(record: Run, state: State, output: Output) -> None:
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
    for action, attempt in state.running.items():
        output.line(f"Running: {action}, attempt {attempt.number}{_epoch(record, action)}")
    for fold, cause in sorted(state.failed_folds.items()):
        output.line(f"Fold {fold} has failed: {cause}")
    tell(describe(record, state), output)
    output.line(f"{state.number} events, one chain. {_said(_condition(record, state))}")


def _epoch(record: Run, action: object) -> str:
    if not isinstance(action, Train):
        return ""
    step = record.step(action)
    if step is None:
        return ""
    return f", epoch {step['epoch'] + 1} of {record.config.train.num_epochs}"


def _condition(record: Run, state: State) -> str:
    if is_over(state):
        return "over"
    if state.stopped:
        return "stopped"
    return "running" if heartbeat.read(record.store) is not None else "waiting"


def _said(condition: str) -> str:
    return {
        "over": "The run is over.",
        "stopped": "The run is stopped; `mtil circle` goes on.",
        "running": "A coordinator is at it, or was until it died.",
        "waiting": "Nobody works on the run; `mtil circle` goes on.",
    }[condition]


def _values(record: Run, state: State, uri: str) -> dict[str, Any]:
    told = describe(record, state)
    return {
        "run": uri,
        "verified": True,
        "events": state.number,
        "condition": _condition(record, state),
        "stages": {
            str(number): {str(fold): stage for fold, stage in of_round.items()}
            for number, of_round in progress(state).items()
        },
        "running": [
            {"action": str(action), "attempt": attempt.number}
            for action, attempt in state.running.items()
        ],
        "failed_folds": told.failed,
        "rounds": told.rounds,
    }
