"""`mtil train`: train folds without circle rounds."""

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import Commands, add_command, add_training

if TYPE_CHECKING:
    from mtil.cli.console import Bar, Output
    from mtil.run.folder import FoldResult


def add_to(commands: Commands) -> None:
    """Add `mtil train`."""
    parser = add_command(commands, "train", run, "train one fold, several or all",
                         configurable=True)  # fmt: skip
    add_training(parser)


def run(options: argparse.Namespace, output: "Output") -> None:
    """Train the selected folds and print their metrics on inner validation images."""
    from mtil import presets
    from mtil.circle.begin import request_trainings
    from mtil.config import with_overrides

    config = with_overrides(presets.load(options.config), options.overrides)
    request = request_trainings(
        options.data, options.run, config, options.fold, data_version=options.data_version
    )

    # The request above is checked without Ray, so that mistakes are reported before Ray starts.
    from mtil.distributed.runtime import cluster
    from mtil.distributed.training import trainer

    with cluster.connected(verbose=options.verbose), output.progress() as bar:
        results = trainer.train(
            request, lambda line: _show(line, config.train.num_epochs, bar, output)
        )
    for result in results:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in result.metrics.items())
        output.line(
            f"fold {result.fold}: best epoch {result.best_epoch}, {figures} (inner validation), "
            f"{result.seconds:.0f} s"
        )
    output.line(f"Run in {options.run}; next: mtil evaluate --run {options.run}")
    folds = [_fold_values(result, options.run) for result in results]
    output.result(folds[0] if len(results) == 1 else {"run": options.run, "folds": folds})


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


def _show(line: dict[str, Any], num_epochs: int, bar: "Bar", output: "Output") -> None:
    """Show a training event: a step on the bar, an epoch as a line of losses and metrics."""
    if line["kind"] == "step":
        bar.show(f"epoch {line['epoch'] + 1}/{num_epochs}", line["step"], line["steps"])
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
            f"waiting {line['data_wait_share']:.1%}"
        )
