"""Commands and flags of `mtil-tune`.

Heavy imports stay inside the commands: `--help` is instant.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtil.cli.command_line import CommandParser, run_command_line
from mtil.cli.completion import answer_shell
from mtil.cli.flags import CommandParsers, add_target_flags, add_track_flag
from mtil.process import supervisor

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Return the exit code: 0 done, 2 wrong input, 130 interrupted, else 1."""
    parser = _parser()
    if arguments is None:
        answer_shell(parser)
        supervisor.supervise_command("mtil-tune")
    return run_command_line(parser, arguments)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="mtil-tune",
        description="Search for a training configuration, and compare the winner with the default.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_run,
        _add_status,
        _add_show,
        _add_export,
        _add_report,
        _add_track,
        _add_confirm,
    ):
        add(commands)
    return parser


def _run_command(options: argparse.Namespace, output: "CommandOutput") -> None:
    from tune import commands

    commands.run_tune_command(options, output)


def _add_command(
    commands: CommandParsers, name: str, text: str, *, configurable: bool = False
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(handler=_run_command, configurable=configurable)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--run", required=True, metavar="URI", help="the folder of the search")
    return parser


def _add_run(commands: CommandParsers) -> None:
    parser = _add_command(commands, "run", "start or resume a search", configurable=True)
    parser.add_argument("--data", required=True, metavar="URI", help="a prepared data set")
    parser.add_argument(
        "--data-version", type=int, metavar="N",
        help="version of the data set (the version of the search, else the newest)",
    )  # fmt: skip
    parser.add_argument(
        "--config", default="base", metavar="PRESET|FILE",
        help="base configuration of the search: demo, cpu, best, base or a YAML file (base)",
    )  # fmt: skip
    parser.add_argument(
        "--num-trials", type=int, default=24, metavar="N", help="total number of trials (24)"
    )
    space = parser.add_argument_group("search space and objective")
    space.add_argument(
        "--space", default="attention,loss", metavar="NAMES",
        help="attention, aggregation, loss, optimiser, augment; with --circle also prior, circle "
        "(attention,loss)",
    )  # fmt: skip
    space.add_argument(
        "--narrow", metavar="FILE", help="a YAML file that narrows or fixes keys of the space"
    )
    space.add_argument(
        "--objective", default="0.5*dice+0.5*auc",
        help="dice, auc or f1 on the inner validation rows, a weighted sum, or two goals separated "
        "by a comma (0.5*dice+0.5*auc)",
    )  # fmt: skip
    space.add_argument(
        "--sampler",
        choices=("tpe", "nsga2", "random"),
        default="tpe",
        help="sampler of trials; nsga2 needs hundreds of trials, so tpe also suits two goals (tpe)",
    )
    space.add_argument(
        "--search-seed",
        type=int,
        default=0,
        help="seed of the sampler; trials use the seed of the configuration (0)",
    )
    space.add_argument(
        "--storage", metavar="FILE|URL",
        help="Optuna storage of the study, such as sqlite:///FILE, without a password "
        "(RUN/study.journal)",
    )  # fmt: skip
    budget = parser.add_argument_group("budget of a trial")
    budget.add_argument(
        "--fold", "--folds", default="0", help="folds to train: `0`, `0,2` or `all` (0)"
    )
    budget.add_argument(
        "--trial-epochs",
        type=int,
        metavar="N",
        help="epochs of a training (as in the configuration)",
    )
    budget.add_argument(
        "--trial-image-size", type=int, metavar="N", help="side of the images in pixels (likewise)"
    )
    budget.add_argument(
        "--trial-workers", type=int, metavar="N", help="workers of a training (likewise)"
    )
    budget.add_argument("--circle", action="store_true", help="train a whole circle in each trial")
    budget.add_argument(
        "--stop-early", choices=("none", "median", "halving"), default="none",
        help="stop a trial below the median of completed trials, or outside the best share of the "
        "trials that reached the same epoch (none)",
    )  # fmt: skip
    budget.add_argument(
        "--first-check",
        type=int,
        default=2,
        metavar="EPOCHS",
        help="epochs before the first check (2)",
    )
    budget.add_argument(
        "--check-factor", type=int, default=2, metavar="N",
        help="check again after N times the epochs; halving keeps one trial in N (2)",
    )  # fmt: skip
    parser.add_argument(
        "--max-concurrent",
        type=int,
        metavar="N",
        help="maximum number of concurrent trials (as the cluster allows)",
    )
    parser.add_argument(
        "--keep-models",
        action="store_true",
        help="keep the models of trials, not only the histories",
    )
    add_track_flag(parser)
    parser.add_argument("--verbose", action="store_true", help="show Ray's output")
    parser.epilog = "Any configuration key can follow, as with `mtil train`."


def _add_status(commands: CommandParsers) -> None:
    _add_command(commands, "status", "list the trials, with the causes of failures")


def _add_show(commands: CommandParsers) -> None:
    parser = _add_command(commands, "show", "show the best trials, and the importance of each key")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="number of trials (5)")


def _add_export(commands: CommandParsers) -> None:
    parser = _add_command(commands, "export", "write the whole configuration of the best trial")
    parser.add_argument(
        "--to", required=True, metavar="FILE", help="YAML file to write, for --config"
    )
    parser.add_argument("--trial", type=int, metavar="N", help="trial to export (the best)")


def _add_report(commands: CommandParsers) -> None:
    parser = _add_command(commands, "report", "write an HTML page with plots of the search")
    parser.add_argument("--to", metavar="FILE", help="page to write (RUN/report.html)")


def _add_track(commands: CommandParsers) -> None:
    parser = _add_command(
        commands, "track", "show a search in MLflow, TensorBoard or Weights & Biases"
    )
    add_target_flags(parser)


def _add_confirm(commands: CommandParsers) -> None:
    parser = _add_command(
        commands,
        "confirm",
        "train the best trials and the default on the full schedule with new seeds, and compare "
        "the test figures",
        configurable=True,
    )
    parser.add_argument(
        "--top",
        type=int,
        default=1,
        metavar="K",
        help="number of trials; with two goals, of the Pareto front (1)",
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="number of seeds (3)")
    parser.add_argument(
        "--fold",
        "--folds",
        help="folds to compare on: `0`, `0,2`, `all` or `holdout` (the folds of the search)",
    )
    parser.add_argument(
        "--config",
        metavar="PRESET|FILE",
        help="base configuration for the trials' overrides (the search's)",
    )
    parser.add_argument("--verbose", action="store_true", help="show Ray's output")
    parser.epilog = "Any configuration key can follow, as with `mtil train`."
