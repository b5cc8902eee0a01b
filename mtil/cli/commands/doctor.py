"""`mtil doctor`: check this installation and machine."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command
from mtil.errors import UserError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_doctor_command(commands: CommandParsers) -> None:
    """Add `mtil doctor`."""
    parser = add_command(commands, "doctor", run_doctor, "check this installation and machine")
    parser.add_argument(
        "--to", metavar="URI", help="also write, read and delete a small object at this location"
    )


def run_doctor(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Run the checks and print their results.

    Raises:
        UserError: if a check failed.
    """
    from mtil.doctor import run_checks

    checks = run_checks(options.to, start_ray=_start_ray)
    for check in checks:
        mark = "ok " if check.ok else "NO "
        hint = f" → {check.hint}" if check.hint else ""
        output.line(f"{mark} {check.name}: {check.detail}{hint}")
    failed = [check.name for check in checks if not check.ok]
    output.result({"ok": not failed, "checks": [asdict(check) for check in checks]})
    if failed:
        raise UserError(f"Checks failed: {', '.join(failed)}. See the hints above.")


def _start_ray() -> str:
    """Start and stop Ray. Return its nodes, CPUs and GPUs as text."""
    from mtil.distributed.runtime import cluster

    with cluster.connect_ray():
        nodes = cluster.list_live_nodes()
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return f"{len(nodes)} node(s) with {cpus:g} CPUs and {gpus:g} GPUs"
