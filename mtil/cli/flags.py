"""Command registration and flags shared by several commands."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from mtil.cli.command_line import CommandParser
    from mtil.cli.console import CommandOutput
    from mtil.config import Config
    from mtil.tracking.targets import Target

CommandParsers: TypeAlias = "argparse._SubParsersAction[CommandParser]"
CommandFunction: TypeAlias = "Callable[[argparse.Namespace, CommandOutput], None]"


def add_command(
    commands: CommandParsers,
    name: str,
    run: CommandFunction,
    text: str,
    *,
    configurable: bool = False,
) -> argparse.ArgumentParser:
    """Register a command and return its parser.

    Args:
        commands: subparsers of `mtil`.
        name: the word on the command line.
        run: the function that runs the command.
        text: help text.
        configurable: accept overrides of configuration keys.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        # An unknown flag must be an override or an error, never a guess.
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=run, configurable=configurable)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def add_verbose_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--verbose`, which shows Ray's messages."""
    parser.add_argument("--verbose", action="store_true", help="show Ray's messages")


def add_local(parser: argparse.ArgumentParser, verb: str) -> None:
    """Add the flag of commands that can do without Ray."""
    parser.add_argument("--local", action="store_true", help=f"{verb} in this process, without Ray")


def add_data_version_flag(parser: argparse.ArgumentParser, about: str) -> None:
    """Add `--data-version`, the version of the data set to use."""
    parser.add_argument("--data-version", type=int, metavar="N", help=about)


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags shared by `mtil train` and `mtil circle`."""
    parser.add_argument("--data", required=True, metavar="URI", help="a prepared data set")
    add_data_version_flag(parser, "version of the data set (default: the run's, else the newest)")
    parser.add_argument("--run", required=True, metavar="URI", help="folder for results")
    parser.add_argument(
        "--config",
        default="base",
        metavar="PRESET|FILE",
        help="demo, cpu, best, base or a YAML file",
    )
    parser.add_argument("--fold", "--folds", default="0", help="`0`, `0,2` or `all` (0)")
    parser.add_argument(
        "--init",
        metavar="RUN|MODEL",
        help="start from the weights of another run or of a model file (`train.init`)",
    )
    parser.epilog = (
        "Any configuration key can follow, such as --train.num-epochs 5; "
        "`mtil train --keys` lists the keys."
    )
    parser.add_argument("--keys", action=_ListKeys, help="list the configuration keys and exit")
    add_track_flag(parser)
    add_verbose_flag(parser)


def add_track_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--track`, which shows a run in trackers while it is made."""
    parser.add_argument(
        "--track",
        dest="trackers",
        action="append",
        default=[],
        metavar="TRACKER",
        help="also show the run in `mlflow[=URI]`, `tensorboard[=DIR]` or `wandb[=DIR]`; may be "
        "repeated",
    )


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--to` and `--follow` of the commands that show a run in trackers."""
    parser.add_argument(
        "--to", dest="trackers", action="append", required=True, metavar="TRACKER",
        help="`mlflow[=URI]`, `tensorboard[=DIR]` or `wandb[=DIR]`; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--follow", action="store_true", help="keep the trackers up to date until Ctrl-C"
    )


def read_targets(trackers: Sequence[str]) -> "list[Target]":
    """Return the trackers of `--track`.

    Raises:
        ConfigError: if a tracker is unknown.
        ModuleNotFoundError: if a library is not installed.
    """
    from mtil.tracking.targets import parse_target

    return [parse_target(text) for text in dict.fromkeys(trackers)]


def add_ensemble_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--with`, which names the further runs of an ensemble."""
    parser.add_argument(
        "--with",
        dest="others",
        action="append",
        default=[],
        metavar="RUN",
        help="a further run whose predictions are averaged with the first's; may be repeated",
    )


def read_training_config(options: argparse.Namespace) -> "Config":
    """Return the configuration that `--config`, `--init` and the overrides give.

    Raises:
        ConfigError: if a key is unknown or a value is not allowed.
    """
    from mtil.config import apply_overrides
    from mtil.presets import load_config

    overrides = dict(options.overrides)
    if options.init is not None:
        overrides["train.init"] = options.init
    return apply_overrides(load_config(options.config), overrides)


class _ListKeys(argparse.Action):
    """Prints every configuration key with its default and type, then exits.

    An argparse action runs before required flags are checked, so `mtil train --keys` suffices.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(nargs=0, **options)  # type: ignore[arg-type]

    def __call__(self, *_: object) -> None:
        from mtil.config import describe_config_keys

        for name, kind, value in describe_config_keys():
            print(f"{name:38} {value!s:24} {kind}")  # noqa: T201
        sys.exit(0)


def check_page_name(to: str) -> tuple[str, str]:
    """Return folder and file name of a web page.

    Raises:
        ConfigError: if the name is not that of a web page.
    """
    from mtil.errors import ConfigError
    from mtil.storage import split_uri

    folder, file = split_uri(to)
    if not file.endswith((".html", ".htm")) or to.endswith("/"):
        raise ConfigError(f"`--to` must be an .html file, but is {to!r}.")
    return folder, file
