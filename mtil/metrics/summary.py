"""Compute the figures of a report from a table of scored images.

Every function sorts the table first: figures do not depend on the number of workers or on the order
of rows. Returned dicts are JSON values; None means undefined.
"""

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics import weighted
from mtil.metrics.bootstrap import Statistics, bootstrap, difference, finite
from mtil.metrics.results import Label, Results
from mtil.metrics.weighted import Array, ratio

METRICS = (
    "dice",
    "dice_pooled",
    "iou",
    "hd95",
    "assd",
    "miss_rate",
    "false_positive_area",
    "f1",
    "macro_f1",
    "auc",
    "average_precision",
    "accuracy",
    "sensitivity",
    "specificity",
    "sensitivity_at_90_specificity",
    "ece",
    "brier",
    "presence_auc",
    "three_class_accuracy",
    "three_class_macro_f1",
)
"""Names of the figures, in report order."""


def summarise(
    results: Results, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Return all figures of `METRICS` with 95 % intervals over groups.

    `false_positive_area` is computed on normal images; `presence_auc`, `three_class_accuracy` and
    `three_class_macro_f1` on all images, if there are normal images and the models can tell them
    apart; all other figures on tumour images.
    The interval of `ece` can lie above the value if images are few: repeated cases look
    uncalibrated, and the calibration error of a resample is too large on average.

    Args:
        results: a row per image.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Returns:
        `{"dice": {"value": …, "low": …, "high": …}, …}`.

    Raises:
        DataError: if an image occurs twice, or `resamples` is not positive.
    """
    table = results.sorted()
    figures = bootstrap(table.group, make_statistics(table), resamples=resamples, seed=seed)
    return {name: figures[name].as_json() for name in METRICS}


def paired_difference(
    a: Results, b: Results, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Return `a - b` for all figures of `METRICS`, with 95 % intervals over groups.

    Args:
        a: a row per image.
        b: the same images with different predictions.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Raises:
        DataError: if the tables differ in images, groups or labels, or an image occurs twice.
    """
    a, b = a.sorted(), b.sorted()
    if not np.array_equal(a.sample_id, b.sample_id):
        unpaired = np.setxor1d(a.sample_id, b.sample_id)
        raise DataError(
            f"Paired tables must hold the same images, but {len(unpaired)} are in only one "
            f"table, such as `{unpaired[0]}`; predict the same images with both."
        )
    for name in ("group", "label"):
        is_different = getattr(a, name) != getattr(b, name)
        if is_different.any():
            raise DataError(
                f"Paired tables must agree on every image's {name}, but they differ on "
                f"`{a.sample_id[is_different][0]}`; predict both from one data set."
            )
    # Both tables share the resamples, so the difficulty of the drawn images cancels out.
    paired = difference(make_statistics(a), make_statistics(b))
    figures = bootstrap(a.group, paired, resamples=resamples, seed=seed)
    return {name: figures[name].as_json() for name in METRICS}


def summarise_by_class(results: Results) -> dict[str, dict[str, float | None]]:
    """Return the figures of `benign`, `malignant` and `normal` images.

    Benign and malignant: `count, dice, dice_median, dice_sd, dice_pooled, iou, hd95, assd,
    miss_rate, detection_rate` (share of images with IoU above 0.5). Normal: `count,
    false_positive_area, empty_share` (share of images without a predicted pixel).

    Raises:
        DataError: if an image occurs twice.
    """
    table = results.sorted()
    normal = table.select(table.label == Label.NORMAL)
    figures = {
        label.name.lower(): _segmentation_figures(table.select(table.label == label))
        for label in (Label.BENIGN, Label.MALIGNANT)
    }
    figures["normal"] = {
        "count": len(normal),
        "false_positive_area": _mean(normal.false_positive_area),
        "empty_share": _mean(normal.fp == 0),
    }
    return figures


def summarise_by_size(results: Results) -> dict[str, dict[str, float | None]]:
    """Return the figures of the `small`, `medium` and `large` third of lesions, by pixel count.

    The figures of a third are `smallest` and `largest` (pixels of the smallest and largest lesion
    in the original image), then the tumour figures of `summarise_by_class`. Lesions of equal size
    are ordered by `sample_id`.

    Raises:
        DataError: if an image occurs twice.
    """
    table = results.sorted()
    table = table.select(table.tumour)
    areas = table.tp + table.fn
    thirds = np.array_split(np.argsort(areas, kind="stable"), 3)
    return {
        name: _size_bounds(areas[rows]) | _segmentation_figures(table.select(rows))
        for name, rows in zip(("small", "medium", "large"), thirds, strict=True)
    }


def make_statistics(table: Results) -> Statistics:
    """Return a function that computes the figures of a table from weights (resamples, n)."""
    tumours = table.select(table.tumour)
    normals = table.select(~table.tumour)
    malignant = tumours.label == Label.MALIGNANT

    def figures(weights: Array) -> dict[str, Array]:
        tumour_weights = weights[:, table.tumour]
        decisions = weighted.count_weighted_confusion(tumours.predicted, malignant, tumour_weights)
        ranking = weighted.Ranking.of(tumours.probability, malignant, tumour_weights)
        overlap = weighted.weighted_sum(2 * tumours.tp, tumour_weights)
        areas = overlap + weighted.weighted_sum(tumours.fp + tumours.fn, tumour_weights)
        return {
            "dice": weighted.weighted_mean(tumours.dice, tumour_weights),
            "dice_pooled": ratio(overlap, areas),
            "iou": weighted.weighted_mean(tumours.iou, tumour_weights),
            "hd95": weighted.weighted_mean(tumours.hd95, tumour_weights),
            "assd": weighted.weighted_mean(tumours.assd, tumour_weights),
            "miss_rate": weighted.weighted_mean(tumours.missed, tumour_weights),
            "false_positive_area": weighted.weighted_mean(
                normals.false_positive_area, weights[:, ~table.tumour]
            ),
            "f1": decisions.f1(),
            "macro_f1": decisions.macro_f1(),
            "auc": ranking.auc(),
            "average_precision": ranking.average_precision(),
            "accuracy": decisions.accuracy(),
            "sensitivity": decisions.sensitivity(),
            "specificity": decisions.specificity(),
            "sensitivity_at_90_specificity": ranking.sensitivity_at_90_specificity(),
            "ece": ranking.ece(),
            "brier": weighted.weighted_mean((tumours.probability - malignant) ** 2, tumour_weights),
            **_three_class_figures(table, weights),
        }

    return figures


def _three_class_figures(table: Results, weights: Array) -> dict[str, Array]:
    """Return the figures of benign, malignant and normal images together; NaN if undefined."""
    if table.tumour.all() or not np.isfinite(table.presence).all():
        undefined = np.full(len(weights), np.nan)
        return dict.fromkeys(
            ("presence_auc", "three_class_accuracy", "three_class_macro_f1"), undefined
        )
    called = table.called
    f1 = [
        weighted.count_weighted_confusion(called == label, table.label == label, weights).f1()
        for label in Label
    ]
    return {
        "presence_auc": weighted.Ranking.of(table.presence, table.tumour, weights).auc(),
        "three_class_accuracy": weighted.weighted_mean(called == table.label, weights),
        "three_class_macro_f1": np.mean(f1, axis=0),
    }


def _size_bounds(areas: npt.NDArray[np.int64]) -> dict[str, float | None]:
    if not len(areas):
        return {"smallest": None, "largest": None}
    return {"smallest": int(areas.min()), "largest": int(areas.max())}


def _segmentation_figures(tumours: Results) -> dict[str, float | None]:
    """Return the segmentation figures of tumour images."""
    overlap = 2 * tumours.tp.sum()
    total_area = overlap + tumours.fp.sum() + tumours.fn.sum()
    return {
        "count": len(tumours),
        "dice": _mean(tumours.dice),
        "dice_median": float(np.median(tumours.dice)) if len(tumours) else None,
        "dice_sd": float(np.std(tumours.dice, ddof=1)) if len(tumours) > 1 else None,
        "dice_pooled": finite(float(ratio(overlap, total_area))),
        "iou": _mean(tumours.iou),
        "hd95": _mean(tumours.hd95),
        "assd": _mean(tumours.assd),
        "miss_rate": _mean(tumours.missed),
        "detection_rate": _mean(tumours.iou > 0.5),
    }


def _mean(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float | None:
    return float(np.mean(values)) if len(values) else None
