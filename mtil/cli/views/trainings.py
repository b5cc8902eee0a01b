"""`mtil status` of a run made by `mtil train`, which has no ledger and no heartbeat."""

import time
from collections.abc import Sequence
from typing import Any

from mtil.cli.console import CommandOutput, format_time_left
from mtil.errors import StorageError
from mtil.run.folder import Run
from mtil.run.status import ProgressWatcher, TrainingStatus

_POLL_S = 2.0
_QUIET_S = 10
"""Seconds without new files after which a run counts as idle. The first look polls every second."""
_QUIET_POLLS = 15
"""Polls without new files after which `--watch` counts a run as over.

Folds train in sequence. Between two folds all started trainings are finished for a while.
"""
_SHOWN = ("dice", "auc", "f1")


def print_trainings(record: Run, uri: str, output: CommandOutput, *, watch: bool) -> None:
    """Print the progress of a run's trainings. With `watch`, repeat after changes until the end."""
    watcher = ProgressWatcher(record)
    trainings = watcher.look()
    # `mtil train` has no heartbeat: only files that change show that a training is alive.
    has_moved = not _is_over(trainings) and watcher.wait_for_progress(time.sleep, _QUIET_S)
    trainings = watcher.look() if has_moved else trainings
    condition = "running" if has_moved else _condition(trainings)
    values = _values(record, trainings, uri, condition)
    with output.live():
        _print(values, output)
        if watch:
            quiet_polls = 0 if has_moved else int(_QUIET_S / _POLL_S)
            values = _repeat(record, uri, output, watcher, (trainings, values, quiet_polls))
    output.result(values)


def _repeat(
    record: Run,
    uri: str,
    output: CommandOutput,
    watcher: ProgressWatcher,
    shown: tuple[Sequence[TrainingStatus], dict[str, Any], int],
) -> dict[str, Any]:
    """Print the values after each change until the run is over; return the last values."""
    (trainings, before, quiet_polls), last_error = shown, ""
    while not (_is_over(trainings) and quiet_polls >= _QUIET_POLLS):
        time.sleep(_POLL_S)
        try:
            trainings = watcher.look()
        except StorageError as error:
            # A long outage fails every poll: an equal message is printed once.
            if str(error) != last_error:
                output.line(f"The run's storage failed; retrying. {error}")
            last_error = str(error)
            continue
        quiet_polls, last_error = 0 if watcher.has_progressed else quiet_polls + 1, ""
        is_running = quiet_polls * _POLL_S < _QUIET_S and not _is_over(trainings)
        condition = "running" if is_running else _condition(trainings)
        values = _values(record, trainings, uri, condition)
        if values != before:
            _print(values, output)
        before = values
    return before


def _is_over(trainings: Sequence[TrainingStatus]) -> bool:
    """Return whether every training that has started is finished, and at least one has."""
    return bool(trainings) and all(training.result is not None for training in trainings)


def _condition(trainings: Sequence[TrainingStatus]) -> str:
    return "over" if _is_over(trainings) else "waiting"


def _values(
    record: Run, trainings: Sequence[TrainingStatus], uri: str, condition: str
) -> dict[str, Any]:
    """Return the JSON values of a run's trainings."""
    return {
        "run": uri,
        "verified": True,
        "kind": "training",
        "condition": condition,
        "epochs": record.config.train.num_epochs,
        "trained": [
            training.of.fold
            for training in trainings
            if training.result is not None and training.of.round == 0
        ],
        "trainings": [_training_values(training) for training in trainings],
    }


def _training_values(training: TrainingStatus) -> dict[str, Any]:
    values: dict[str, Any] = {
        "round": training.of.round,
        "fold": training.of.fold,
        "part": training.of.part,
        "stage": training.stage,
        "epochs": training.epochs,
        "figures": training.figures,
    }
    if training.images_per_second is not None:
        values["images_per_second"] = training.images_per_second
    if training.seconds_left is not None:
        values["seconds_left"] = training.seconds_left
    if training.result is not None:
        values |= {"best_epoch": training.result.best_epoch, "seconds": training.result.seconds}
    if training.step is not None:
        values |= {name: training.step[name] for name in ("step", "steps", "hosts")}
    return values


def _print(values: dict[str, Any], output: CommandOutput) -> None:
    with output.frame():
        _print_parts(values, output)


def _print_parts(values: dict[str, Any], output: CommandOutput) -> None:
    if values["trainings"]:
        output.table(
            ["training", "state", "epoch", "step", "images/s", "left", *_SHOWN],
            [_table_row(training, values["epochs"]) for training in values["trainings"]],
        )
        output.line("All metrics are of inner validation images.")
    hosts = sorted({host for training in values["trainings"] for host in training.get("hosts", ())})
    place = f" on {', '.join(hosts)}" if hosts else ""
    output.line(
        {
            "running": f"A training is running{place}.",
            "over": f"All started folds are trained; next: mtil evaluate --run {values['run']}",
            "waiting": f"No file changed for {_QUIET_S} s. No training runs, or a start, a step or "
            "a validation takes longer. The same `mtil train` command resumes.",
        }[values["condition"]]
    )


def _table_row(training: dict[str, Any], num_epochs: int) -> list[str]:
    """Return the table cells of a training's JSON values."""
    part = "" if training["part"] is None else f", part {training['part']}"
    round_prefix = f"round {training['round']}, " if training["round"] or part else ""
    step = f"{training['step']} of {training['steps']}" if "step" in training else ""
    epochs = training["epochs"]
    done = epochs if training["stage"] == "done" else f"{epochs} of {num_epochs}"
    metrics = (training["figures"].get(name) for name in _SHOWN)
    return [
        f"{round_prefix}fold {training['fold']}{part}",
        training["stage"],
        str(done),
        step,
        f"{training['images_per_second']:.1f}" if "images_per_second" in training else "",
        format_time_left(training.get("seconds_left")),
        *("n/a" if value is None else f"{value:.3f}" for value in metrics),
    ]
