"""`mtil gc`."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import Commands, add_command

if TYPE_CHECKING:
    from mtil.cli.console import Output

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def add_to(commands: Commands) -> None:
    """Add `mtil gc`."""
    parser = add_command(commands, "gc", run, "list what a run needs no more, and delete it")
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    parser.add_argument("--yes", action="store_true", help="delete it")


def run(options: argparse.Namespace, output: "Output") -> None:
    """List what a run does not need any more, and delete it if that was asked for."""
    from mtil.circle import retention
    from mtil.run.folder import Run

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
