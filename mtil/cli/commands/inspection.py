"""`mtil inspect`."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import Commands, add_command, add_data_version

if TYPE_CHECKING:
    from mtil.cli.console import Output


def add_to(commands: Commands) -> None:
    """Add `mtil inspect`."""
    parser = add_command(
        commands, "inspect", run, "say what a data set holds and what its audit found"
    )
    parser.add_argument("data", metavar="URI", help="a prepared data set")
    add_data_version(parser, "which version; the newest if none is named")


def run(options: argparse.Namespace, output: "Output") -> None:
    """Print what a data set holds and what its audit found."""
    from mtil.cli.views.inspection import describe
    from mtil.data.dataset import manifest as manifests
    from mtil.data.inspection import inspect, to_dict
    from mtil.storage import open_store

    store = open_store(options.data)
    wanted = None
    if options.data_version is not None:
        wanted = manifests.load_version(store, options.data_version).fingerprint
    found = inspect(store, wanted)
    describe(found, output)
    output.result({"uri": options.data, **to_dict(found)})
