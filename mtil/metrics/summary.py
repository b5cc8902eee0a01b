"""From a table of images to the figures of a report.

Every function sorts the table first, so that figures do not depend on how rows were split over
workers or in which order they came back. Dicts are ready for JSON: None means undefined.
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
)
"""Names of the figures, in the order of reports."""


def summarise(
    results: Results, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Return every figure of `METRICS` with its 95 % interval over groups.

    Outlines and classes are judged on tumour images, false-positive area on normal ones. The
    calibration error of a resample is too large on average, as repeated cases look uncalibrated:
    with few images its interval can lie above its value.

    Args:
        results: a row per image.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `{"dice": {"value": …, "low": …, "high": …}, …}`.

    Raises:
        DataError: an image is there twice, or `resamples` is not positive.
    """
    table = results.sorted()
    figures = bootstrap(table.group, statistics(table), resamples=resamples, seed=seed)
    return {name: figures[name].as_json() for name in METRICS}


def paired_difference(
    a: Results, b: Results, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Return `a - b` for every figure of `METRICS`, with its 95 % interval over groups.

    Both tables are resampled alike, so that what makes images hard for both cancels out.

    Args:
        a: a row per image.
        b: the same images, predicted otherwise.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: the tables hold other images, groups or labels, or an image twice.
    """
    a, b = a.sorted(), b.sorted()
    if not np.array_equal(a.sample_id, b.sample_id):
        other = np.setxor1d(a.sample_id, b.sample_id)
        raise DataError(
            f"Paired tables must hold the same images, but {len(other)} are in only one of them, "
            f"such as `{other[0]}`; predict the same images with both."
        )
    for name in ("group", "label"):
        differs = getattr(a, name) != getattr(b, name)
        if differs.any():
            raise DataError(
                f"Paired tables must agree on every image's {name}, but they differ on "
                f"`{a.sample_id[differs][0]}`; predict both from one data set."
            )
    paired = difference(statistics(a), statistics(b))
    figures = bootstrap(a.group, paired, resamples=resamples, seed=seed)
    return {name: figures[name].as_json() for name in METRICS}


def by_class(results: Results) -> dict[str, dict[str, float | None]]:
    """Return each class's own figures.

    Benign and malignant: `count, dice, dice_median, dice_sd, dice_pooled, iou, hd95, assd,
    miss_rate, detection_rate` (share of images with IoU above 0.5). Normal: `count,
    false_positive_area, empty_share` (share of images without a predicted pixel).

    Raises:
        DataError: an image is there twice.
    """
    table = results.sorted()
    normal = table.select(table.label == Label.NORMAL)
    figures = {
        label.name.lower(): _outlines(table.select(table.label == label))
        for label in (Label.BENIGN, Label.MALIGNANT)
    }
    figures["normal"] = {
        "count": len(normal),
        "false_positive_area": _mean(normal.false_positive_area),
        "empty_share": _mean(normal.fp == 0),
    }
    return figures


def by_size(results: Results) -> dict[str, dict[str, float | None]]:
    """Return the figures of the `small`, `medium` and `large` third of lesions, by their pixels.

    The figures are those of `by_class` for tumours, after the bounds of the third: `smallest` and
    `largest`, the pixels of its smallest and largest lesion in the original image. Lesions of one
    size go by `sample_id`.

    Raises:
        DataError: an image is there twice.
    """
    table = results.sorted()
    table = table.select(table.tumour)
    areas = table.tp + table.fn
    thirds = np.array_split(np.argsort(areas, kind="stable"), 3)
    return {
        name: _bounds(areas[rows]) | _outlines(table.select(rows))
        for name, rows in zip(("small", "medium", "large"), thirds, strict=True)
    }


def statistics(table: Results) -> Statistics:
    """Return what computes a table's figures from weights (resamples, n)."""
    tumours = table.select(table.tumour)
    normals = table.select(~table.tumour)
    malignant = tumours.label == Label.MALIGNANT

    def figures(weights: Array) -> dict[str, Array]:
        w = weights[:, table.tumour]
        called = weighted.confusion(tumours.predicted, malignant, w)
        ranking = weighted.Ranking.of(tumours.probability, malignant, w)
        overlap = weighted.total(2 * tumours.tp, w)
        areas = overlap + weighted.total(tumours.fp + tumours.fn, w)
        return {
            "dice": weighted.mean(tumours.dice, w),
            "dice_pooled": ratio(overlap, areas),
            "iou": weighted.mean(tumours.iou, w),
            "hd95": weighted.mean(tumours.hd95, w),
            "assd": weighted.mean(tumours.assd, w),
            "miss_rate": weighted.mean(tumours.missed, w),
            "false_positive_area": weighted.mean(
                normals.false_positive_area, weights[:, ~table.tumour]
            ),
            "f1": called.f1(),
            "macro_f1": called.macro_f1(),
            "auc": ranking.auc(),
            "average_precision": ranking.average_precision(),
            "accuracy": called.accuracy(),
            "sensitivity": called.sensitivity(),
            "specificity": called.specificity(),
            "sensitivity_at_90_specificity": ranking.sensitivity_at_90_specificity(),
            "ece": ranking.ece(),
            "brier": weighted.mean((tumours.probability - malignant) ** 2, w),
        }

    return figures


def _bounds(areas: npt.NDArray[np.int64]) -> dict[str, float | None]:
    if not len(areas):
        return {"smallest": None, "largest": None}
    return {"smallest": int(areas.min()), "largest": int(areas.max())}


def _outlines(tumours: Results) -> dict[str, float | None]:
    """Return the figures of tumour images' outlines."""
    overlap = 2 * tumours.tp.sum()
    whole = overlap + tumours.fp.sum() + tumours.fn.sum()
    return {
        "count": len(tumours),
        "dice": _mean(tumours.dice),
        "dice_median": float(np.median(tumours.dice)) if len(tumours) else None,
        "dice_sd": float(np.std(tumours.dice, ddof=1)) if len(tumours) > 1 else None,
        "dice_pooled": finite(float(ratio(overlap, whole))),
        "iou": _mean(tumours.iou),
        "hd95": _mean(tumours.hd95),
        "assd": _mean(tumours.assd),
        "miss_rate": _mean(tumours.missed),
        "detection_rate": _mean(tumours.iou > 0.5),
    }


def _mean(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float | None:
    return float(np.mean(values)) if len(values) else None
