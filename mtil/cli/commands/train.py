"""`mtil train`: train folds without circle rounds."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import (
    CommandParsers,
    add_command,
    add_local,
    add_training_flags,
    read_targets,
    read_training_config,
)
from mtil.errors import ConfigError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput, ProgressBar
    from mtil.config import Config
    from mtil.run.folder import FoldResult


def add_train_command(commands: CommandParsers) -> None:
    """Add `mtil train`."""
    parser = add_command(commands, "train", run_train, "train one fold, several or all",
                         configurable=True)  # fmt: skip
    add_training_flags(parser)
    add_local(parser, "train")


def run_train(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Train the selected folds and print their metrics on inner validation images."""
    from mtil.circle.request import request_trainings
    from mtil.tracking.background import follow_in_background

    config, targets = read_training_config(options), read_targets(options.trackers)
    if options.local:
        config = _in_one_process(config, options)
    request = request_trainings(
        options.data, options.run, config, options.fold, data_version=options.data_version
    )
    with (
        follow_in_background("mtil.tracking", options.run, targets, output.line),
        output.progress() as bar,
    ):

        def listen(line: dict[str, Any]) -> None:
            show_training(line, config.train.num_epochs, bar, output)

        if options.local:
            from mtil.library.training import train_folds

            results = train_folds(request, listen)
        else:
            from mtil.distributed.runtime import cluster
            from mtil.distributed.training.folds import run_trainings

            with cluster.connect_ray(verbose=options.verbose):
                results = run_trainings(request, listen)
    print_results(results, options.run, "--local " if options.local else "", output)


def print_results(
    results: "Sequence[FoldResult]", run_uri: str, flag: str, output: "CommandOutput"
) -> None:
    """Print the figures of trained folds, and the command that scores them with a flag."""
    for result in results:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        output.line(
            f"fold {result.fold}: best epoch {result.best_epoch}, {figures} (inner validation), "
            f"{result.seconds:.0f} s"
        )
    output.line(f"Run in {run_uri}; next: mtil evaluate {flag}--run {run_uri}")
    folds = [_fold_values(result, run_uri) for result in results]
    output.result(folds[0] if len(results) == 1 else {"run": run_uri, "folds": folds})


def _in_one_process(config: "Config", options: argparse.Namespace) -> "Config":
    from mtil.library.training import with_one_worker

    keys = {key.replace("-", "_"): value for key, value in options.overrides.items()}
    asked = keys.get("train.num_workers")
    if asked not in (None, "1"):
        raise ConfigError(
            f"`--local` trains with one worker, but `train.num_workers` is {asked}; leave out one "
            "of the two."
        )
    return with_one_worker(config)


def _fold_values(result: "FoldResult", uri: str) -> dict[str, Any]:
    """Return the JSON values of a trained fold."""
    names = (
        "fold",
        "best_epoch",
        "num_epochs",
        "seconds",
        "metrics",
        "model_sha256",
        "fingerprint",
    )
    values = asdict(result)
    return {"run": uri} | {name: values[name] for name in names}


def show_training(
    line: dict[str, Any], num_epochs: int, bar: "ProgressBar", output: "CommandOutput"
) -> None:
    """Show a training event: a step on the bar, an epoch as a line of losses and metrics."""
    if line["kind"] == "step":
        text = f"fold {line['fold']} epoch {line['epoch'] + 1}/{num_epochs}"
        bar.show(text, line["step"], line["steps"], "steps")
    elif line["kind"] == "epoch":
        losses = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in line.items()
            if name.startswith("loss_")
        )
        figures = " ".join(
            f"{name.removeprefix('validation_')} {value:.3f}"
            for name, value in line.items()
            if name.startswith("validation_")
        )
        output.line(
            f"fold {line['fold']} epoch {line['epoch'] + 1}/{num_epochs}  loss {losses}  "
            f"validation {figures}  {line['images_per_second']:.1f} images/s, "
            f"waiting {line['data_wait_share']:.1%}{_describe_left(line, num_epochs)}"
        )


def _describe_left(line: dict[str, Any], num_epochs: int) -> str:
    """Return the time for the remaining epochs, if they take as long as the last."""
    from mtil.cli.console import format_time_left

    remaining = num_epochs - line["epoch"] - 1
    return f", {format_time_left(remaining * line['seconds'])} left" if remaining else ""
