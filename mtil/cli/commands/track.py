"""`mtil track`: show a run in MLflow, TensorBoard or Weights & Biases."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command, add_target_flags

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_track_command(commands: CommandParsers) -> None:
    """Add `mtil track`."""
    parser = add_command(
        commands, "track", run_track, "show a run in MLflow, TensorBoard or Weights & Biases"
    )
    parser.add_argument("run", metavar="RUN", help="the run")
    add_target_flags(parser)


def run_track(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Bring trackers up to date with a run, once or until an interrupt."""
    from mtil.cli.views.tracking import update_trackers
    from mtil.run.folder import Run
    from mtil.tracking.runs import RunFollower

    Run.open(options.run)
    update_trackers(RunFollower(options.run).read, options, output)
