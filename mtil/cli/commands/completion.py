"""`mtil completion`: the script by which a shell completes commands."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_completion_command(commands: CommandParsers) -> None:
    """Add `mtil completion`."""
    parser = add_command(
        commands, "completion", run_completion, "print a script that completes commands in a shell"
    )
    parser.add_argument(
        "shell", choices=("bash", "zsh", "fish"), help='for bash: eval "$(mtil completion bash)"'
    )


def run_completion(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Print the script of a shell."""
    from mtil.cli.completion import make_script

    script = make_script(options.shell)
    output.line(script)
    output.result({"shell": options.shell, "script": script})
