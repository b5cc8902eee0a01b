"""`mtil predict`."""

import argparse
from typing import Any

from mtil.cli.console import Bar, Output
from mtil.prediction.images import predict


def run(options: argparse.Namespace) -> None:
    """Predict the images that the options name."""
    output = Output(as_json=options.json)
    with output.progress() as bar:
        summary = predict(
            options.model, options.input, options.out, listen=lambda line: _show(line, bar, output)
        )
    files = summary["files"]
    output.line(
        f"{files['seen']} files: {files['predicted']} predicted, {files['masks']} masks left out, "
        f"{files['ignored']} ignored, {files['skipped']} skipped."
    )
    output.line(
        f"{summary['num_images']} images predicted, {summary['num_unreadable']} unreadable, "
        f"{summary['seconds']:.1f} s; masks, overlays and predictions.csv in {options.out}"
    )
    output.result(summary)


def _show(line: dict[str, Any], bar: Bar, output: Output) -> None:
    if line["kind"] == "predicted":
        bar.show("predicting", line["images"], line["of"])
    else:
        output.line(line["text"])
