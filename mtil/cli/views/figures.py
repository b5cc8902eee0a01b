"""Print the figures of an evaluation: metrics with intervals, strata and the error budget."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtil.cli.console import CommandOutput
from mtil.data.dataset.shards import HOLDOUT

_INTERVAL = ("value", "low", "high")
_OUTLINES = ("dice", "dice_median", "iou", "hd95", "miss_rate")


def print_figures(figures: Mapping[str, Any], output: CommandOutput) -> None:
    """Print the metrics: overall, by pass, class, lesion size and source, and in millimetres.

    Args:
        figures: as `mtil evaluate --json` prints them.
        output: the console.
    """
    output.line(_describe_images(figures))
    output.table(
        ["metric", "value", "low", "high"],
        [
            [name, *_format_values(interval, _INTERVAL)]
            for name, interval in figures["metrics"].items()
        ],
    )
    _print_passes(figures["by_pass"], output)
    _print_classes(figures["by_class"], output)
    _print_sizes(figures["by_size"], output)
    for key in ("source", "objection"):
        _print_parts(key, figures[f"by_{key}"], output)
    millimetres = figures["millimetres"]
    if millimetres["count"]:
        output.line(
            f"In millimetres, where pixel sizes are known ({millimetres['count']} images): hd95 "
            f"{_format(millimetres['hd95'])}, assd {_format(millimetres['assd'])}"
        )
    for name, risk in figures["uncertainty"].items():
        output.line(
            f"Spread of the models as uncertainty of {name}: area under the risk-coverage curve "
            f"{_format(risk['area'])}, without an order {_format(risk['random'])}, at best "
            f"{_format(risk['ideal'])}"
        )
    normal = figures["by_class"]["normal"]
    if normal["count"]:
        output.line(
            f"{normal['count']} normal images; {_format(normal['empty_share'])} of them have no "
            "predicted pixel"
        )


def print_errors(errors: Mapping[str, Any], output: CommandOutput) -> None:
    """Print the error budget: loss by range of Dice, by size, and under other decisions.

    Args:
        errors: the figures' entry `errors`.
        output: the console.
    """
    output.table(
        ["dice from", "to", "images", "share of lost dice"],
        [
            [
                f"{band['from']:g}",
                f"{band['to']:g}",
                str(band["images"]),
                _format(band["share_of_loss"]),
            ]
            for band in errors["bands"]
        ],
    )
    output.table(
        ["decision", "dice", "gain", "low", "high"],
        [
            [
                name.replace("_", " "),
                _format(decision["dice"]),
                *_format_values(decision["gain"], _INTERVAL),
            ]
            for name, decision in errors["decisions"].items()
        ],
    )
    output.line(
        f"Dice by quarter of lesion size, smallest first: "
        f"{', '.join(map(_format, errors['size_quarters']))}"
    )
    normal = errors["normal_images"]
    if normal["count"]:
        output.line(
            f"Normal images without a predicted pixel: {_format(normal['empty_share'])}; with the "
            f"threshold of one half {_format(normal['empty_share_half'])}"
        )
    output.line(
        f"Highest probability inside the lesion: {_format(errors['peak_inside'])} of the tumour "
        f"images; no predicted pixel: {_format(errors['empty_masks'])}"
    )


def _describe_images(figures: Mapping[str, Any]) -> str:
    """Return the heading: number of images, folds and kind of interval."""
    folds = figures["folds"]
    tested = "the holdout" if folds == [HOLDOUT] else f"folds {', '.join(map(str, folds))}"
    if figures["split"] == "external":
        tested = f"{figures['on']}, by the models of {tested} together"
    split = {"test": "test ", "validation": "inner validation "}.get(figures["split"], "")
    return (
        f"{figures['num_images']} {split}images of {tested}; 95 % intervals by bootstrap over "
        "groups"
    )


def _print_passes(passes: Sequence[Mapping[str, Any]], output: CommandOutput) -> None:
    """Print the metrics of each pass, unless the run has a single pass."""
    if len(passes) < 2:
        return
    names = ("dice", "f1", "auc")
    output.table(
        ["by pass", *names],
        [
            [str(entry["pass"]), *(_format(entry["metrics"][name]["value"]) for name in names)]
            for entry in passes
        ],
    )


def _print_classes(classes: Mapping[str, Any], output: CommandOutput) -> None:
    """Print the outlines of benign and malignant lesions."""
    output.table(
        ["by class", "images", *_OUTLINES],
        [
            [label, str(classes[label]["count"]), *_format_values(classes[label], _OUTLINES)]
            for label in ("benign", "malignant")
        ],
    )


def _print_sizes(sizes: Mapping[str, Any], output: CommandOutput) -> None:
    """Print the outlines by third of lesion size."""
    output.table(
        ["by size", "images", "pixels", *_OUTLINES],
        [
            [
                name,
                str(part["count"]),
                "n/a" if part["smallest"] is None else f"{part['smallest']}-{part['largest']}",
                *_format_values(part, _OUTLINES),
            ]
            for name, part in sizes.items()
        ],
    )


def _print_parts(key: str, parts: Mapping[str, Any], output: CommandOutput) -> None:
    """Print the metrics by source or by objection."""
    if not parts:
        return
    names = ("dice", "miss_rate", "auc", "f1")
    output.table(
        [f"by {key}", "images", "tumours", *names],
        [
            [
                name,
                str(part["num_images"]),
                str(part["num_tumours"]),
                *(_format(part["metrics"][column]["value"]) for column in names),
            ]
            for name, part in parts.items()
        ],
    )


def _format_values(values: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [_format(values[name]) for name in names]


def _format(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"
