"""`mtil gc`: list and delete files of a run that no later step reads."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def add_gc_command(commands: CommandParsers) -> None:
    """Add `mtil gc`."""
    parser = add_command(
        commands, "gc", run_gc, "list the files of a run that no later step reads, or delete them"
    )
    parser.add_argument("--run", required=True, metavar="URI", help="the run")
    parser.add_argument("--yes", action="store_true", help="delete the files")


def run_gc(options: argparse.Namespace, output: "CommandOutput") -> None:
    """List the superseded files of a run. Delete the files with `--yes`."""
    from mtil.circle import retention
    from mtil.run.folder import Run

    record = Run.open(options.run)
    findings = retention.find_superseded_files(record)
    if options.yes:
        retention.delete_superseded_files(record, findings)
    if findings.superseded:
        output.table(
            ["superseded", "where", "files", "size"],
            [
                [item.why, item.folder, str(len(item.files)), format_size(item.bytes)]
                for item in findings.superseded
            ],
        )
    for sentence in findings.left:
        output.line(sentence)
    total = f"{findings.num_files} files, {format_size(findings.bytes)}"
    if not findings.superseded:
        output.line(f"{options.run} has no superseded files.")
    elif options.yes:
        output.line(f"Deleted {total}.")
    else:
        output.line(f"{total}; `mtil gc --run {options.run} --yes` deletes them.")
    output.result(
        {
            "run": options.run,
            "deleted": bool(options.yes),
            "files": findings.num_files,
            "bytes": findings.bytes,
            "superseded": [
                {
                    "why": item.why,
                    "folder": item.folder,
                    "files": list(item.files),
                    "bytes": item.bytes,
                }
                for item in findings.superseded
            ],
            "left": list(findings.left),
        }
    )


def format_size(num_bytes: float) -> str:
    """Return a number of bytes as text in B, KiB, MiB, GiB or TiB."""
    unit = 0
    while num_bytes >= 1024 and unit < len(_UNITS) - 1:
        num_bytes, unit = num_bytes / 1024, unit + 1
    return f"{num_bytes:.0f} B" if unit == 0 else f"{num_bytes:.1f} {_UNITS[unit]}"
