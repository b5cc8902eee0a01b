"""`mtil circle`: start a circle or join a running one, and follow its rounds."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import (
    CommandParsers,
    add_command,
    add_training_flags,
    read_targets,
    read_training_config,
)
from mtil.errors import RunError
from mtil.process import supervisor

if TYPE_CHECKING:
    from mtil.circle.state import CircleState
    from mtil.cli.console import CommandOutput, ProgressBar
    from mtil.run.folder import Run
    from mtil.run.plan import Action


def add_circle_command(commands: CommandParsers) -> None:
    """Add `mtil circle`."""
    parser = add_command(
        commands,
        "circle",
        run_circle,
        "train in rounds, each with the maps of the previous round",
        configurable=True,
    )
    add_training_flags(parser)


def run_circle(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Run all circle rounds and print their metrics.

    On a cluster named in `RAY_ADDRESS`, Ctrl-C detaches: the run continues without this process.
    """
    from mtil.circle.request import request_circle
    from mtil.tracking.background import follow_in_background

    config, targets = read_training_config(options), read_targets(options.trackers)
    request = request_circle(
        options.data, options.run, config, options.fold, data_version=options.data_version
    )

    # The request above is checked without Ray, so that mistakes are reported before Ray starts.
    from mtil.distributed.circle import driver
    from mtil.distributed.runtime import cluster

    with (
        follow_in_background("mtil.tracking", options.run, targets, output.line),
        cluster.connect_ray(verbose=options.verbose),
        output.progress() as bar,
    ):
        record = driver.begin_circle(request)
        try:
            state = driver.follow_circle(record, CircleEventPrinter(record, bar, output))
        except KeyboardInterrupt:
            # A local Ray cluster and its run end with this process.
            if not os.environ.get("RAY_ADDRESS"):
                raise
            supervisor.acknowledge_interrupt()
            output.line(
                f"Detached; the run continues. `mtil status --run {options.run}` shows its "
                f"progress, `mtil stop --run {options.run}` ends it."
            )
            output.result({"run": options.run, "detached": True})
            return
    _print_end(state, record, options, output)


class CircleEventPrinter:
    """Prints the events of a circle run: progress, finished and failed actions."""

    def __init__(self, record: "Run", bar: "ProgressBar", output: "CommandOutput") -> None:
        self._bar, self._output = bar, output
        self._num_epochs = record.config.train.num_epochs
        self._epochs: dict[Action, int] = {}

    def __call__(self, line: dict[str, Any]) -> None:
        """Print an event of `mtil.distributed.circle.driver.follow_circle`."""
        if line["kind"] == "elsewhere":
            self._output.line("A coordinator on another cluster owns this run; following it.")
            return
        if line["kind"] in ("waits", "trouble"):
            self._output.line(line["text"])
            return
        action = line["action"]
        if line["kind"] == "step":
            text = f"{action}, epoch {line['epoch'] + 1}/{self._num_epochs}"
            self._bar.show(text, line["step"], line["steps"], "steps")
            if self._epochs.get(action) != line["epoch"]:
                self._epochs[action] = line["epoch"]
                self._output.line(text)
        elif line["kind"] == "failed":
            self._output.line(f"Failed: {action}: {line['cause']}")
        else:
            self._output.line(f"Done: {action}{_format_metrics(line['result'])}")


def _format_metrics(result: dict[str, Any]) -> str:
    """Return the metrics of an action's result as text, empty without metrics.

    A training has metrics of its validation images; an evaluation and a summary have metrics of
    the test images after the last pass.
    """
    from mtil.cli.views.rounds import PRINTED_METRICS

    images, metrics = "validation", result.get("metrics", {})
    if "by_pass" in result:
        images, last = "test", result["by_pass"][-1]
        # A summary has intervals under `metrics`; an evaluation has plain numbers.
        metrics = {key: figure["value"] for key, figure in last.get("metrics", {}).items()} or last
    shown = [
        f"{name} {metrics[name]:.3f}" for name in PRINTED_METRICS if metrics.get(name) is not None
    ]
    return f"; {images} images: {', '.join(shown)}" if shown else ""


def _print_end(
    state: "CircleState", record: "Run", options: argparse.Namespace, output: "CommandOutput"
) -> None:
    """Print the metrics of all rounds. Raise `RunError` if folds failed."""
    from mtil.cli.views.rounds import print_rounds, summarise_rounds

    summary = summarise_rounds(record, state)
    print_rounds(summary, output)
    if state.stopped:
        output.line(f"Stopped; `mtil circle` resumes. Run in {options.run}")
    else:
        output.line(f"Run in {options.run}; next: mtil evaluate --run {options.run}")
    output.result({"run": options.run, "rounds": summary.rounds, "failed_folds": summary.failed})
    if state.failed_folds:
        fold, cause = next(iter(sorted(state.failed_folds.items())))
        raise RunError(
            f"{len(state.failed_folds)} of {len(state.plan.folds)} folds failed; fold {fold}: "
            f"{cause}"
        )
