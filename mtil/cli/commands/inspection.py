"""`mtil inspect`: describe a data set and the findings of its audit."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import (
    CommandParsers,
    add_command,
    add_data_version_flag,
    check_page_name,
)

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_inspect_command(commands: CommandParsers) -> None:
    """Add `mtil inspect`."""
    parser = add_command(
        commands, "inspect", run_inspect, "describe a data set and the findings of its audit"
    )
    parser.add_argument("data", metavar="URI", help="a prepared data set")
    parser.add_argument("--to", metavar="FILE", help="also make a web page, an .html file")
    add_data_version_flag(parser, "version of the data set (default: the newest)")


def run_inspect(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Print the content of a data set and the findings of its audit."""
    from mtil.cli.views.inspection import print_inspection
    from mtil.data.dataset import manifest as manifests
    from mtil.data.inspection import inspect_dataset, inspection_to_dict
    from mtil.storage import open_store

    place = None if options.to is None else check_page_name(options.to)
    store = open_store(options.data)
    fingerprint = None
    if options.data_version is not None:
        fingerprint = manifests.load_version(store, options.data_version).fingerprint
    inspection = inspect_dataset(store, fingerprint)
    print_inspection(inspection, output)
    if place is not None:
        from mtil.report.audit import build_audit
        from mtil.report.page import render_page

        with output.progress() as bar:
            page = build_audit(
                store, inspection, lambda done, of: bar.show("reading", done, of, "images")
            )
        folder, file = place
        data = render_page(page).encode()
        open_store(folder).write(file, data)
        output.line(f"Page: {options.to} ({len(data) / 1e6:.1f} MB)")
    output.result({"uri": options.data, **inspection_to_dict(inspection)})
