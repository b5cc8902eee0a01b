"""`mtil evaluate`: score the test folds of a run."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import (
    CommandParsers,
    add_command,
    add_ensemble_flag,
    add_local,
    add_verbose_flag,
)
from mtil.errors import ConfigError

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput
    from mtil.run.folder import Run

_MAY_CHANGE = ("train.num_workers", "train.gpus_per_worker")
"""Configuration keys that `mtil evaluate` may override: resources only."""


def add_evaluate_command(commands: CommandParsers) -> None:
    """Add `mtil evaluate`."""
    parser = add_command(
        commands, "evaluate", run_evaluate, "score the test folds of a run", configurable=True
    )
    parser.add_argument("--run", required=True, metavar="URI", help="a trained run")
    parser.add_argument("--data", metavar="URI", help="the data set, if moved since training")
    parser.add_argument(
        "--fold", "--folds",
        help="`0`, `0,2`, `all` (all trained folds) or `holdout`",
    )  # fmt: skip
    parser.add_argument(
        "--round", type=int, metavar="N",
        help="round of a circle (default: the last round reached by all folds)",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("test", "validation"), default="test",
        help="score test rows (default), or the inner validation rows of each fold",
    )  # fmt: skip
    parser.add_argument(
        "--on", metavar="URI",
        help="score all images of another data set with the models of all folds together, in this "
        "process",
    )  # fmt: skip
    parser.add_argument(
        "--errors", action="store_true", help="also print in which images Dice is lost"
    )
    parser.add_argument("--num-workers", type=int, help="processes (default: one per CPU)")
    add_ensemble_flag(parser)
    add_local(parser, "score")
    add_verbose_flag(parser)


def run_evaluate(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Score the selected test folds, store the metrics in the run and print them."""
    from mtil.cli.views.figures import print_errors, print_figures
    from mtil.library.evaluation import request_evaluation, score_folds, store_figures

    if options.on is not None:
        _run_external(options, output)
        return
    request = request_evaluation(
        options.run,
        data=options.data,
        folds=options.fold,
        round_index=options.round,
        role=options.split,
        others=options.others,
    )
    record, folds = request.run, list(request.folds)
    num_workers, gpus = _resources(record, options)

    with output.progress() as bar:

        def listen(line: dict[str, Any]) -> None:
            bar.show("scoring", line["images"], line["of"], "images")

        if options.local:
            predictions = score_folds(request, listen, gpus=gpus)
        else:
            from mtil.distributed.prediction import scoring
            from mtil.distributed.runtime import cluster

            with cluster.connect_ray(verbose=options.verbose):
                predictions = scoring.predict_folds(
                    record,
                    folds,
                    number=request.round_index,
                    role=request.role,
                    others=request.others,
                    num_workers=num_workers,
                    gpus_per_worker=gpus,
                    listen=listen,
                )
    figures = store_figures(request, predictions, options.run)
    print_figures(figures, output)
    if options.errors:
        print_errors(figures["errors"], output)
    path = record.predictions_name(request.round_index, folds[0], request.role, request.others)
    if len(folds) > 1:
        path = path.replace(f"fold-{folds[0]}", "fold-*")
    output.line(f"Per image: {record.uri}/{path}")
    output.result(figures)


def _run_external(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Score all images of another data set and print the metrics."""
    from mtil.cli.views.figures import print_errors, print_figures
    from mtil.library.external import evaluate_external, request_external
    from mtil.run.names import external_predictions_name

    for flag, value in (
        ("--fold", options.fold),
        ("--with", options.others or None),
        ("--split", None if options.split == "test" else options.split),
        ("--data", options.data),
    ):
        if value is not None:
            raise ConfigError(
                f"`--on` scores all images of another data set, but `{flag}` chooses images or "
                "models; leave out one of the two."
            )
    request = request_external(options.run, options.on, round_index=options.round)
    _, gpus = _resources(request.run, options)
    with output.progress() as bar:
        figures = evaluate_external(
            request,
            lambda line: bar.show("scoring", line["images"], line["of"], "images"),
            gpus=gpus,
        )
    if figures["seen"]:
        output.line(
            f"{figures['seen']} images are left out: the models have seen them or near-copies."
        )
    if not figures["normals"]:
        output.line(
            "The data set has no normal image, so every image gets an outline, as with "
            "`mtil predict --no-normals`."
        )
    print_figures(figures, output)
    if options.errors:
        print_errors(figures["errors"], output)
    name = external_predictions_name(request.round_index, request.manifest.fingerprint)
    output.line(f"Per image: {request.run.uri}/{name}")
    output.result(figures)


def _resources(record: "Run", options: argparse.Namespace) -> tuple[int | None, float]:
    """Return the number of workers and the GPUs per worker. None workers: a worker per CPU.

    Raises:
        ConfigError: if an override changes more than resources, or a value is out of range.
    """
    from mtil.config import apply_overrides

    overrides = {key.replace("-", "_"): value for key, value in options.overrides.items()}
    preset = overrides.pop("config", None)
    if preset is not None:
        _check_same_config(preset, overrides, record)
    for key in overrides:
        if key not in _MAY_CHANGE and preset is None:
            raise ConfigError(
                f"Only {' and '.join(f'`{name}`' for name in _MAY_CHANGE)} may change now, "
                f"but got `{key}`; train another run."
            )
    num_workers = options.num_workers
    if num_workers is not None and num_workers < 1:
        raise ConfigError(f"`--num-workers` must be at least 1, but got {num_workers}.")
    # The value bypasses `apply_overrides`, because a configuration allows at most one worker per
    # image of a batch. Scoring has no such limit.
    text = overrides.pop("train.num_workers", None)
    if num_workers is None and text is not None:
        if not text.isdecimal() or not int(text):
            raise ConfigError(f"`train.num_workers` must be at least 1, but got {text!r}.")
        num_workers = int(text)
    return num_workers, apply_overrides(
        record.config, {key: text for key, text in overrides.items() if key in _MAY_CHANGE}
    ).train.gpus_per_worker


def _check_same_config(preset: str, overrides: Mapping[str, str], record: "Run") -> None:
    """Raise `ConfigError` unless a preset with overrides equals the run's configuration.

    Resources may differ.
    """
    from mtil.config import apply_overrides
    from mtil.presets import load_config

    kept = {key: text for key, text in overrides.items() if key not in _MAY_CHANGE}
    given, trained = apply_overrides(load_config(preset), kept), record.config.train
    train = replace(
        given.train, num_workers=trained.num_workers, gpus_per_worker=trained.gpus_per_worker
    )
    if replace(given, train=train) != record.config:
        raise ConfigError(
            f"`--config {preset}` differs from the run's configuration, and scoring needs the "
            "run's. Leave `--config` out."
        )
