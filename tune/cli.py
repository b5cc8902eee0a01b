"""`mtil-tune`: its commands and flags. Nothing heavy is imported before a command runs."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtil.cli.answer import Parser, answer
from mtil.cli.flags import Commands
from mtil.process import supervisor

if TYPE_CHECKING:
    from mtil.cli.console import Output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 2 wrong input, 130 interrupted, 1 else."""
    if arguments is None:
        supervisor.watch("mtil-tune")
    return answer(_parser(), arguments)


def _parser() -> Parser:
    parser = Parser(
        prog="mtil-tune",
        description="Search for the configuration to train with, and check what was found.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_run, _status, _show, _export, _report, _confirm):
        add(commands)
    return parser


def _handle(options: argparse.Namespace, output: "Output") -> None:
    from tune import commands

    commands.run(options, output)


def _command(
    commands: Commands, name: str, text: str, *, configurable: bool = False
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(handler=_handle, configurable=configurable)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--run", required=True, metavar="URI", help="where the search is")
    return parser


def _run(commands: Commands) -> None:
    parser = _command(commands, "run", "search, or go on searching", configurable=True)
    parser.add_argument("--data", required=True, metavar="URI", help="a prepared data set")
    parser.add_argument(
        "--data-version", type=int, metavar="N",
        help="which version of it; the search's, or the newest, if none is named",
    )  # fmt: skip
    parser.add_argument(
        "--config", default="base", metavar="PRESET|FILE",
        help="what is searched around, and trained in the end: demo, cpu, base or a YAML file",
    )  # fmt: skip
    parser.add_argument(
        "--num-trials", type=int, default=24, metavar="N", help="trials in the end, in all (24)"
    )
    space = parser.add_argument_group("what is searched")
    space.add_argument(
        "--space", default="attention,loss", metavar="NAMES",
        help="attention, aggregation, loss, optimiser, augment, and with --circle prior, circle "
        "(attention,loss)",
    )  # fmt: skip
    space.add_argument(
        "--narrow", metavar="FILE", help="a YAML file that narrows or fixes keys of the space"
    )
    space.add_argument(
        "--objective", default="0.5*dice+0.5*auc",
        help="of dice, auc and f1 on the inner validation rows: one, a weighted sum, or two goals "
        "with a comma between (0.5*dice+0.5*auc)",
    )  # fmt: skip
    space.add_argument(
        "--sampler",
        choices=("tpe", "nsga2", "random"),
        default="tpe",
        help="who suggests; tpe for two goals too, as nsga2 needs hundreds of trials (tpe)",
    )
    space.add_argument(
        "--search-seed",
        type=int,
        default=0,
        help="of the suggestions; each trial has the configuration's own (0)",
    )
    space.add_argument(
        "--storage", metavar="FILE|URL",
        help="an Optuna storage for the study, such as sqlite:///FILE, without a password "
        "(RUN/study.journal)",
    )  # fmt: skip
    budget = parser.add_argument_group("what each trial is given")
    budget.add_argument("--fold", "--folds", default="0", help="`0`, `0,2` or `all` (0)")
    budget.add_argument("--trial-epochs", type=int, metavar="N", help="as in the configuration")
    budget.add_argument("--trial-image-size", type=int, metavar="N", help="likewise")
    budget.add_argument("--trial-workers", type=int, metavar="N", help="likewise")
    budget.add_argument("--circle", action="store_true", help="each trial is a whole circle")
    budget.add_argument(
        "--stop-early", choices=("none", "median", "halving"), default="none",
        help="end a trial below the median of the completed ones, or not among the best share of "
        "those that came as far (none)",
    )  # fmt: skip
    budget.add_argument(
        "--first-check", type=int, default=2, metavar="EPOCHS", help="when that is first asked (2)"
    )
    budget.add_argument(
        "--check-factor", type=int, default=2, metavar="N",
        help="it is asked again after N times the epochs; with halving, one of N goes on (2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-concurrent", type=int, metavar="N", help="trials at a time (as there is room)"
    )
    parser.add_argument(
        "--keep-models", action="store_true", help="keep each trial's model, not its history alone"
    )
    parser.add_argument("--verbose", action="store_true", help="show what Ray says")
    parser.epilog = "Any configuration key can follow, as with `mtil train`."


def _status(commands: Commands) -> None:
    _command(commands, "status", "list the trials, and why some failed")


def _show(commands: Commands) -> None:
    parser = _command(commands, "show", "show the best trials, and which keys have mattered")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many trials (5)")


def _export(commands: Commands) -> None:
    parser = _command(commands, "export", "write the best trial's whole configuration")
    parser.add_argument("--to", required=True, metavar="FILE", help="a YAML file for --config")
    parser.add_argument("--trial", type=int, metavar="N", help="another trial than the best")


def _report(commands: Commands) -> None:
    parser = _command(commands, "report", "write a page with the plots of the search")
    parser.add_argument("--to", metavar="FILE", help="RUN/report.html")


def _confirm(commands: Commands) -> None:
    parser = _command(
        commands,
        "confirm",
        "train the best trials and the default on the full schedule with other seeds, and compare "
        "them on the test rows",
        configurable=True,
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="how many trials, of two goals' front (1)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds (3)")
    parser.add_argument(
        "--fold", "--folds", help="`0`, `0,2`, `all` or `holdout` (those of the search)"
    )
    parser.add_argument(
        "--config", metavar="PRESET|FILE", help="lay the trials over another configuration"
    )
    parser.add_argument("--verbose", action="store_true", help="show what Ray says")
    parser.epilog = "Any configuration key can follow, as with `mtil train`."
