"""`mtil gc`."""

import argparse

from mtil.circle import retention
from mtil.cli.console import Output
from mtil.run.folder import Run

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def run(options: argparse.Namespace) -> None:
    """List what a run does not need any more, and delete it if that was asked for."""
    output = Output(as_json=options.json)
    record = Run.open(options.run)
    found = retention.find(record)
    if options.yes:
        retention.delete(record, found)
    if found.superseded:
        output.table(
            ["superseded", "where", "files", "size"],
            [
                [one.why, one.folder, str(len(one.files)), size(one.bytes)]
                for one in found.superseded
            ],
        )
    for sentence in found.left:
        output.line(sentence)
    total = f"{found.num_files} files, {size(found.bytes)}"
    if not found.superseded:
        output.line(f"{options.run} keeps nothing that it does not need.")
    elif options.yes:
        output.line(f"Deleted {total}.")
    else:
        output.line(f"{total}; `mtil gc --run {options.run} --yes` deletes them.")
    output.result(
        {
            "run": options.run,
            "deleted": bool(options.yes),
            "files": found.num_files,
            "bytes": found.bytes,
            "superseded": [
                {
                    "why": one.why,
                    "folder": one.folder,
                    "files": list(one.files),
                    "bytes": one.bytes,
                }
                for one in found.superseded
            ],
            "left": list(found.left),
        }
    )


def size(number: float) -> str:
    """Return a number of bytes in the unit that a person would take."""
    unit = 0
    while number >= 1024 and unit < len(_UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.1f} {_UNITS[unit]}"
