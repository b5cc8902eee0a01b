"""`mtil download`."""

import argparse
from dataclasses import asdict
from pathlib import Path

from mtil.cli.console import Output
from mtil.download import BY_HAND, OFFERS, Offer, download, find
from mtil.errors import UserError

_MB = 10**6


def run(options: argparse.Namespace) -> None:
    """List the collections, or fetch one once its licence is accepted.

    Raises:
        UserError: if the licence is not accepted, or there is no collection of that name to fetch.
    """
    output = Output(as_json=options.json)
    if options.list:
        _list(output)
        return
    offer = None if options.name is None else find(options.name)
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
        num_files = download(
            offer,
            Path(options.out),
            progress=lambda name, done, of: bar.show(f"{name}, MB", done // _MB, of // _MB),
        )
    output.line(f"{num_files} file(s) in {options.out}, as published.")
    output.line(f"Next: mtil prepare {options.out} --layout {offer.layout} --to URI")
    output.result({"out": options.out, "num_files": num_files, **_facts(offer)})


def _list(output: Output) -> None:
    for offer in OFFERS.values():
        size = f"{offer.num_bytes / _MB:.0f} MB"
        output.line(f"{offer.name}: {offer.title}, {size}, {offer.licence}; see {offer.page}.")
    for name, how in BY_HAND.items():
        output.line(f"{name}: {how}")
    output.result(
        {"download": [_facts(offer) for offer in OFFERS.values()], "by_hand": dict(BY_HAND)}
    )


def _facts(offer: Offer) -> dict[str, object]:
    return {**asdict(offer), "num_bytes": offer.num_bytes}
