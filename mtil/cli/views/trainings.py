"""`mtil status` of a run that `mtil train` has made, which has no ledger."""

import time
from collections.abc import Sequence
from typing import Any

from mtil.cli.console import Output
from mtil.errors import StorageError
from mtil.run.folder import Run
from mtil.run.standing import Training, Watcher

_EVERY_S = 2.0
_LOOKS = 10
"""Seconds for which a run is watched before nobody seems to work on it."""
_QUIET_LOOKS = 15
"""Looks without news after which `--watch` takes a run for over: folds follow each other."""
_SHOWN = ("dice", "auc", "f1")


def tell(record: Run, uri: str, output: Output, *, watch: bool) -> None:
    """Print how far a run's trainings are; with `watch`, until they have ended."""
    watcher = Watcher(record)
    found = watcher.look()
    moves = not _is_over(found) and watcher.wait_for_a_move(time.sleep, _LOOKS)
    found = watcher.look() if moves else found
    before = values = _values(record, found, uri, "running" if moves else _condition(found))
    _print(values, output)
    quiet, trouble = 0 if moves else int(_LOOKS / _EVERY_S), ""
    while watch and not (_is_over(found) and quiet >= _QUIET_LOOKS):
        time.sleep(_EVERY_S)
        try:
            found = watcher.look()
        except StorageError as error:
            if str(error) != trouble:
                output.line(f"The run's storage failed, which is tried again: {error}")
            trouble = str(error)
            continue
        quiet, trouble = 0 if watcher.has_moved else quiet + 1, ""
        works = quiet * _EVERY_S < _LOOKS and not _is_over(found)
        values = _values(record, found, uri, "running" if works else _condition(found))
        if values != before:
            _print(values, output)
        before = values
    output.result(values)


def _is_over(found: Sequence[Training]) -> bool:
    return bool(found) and all(one.result is not None for one in found)


def _condition(found: Sequence[Training]) -> str:
    return "over" if _is_over(found) else "waiting"


def _values(record: Run, found: Sequence[Training], uri: str, condition: str) -> dict[str, Any]:
    return {
        "run": uri,
        "verified": True,
        "kind": "training",
        "condition": condition,
        "epochs": record.config.train.num_epochs,
        "trained": [one.of.fold for one in found if one.result is not None and one.of.round == 0],
        "trainings": [_described(one) for one in found],
    }


def _described(one: Training) -> dict[str, Any]:
    described: dict[str, Any] = {
        "round": one.of.round,
        "fold": one.of.fold,
        "part": one.of.part,
        "stage": one.stage,
        "epochs": one.epochs,
        "figures": one.figures,
    }
    if one.result is not None:
        described |= {"best_epoch": one.result.best_epoch, "seconds": one.result.seconds}
    if one.step is not None:
        described |= {name: one.step[name] for name in ("step", "steps", "hosts")}
    return described


def _print(values: dict[str, Any], output: Output) -> None:
    if values["trainings"]:
        output.table(
            ["training", "state", "epoch", "step", *_SHOWN],
            [_row(one, values["epochs"]) for one in values["trainings"]],
        )
        output.line("Figures are those of the inner validation images.")
    hosts = sorted({host for one in values["trainings"] for host in one.get("hosts", ())})
    where = f" on {', '.join(hosts)}" if hosts else ""
    output.line(
        {
            "running": f"Somebody trains{where}.",
            "over": f"All folds that were begun are trained; next: mtil evaluate --run "
            f"{values['run']}",
            "waiting": f"Nothing new was written for {_LOOKS} s: nobody trains, or a start, a step "
            "or a validation takes longer; the same `mtil train` goes on.",
        }[values["condition"]]
    )


def _row(one: dict[str, Any], epochs: int) -> list[str]:
    part = "" if one["part"] is None else f", part {one['part']}"
    of_round = f"round {one['round']}, " if one["round"] or part else ""
    step = f"{one['step']} of {one['steps']}" if "step" in one else ""
    done = one["epochs"] if one["stage"] == "done" else f"{one['epochs']} of {epochs}"
    figures = (one["figures"].get(name) for name in _SHOWN)
    return [
        f"{of_round}fold {one['fold']}{part}",
        one["stage"],
        str(done),
        step,
        *("n/a" if value is None else f"{value:.3f}" for value in figures),
    ]
