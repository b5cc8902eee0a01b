"""`mtil download`: fetch a published collection after its licence is accepted."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command
from mtil.errors import UserError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput
    from mtil.download import Offer

_MB = 10**6


def add_download_command(commands: CommandParsers) -> None:
    """Add `mtil download`."""
    parser = add_command(commands, "download", run_download, "fetch a published collection")
    parser.add_argument("name", metavar="NAME", nargs="?", help="such as bus_bra; see --list")
    parser.add_argument("out", metavar="OUT", nargs="?", help="an empty or new folder")
    parser.add_argument(
        "--accept-licence", action="store_true", help="you have read the licence and accept it"
    )
    parser.add_argument("--list", action="store_true", help="list the collections and exit")


def run_download(options: argparse.Namespace, output: "CommandOutput") -> None:
    """List the collections, or download a collection if its licence is accepted.

    Raises:
        UserError: if the licence is not accepted, the name is unknown, or OUT is no local folder.
    """
    from mtil.download import download_collection, find_offer

    if options.list:
        _list(output)
        return
    offer = None if options.name is None else find_offer(options.name)
    if offer is None or options.out is None:
        raise UserError(
            "`mtil download` must be given NAME and OUT; `mtil download --list` shows the names."
        )
    if "://" in options.out:
        raise UserError(f"OUT must be a local folder, but got {options.out!r}.")
    output.line(f"Licence: {offer.licence}")
    output.line(f"Cite: {offer.citation}")
    if not options.accept_licence:
        raise UserError(
            f"The licence of {offer.title} must be accepted first; read it and give the same "
            "command with --accept-licence."
        )
    with output.progress() as bar:
        num_files = download_collection(
            offer,
            Path(options.out),
            progress=lambda name, done, size: bar.show(f"{name}, MB", done // _MB, size // _MB),
        )
    output.line(f"{num_files} file(s) in {options.out}, as published.")
    output.line(f"Next: mtil prepare {options.out} --layout {offer.layout} --to URI")
    output.result({"out": options.out, "num_files": num_files, **_offer_values(offer)})


def _list(output: "CommandOutput") -> None:
    """Print the collections that can be downloaded, and how to get the rest by hand."""
    from mtil.download import MANUAL_DOWNLOADS, OFFERS

    for offer in OFFERS.values():
        size = f"{offer.num_bytes / _MB:.0f} MB"
        output.line(f"{offer.name}: {offer.title}, {size}, {offer.licence}; see {offer.page}.")
    for name, instructions in MANUAL_DOWNLOADS.items():
        output.line(f"{name}: {instructions}")
    output.result(
        {
            "download": [_offer_values(offer) for offer in OFFERS.values()],
            "by_hand": dict(MANUAL_DOWNLOADS),
        }
    )


def _offer_values(offer: "Offer") -> dict[str, object]:
    return {**asdict(offer), "num_bytes": offer.num_bytes}
