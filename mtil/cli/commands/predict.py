"""`mtil predict`: outline and classify ordinary images."""

import argparse
from typing import TYPE_CHECKING, Any

from mtil.cli.flags import CommandParsers, add_command, add_ensemble_flag

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput, ProgressBar


def add_predict_command(commands: CommandParsers) -> None:
    """Add `mtil predict`."""
    parser = add_command(commands, "predict", run_predict, "outline and classify ordinary images")
    parser.add_argument(
        "model",
        metavar="RUN_OR_CHECKPOINT",
        help="a run, or a model file of a run, rounds/*/fold-*/model-*.pt",
    )
    parser.add_argument("input", metavar="INPUT", help="an image, a folder or a bucket prefix")
    parser.add_argument(
        "out", metavar="OUT", help="folder or bucket prefix for masks, overlays and CSV"
    )
    parser.add_argument(
        "--no-normals",
        dest="normals",
        action="store_false",
        help="each image shows a lesion: outline it, and name no image normal",
    )
    add_ensemble_flag(parser)


def run_predict(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Predict the images of INPUT and write masks, overlays and predictions.csv to OUT."""
    from mtil.prediction.image_files import format_count
    from mtil.prediction.images import predict_location

    with output.progress() as bar:
        summary = predict_location(
            options.model,
            options.input,
            options.out,
            others=options.others,
            normals=options.normals,
            listen=lambda line: _show(line, bar, output),
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
    if summary["num_normal"]:
        output.line(
            f"{format_count(summary['num_normal'], 'image')} of class normal. If all images are "
            "known to show a lesion, `--no-normals` outlines each."
        )
    output.result(summary)


def _show(line: dict[str, Any], bar: "ProgressBar", output: "CommandOutput") -> None:
    if line["kind"] == "predicted":
        bar.show("predicting", line["images"], line["of"], "images")
    else:
        output.line(line["text"])
