"""The commands of `mtil`."""

from collections.abc import Sequence

from mtil import __version__
from mtil.cli.answer import Parser, answer
from mtil.cli.commands import (
    circle,
    doctor,
    download,
    evaluate,
    inspection,
    phantom,
    predict,
    prepare,
    retention,
    status,
    stop,
    train,
)
from mtil.process import supervisor

_COMMANDS = (
    phantom, download, prepare, inspection, train, circle, status, stop, retention, evaluate,
    predict, doctor,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 wrong input, 130 interrupted, 1 else.

    Without arguments the command line's are taken, in a process that
    `mtil.process.supervisor` watches.
    """
    if arguments is None:
        supervisor.watch("mtil")
    return answer(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="mtil",
        description="Train one network that outlines breast tumours and says benign or malignant.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mtil {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
