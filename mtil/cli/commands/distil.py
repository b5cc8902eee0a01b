"""`mtil distil`: train one model on the outputs of an ensemble."""

import argparse
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import CommandParsers, add_command, add_ensemble_flag, add_verbose_flag

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput
    from mtil.config import Config


def add_distil_command(commands: CommandParsers) -> None:
    """Add `mtil distil`."""
    parser = add_command(
        commands, "distil", run_distil, "train one model on the outputs of an ensemble",
        configurable=True,
    )  # fmt: skip
    parser.add_argument("teacher", metavar="RUN", help="a trained run, whose models teach")
    add_ensemble_flag(parser)
    parser.add_argument("--to", required=True, metavar="URI", help="folder of the new run")
    parser.add_argument(
        "--config", metavar="PRESET|FILE", help="configuration (default: the teacher's)"
    )
    parser.add_argument("--fold", "--folds", default="0", help="`0`, `0,2` or `all` (0)")
    add_verbose_flag(parser)


def run_distil(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Write the teacher's outputs into the new run, train the folds in this process and print."""
    from mtil.cli.commands.train import print_results, show_training
    from mtil.library.distillation import request_distillation, write_outputs
    from mtil.library.training import choose_device, train_folds, with_one_worker

    config = with_one_worker(_read_config(options))
    teachers = [options.teacher, *options.others]
    request = request_distillation(teachers, options.to, config, options.fold)
    with output.progress() as bar:

        def listen(line: dict[str, Any]) -> None:
            if line["kind"] == "taught":
                bar.show(f"teacher of fold {line['fold']}", line["images"], line["of"], "images")
            else:
                show_training(line, config.train.num_epochs, bar, output)

        device = choose_device(config.train.gpus_per_worker)
        write_outputs(request, teachers, device, listen)
        results = train_folds(request, listen)
    print_results(results, options.to, "--local ", output)


def _read_config(options: argparse.Namespace) -> "Config":
    from mtil.config import apply_overrides
    from mtil.presets import load_config
    from mtil.run.folder import Run

    base = (
        Run.open(options.teacher).config if options.config is None else load_config(options.config)
    )
    return apply_overrides(base, options.overrides)
