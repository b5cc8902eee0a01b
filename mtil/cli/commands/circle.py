"""`mtil circle`."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import Commands, add_command, add_training
from mtil.errors import RunError
from mtil.process import supervisor

if TYPE_CHECKING:
    from mtil.circle.state import State
    from mtil.cli.console import Bar, Output
    from mtil.run.folder import Run
    from mtil.run.plan import Action


def add_to(commands: Commands) -> None:
    """Add `mtil circle`."""
    parser = add_command(
        commands,
        "circle",
        run,
        "train in rounds, each with the maps of the one before",
        configurable=True,
    )
    add_training(parser)


def run(options: argparse.Namespace, output: "Output") -> None:
    """Have a run go through its rounds, and print what came of them."""
    from mtil import presets
    from mtil.circle.begin import request_circle
    from mtil.config import with_overrides

    config = with_overrides(presets.load_config(options.config), options.overrides)
    request = request_circle(
        options.data, options.run, config, options.fold, data_version=options.data_version
    )

    from mtil.distributed.circle import driver
    from mtil.distributed.runtime import cluster

    with cluster.connected(verbose=options.verbose), output.progress() as bar:
        record = driver.begin(request)
        try:
            state = driver.follow(record, Teller(record, bar, output))
        except KeyboardInterrupt:
            if not os.environ.get("RAY_ADDRESS"):
                raise
            supervisor.answer()
            output.line(
                f"Detached; the run goes on. Look at it with `mtil status --run {options.run}`, "
                f"end it with `mtil stop --run {options.run}`."
            )
            output.result({"run": options.run, "detached": True})
            return
    _end(state, record, options, output)


class Teller:
    """Tells a person what happens to a run."""

    def __init__(self, record: "Run", bar: "Bar", output: "Output") -> None:
        self._bar, self._output = bar, output
        self._num_epochs = record.config.train.num_epochs
        self._epochs: dict[Action, int] = {}

    def __call__(self, line: dict[str, Any]) -> None:
        """Tell a line of `mtil.distributed.circle.follow`."""
        if line["kind"] == "elsewhere":
            self._output.line("Another cluster's coordinator is at this run; it is followed.")
            return
        if line["kind"] in ("waits", "trouble"):
            self._output.line(line["text"])
            return
        action = line["action"]
        if line["kind"] == "step":
            text = f"{action}, epoch {line['epoch'] + 1}/{self._num_epochs}"
            self._bar.show(text, line["step"], line["steps"])
            if self._epochs.get(action) != line["epoch"]:
                self._epochs[action] = line["epoch"]
                self._output.line(text)
        elif line["kind"] == "failed":
            self._output.line(f"Failed: {action}: {line['cause']}")
        else:
            self._output.line(f"Done: {action}{_figures(line['result'])}")


def _figures(result: dict[str, Any]) -> str:
    """Tell the figures of a training's validation images, or of test images after all passes."""
    from mtil.cli.views.rounds import SHOWN

    images, figures = "validation", result.get("metrics", {})
    if "by_pass" in result:
        images, last = "test", result["by_pass"][-1]
        figures = {key: of["value"] for key, of in last.get("metrics", {}).items()} or last
    shown = [f"{name} {figures[name]:.3f}" for name in SHOWN if figures.get(name) is not None]
    return f"; {images} images: {', '.join(shown)}" if shown else ""


def _end(state: "State", record: "Run", options: argparse.Namespace, output: "Output") -> None:
    from mtil.cli.views.rounds import describe, tell

    told = describe(record, state)
    tell(told, output)
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
