"""`mtil stop`."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import Commands, add_command
from mtil.errors import DataError

if TYPE_CHECKING:
    from mtil.cli.console import Output


def add_to(commands: Commands) -> None:
    """Add `mtil stop`."""
    parser = add_command(commands, "stop", run, "end a circle; it can go on later")
    parser.add_argument("--run", required=True, metavar="URI", help="the run")


def run(options: argparse.Namespace, output: "Output") -> None:
    """Ask the circle's coordinator to end.

    Raises:
        DataError: if the run is no circle, or has ended.
    """
    from mtil.circle.ledger import Ledger
    from mtil.circle.state import is_over
    from mtil.run.folder import Run

    record = Run.open(options.run)
    ledger = Ledger.open(record.store)
    if ledger.state is None:
        raise DataError(
            f"Only a circle is stopped from elsewhere, but {record.uri} has no ledger; end its "
            "`mtil train` by Ctrl-C where it runs, and the same command goes on later."
        )
    if is_over(ledger.state):
        raise DataError(f"A run must still be going on to be stopped, but {record.uri} has ended.")
    ledger.stop()
    output.line(
        f"{record.uri} is told to stop; the same `mtil circle` goes on from what is committed."
    )
    output.result({"run": options.run, "stopped": True})
