"""Shell completion of commands, options and configuration keys."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtil.cli.command_line import CommandParser

PROGRAMS = ("mtil", "mtil-tune")


def answer_shell(parser: "CommandParser") -> None:
    """Print the completions and exit, if the shell asks for completions; else return.

    Args:
        parser: the parser of the program, with all commands.
    """
    if "_ARGCOMPLETE" not in os.environ:
        return
    import argcomplete

    _add_config_keys(parser)
    argcomplete.autocomplete(parser)


def make_script(shell: str) -> str:
    """Return the script by which a shell learns to complete both programs."""
    from argcomplete.shell_integration import shellcode

    # zsh reads the same script as bash.
    script: str = shellcode(PROGRAMS, shell="bash" if shell == "zsh" else shell)
    return script


def _add_config_keys(parser: argparse.ArgumentParser) -> None:
    """Declare the configuration keys as options of the commands that take them."""
    from mtil.config import describe_config_keys

    (commands,) = (
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    )
    for command in commands.choices.values():
        if not command.get_default("configurable"):
            continue
        for key, kind, _ in describe_config_keys():
            words = kind.split("|") if "|" in kind else None
            command.add_argument(f"--{key.replace('_', '-')}", choices=words)
