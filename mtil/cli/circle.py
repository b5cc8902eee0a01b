"""`mtil circle`."""

import argparse
import os
from typing import Any

from mtil import presets
from mtil.circle import State
from mtil.cli.console import Bar, Output
from mtil.cli.rounds import describe
from mtil.config import with_overrides
from mtil.data.folds import HOLDOUT
from mtil.data.selection import parse_folds
from mtil.errors import DataError, RunError
from mtil.run import Run, manifest_for
from mtil.storage import open_store


def run(options: argparse.Namespace) -> None:
    """Have a run go through its rounds, and print what came of them."""
    output = Output(as_json=options.json)
    config = with_overrides(presets.load(options.config), options.overrides)
    manifest = manifest_for(options.run, open_store(options.data))
    folds = parse_folds(options.fold, manifest.num_folds)
    if folds == [HOLDOUT]:
        raise DataError("A holdout is for a final test, not to be trained; name a fold.")

    from mtil.distributed import circle, cluster

    with cluster.connected(verbose=options.verbose), output.progress() as bar:
        record = circle.begin(options.data, options.run, config, folds)
        try:
            state = circle.follow(record, lambda line: _show(line, record, bar, output))
        except KeyboardInterrupt:
            if not os.environ.get("RAY_ADDRESS"):
                raise
            output.line(
                f"Detached; the run goes on. Look at it with `mtil status --run {options.run}`, "
                f"end it with `mtil stop --run {options.run}`."
            )
            return
    _end(state, record, options, output)


def _show(line: dict[str, Any], record: Run, bar: Bar, output: Output) -> None:
    if line["kind"] == "elsewhere":
        output.line("Another cluster's coordinator is at this run; it is followed.")
        return
    action = line["action"]
    if line["kind"] == "step":
        epochs = record.config.train.num_epochs
        bar.show(f"{action}, epoch {line['epoch'] + 1}/{epochs}", line["step"], line["steps"])
    elif line["kind"] == "failed":
        output.line(f"The {action} failed: {line['cause']}")
    else:
        output.line(f"The {action} is done.{_figures(line['result'])}")


def _figures(result: dict[str, Any]) -> str:
    last = (result.get("by_pass") or [{}])[-1]
    figures = last.get("metrics", last) if last else result.get("metrics", {})
    shown = []
    for name in ("dice", "auc", "f1"):
        value = figures.get(name)
        value = value["value"] if isinstance(value, dict) else value
        if value is not None:
            shown.append(f"{name} {value:.3f}")
    return " " + ", ".join(shown) if shown else ""


def _end(state: State, record: Run, options: argparse.Namespace, output: Output) -> None:
    told = describe(record, state)
    output.table(*told.table)
    if state.stopped:
        output.line(f"Stopped; `mtil circle` goes on. Run in {options.run}")
    else:
        output.line(f"Run in {options.run}; next: mtil evaluate --run {options.run}")
    output.result({"run": options.run, "rounds": told.rounds, "failed_folds": told.failed})
    if state.failed_folds:
        fold, cause = next(iter(sorted(state.failed_folds.items())))
        raise RunError(
            f"{len(state.failed_folds)} of {len(state.plan.folds)} folds failed; fold {fold}: "
            f"{cause}"
        )
