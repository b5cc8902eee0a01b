"""`mtil status`: show a run's progress from its files alone, without a cluster."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command
from mtil.errors import ConfigError, LedgerError, RunError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_status_command(commands: CommandParsers) -> None:
    """Add `mtil status`."""
    parser = add_command(
        commands,
        "status",
        run_status,
        "show the progress of a circle or a training from its files alone",
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    view = parser.add_mutually_exclusive_group()
    view.add_argument(
        "--watch", "--follow", action="store_true",
        help="follow the run until it has ended; on a terminal as a live table",
    )  # fmt: skip
    view.add_argument(
        "--lineage", metavar="SAMPLE_ID", help="show the origin of an image's map and prediction"
    )
    parser.add_argument("--fold", type=int, metavar="N", help="with --lineage: fold of the map")


def run_status(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Print a run's progress, or the lineage of an image's map and prediction."""
    from mtil.circle.ledger import Ledger
    from mtil.circle.lineage.history import trace_lineage
    from mtil.cli.views import circles, lineage, trainings
    from mtil.run.folder import Run

    record = Run.open(options.run)
    if options.fold is not None and options.lineage is None:
        raise ConfigError(
            "`--fold` selects the map of `--lineage`. Give both options, or leave out `--fold`."
        )
    if options.lineage is not None:
        with _report_damage(options.run, output):
            traced = trace_lineage(record, options.lineage, options.fold)
        lineage.print_lineage(traced, options.run, output)
        return
    with _report_damage(options.run, output):
        ledger = Ledger.open(record.store)
        state = ledger.state
        # Only a circle has a ledger: `mtil train` writes none.
        if state is None:
            trainings.print_trainings(record, options.run, output, watch=options.watch)
        else:
            circles.print_circle(record, ledger, state, options.run, output, watch=options.watch)


@contextmanager
def _report_damage(uri: str, output: "CommandOutput") -> Iterator[None]:
    """Print the JSON object of a damaged run (`verified` is false) before its error is raised."""
    try:
        yield
    except (LedgerError, RunError) as error:
        output.result({"run": uri, "verified": False, "error": str(error)})
        raise
