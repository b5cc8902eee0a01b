"""`mtil inspect`: describe a data set and the findings of its audit."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import Commands, add_command, add_data_version

if TYPE_CHECKING:
    from mtil.cli.console import Output


def add_to(commands: Commands) -> None:
    """Add `mtil inspect`."""
    parser = add_command(
        commands, "inspect", run, "describe a data set and the findings of its audit"
    )
    parser.add_argument("data", metavar="URI", help="a prepared data set")
    add_data_version(parser, "version of the data set (default: the newest)")


def run(options: argparse.Namespace, output: "Output") -> None:
    """Print the content of a data set and the findings of its audit."""
    from mtil.cli.views.inspection import describe
    from mtil.data.dataset import manifest as manifests
    from mtil.data.inspection import inspect, to_dict
    from mtil.storage import open_store

    store = open_store(options.data)
    fingerprint = None
    if options.data_version is not None:
        fingerprint = manifests.load_version(store, options.data_version).fingerprint
    inspection = inspect(store, fingerprint)
    describe(inspection, output)
    output.result({"uri": options.data, **to_dict(inspection)})
