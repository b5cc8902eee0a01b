"""`mtil status`: from the run's files alone, with no cluster."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mtil.cli.flags import Commands, add_command
from mtil.errors import ConfigError, LedgerError, RunError

if TYPE_CHECKING:
    from mtil.cli.console import Output


def add_to(commands: Commands) -> None:
    """Add `mtil status`."""
    parser = add_command(
        commands, "status", run, "say how far a circle or a training is, from its files alone"
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--watch", action="store_true", help="go on until the run has ended")
    what.add_argument(
        "--lineage", metavar="SAMPLE_ID", help="say what an image's map and prediction come from"
    )
    parser.add_argument("--fold", type=int, metavar="N", help="with --lineage: whose map")


def run(options: argparse.Namespace, output: "Output") -> None:
    """Print how far a run is, or what an image's map and prediction come from."""
    from mtil.circle.ledger import Ledger
    from mtil.circle.lineage.history import trace
    from mtil.cli.views import circles, lineage, trainings
    from mtil.run.folder import Run

    record = Run.open(options.run)
    if options.fold is not None and options.lineage is None:
        raise ConfigError("`--fold` says whose map `--lineage` is of; give both, or neither.")
    if options.lineage is not None:
        with _verified(options.run, output):
            found = trace(record, options.lineage, options.fold)
        lineage.tell(found, options.run, output)
        return
    with _verified(options.run, output):
        ledger = Ledger.open(record.store)
        state = ledger.state
        if state is None:
            trainings.tell(record, options.run, output, watch=options.watch)
        else:
            circles.tell(record, ledger, state, options.run, output, watch=options.watch)


@contextmanager
def _verified(uri: str, output: "Output") -> Iterator[None]:
    """Print what a damaged run is said to be by `--json`, too."""
    try:
        yield
    except (LedgerError, RunError) as error:
        output.result({"run": uri, "verified": False, "error": str(error)})
        raise
