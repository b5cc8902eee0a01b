"""Flags that several commands have."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mtil.cli.answer import Parser
    from mtil.cli.console import Output

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Run: TypeAlias = "Callable[[argparse.Namespace, Output], None]"


def add_command(
    commands: Commands, name: str, run: Run, text: str, *, configurable: bool = False
) -> argparse.ArgumentParser:
    """Add a command, which is a function, with what its help says of it."""
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=run, configurable=configurable)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def add_verbose(parser: argparse.ArgumentParser) -> None:
    """Add what commands on Ray take."""
    parser.add_argument("--verbose", action="store_true", help="show what Ray says")


def add_local(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the flag of commands that can do without Ray."""
    parser.add_argument("--local", action="store_true", help=f"{verb} in this process, without Ray")


def add_data_version(parser: argparse.ArgumentParser, about: str) -> None:
    """Add which version of a data set is meant."""
    parser.add_argument("--data-version", type=int, metavar="N", help=about)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what `mtil train` and `mtil circle` take."""
    parser.add_argument("--data", required=True, metavar="URI", help="a prepared data set")
    add_data_version(parser, "which version of it; the run's, or the newest, if none is named")
    parser.add_argument("--run", required=True, metavar="URI", help="where results go")
    parser.add_argument(
        "--config", default="base", metavar="PRESET|FILE", help="demo, cpu, base or a YAML file"
    )
    parser.add_argument("--fold", "--folds", default="0", help="`0`, `0,2` or `all` (0)")
    parser.epilog = (
        "Any configuration key can follow, such as --train.num-epochs 5; "
        "`mtil train --keys` lists them."
    )
    parser.add_argument("--keys", action=_Keys, help="list the configuration keys and leave")
    add_verbose(parser)


class _Keys(argparse.Action):
    def __init__(self, **options: object) -> None:
        super().__init__(nargs=0, **options)  # type: ignore[arg-type]

    def __call__(self, *_: object) -> None:
        from mtil.config import documented

        for name, kind, value in documented():
            print(f"{name:38} {value!s:24} {kind}")  # noqa: T201
        sys.exit(0)
