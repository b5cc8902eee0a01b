"""`mtil stop`: ask the coordinator of a circle to stop."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command
from mtil.errors import DataError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_stop_command(commands: CommandParsers) -> None:
    """Add `mtil stop`."""
    parser = add_command(
        commands, "stop", run_stop, "stop a circle; `mtil circle` resumes it later"
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")


def run_stop(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Ask the circle's coordinator to stop.

    Raises:
        DataError: if the run is no circle or has ended.
    """
    from mtil.circle.ledger import Ledger
    from mtil.circle.state import is_finished
    from mtil.run.folder import Run

    record = Run.open(options.run)
    ledger = Ledger.open(record.store)
    if ledger.state is None:
        raise DataError(
            f"`mtil stop` needs a circle, but {record.uri} has no ledger. End `mtil train` with "
            "Ctrl-C in the terminal where the command runs; repeat the command to resume."
        )
    if is_finished(ledger.state):
        raise DataError(f"{record.uri} has ended already and cannot be stopped.")
    ledger.stop()
    output.line(
        f"Asked {record.uri} to stop. Repeat the `mtil circle` command to resume from the "
        "committed results."
    )
    output.result({"run": options.run, "stopped": True})
