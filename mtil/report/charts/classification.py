"""Charts of the classification: curves with bands, reliability, decision curve."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from mtil.metrics import Results
from mtil.metrics.bootstrap import resample_weights
from mtil.report.charts.theme import colour
from mtil.report.elements import Chart

Values = npt.NDArray[np.float64]
Curve = Callable[[Values], Values]
"""A function from weights of the images to heights on a grid."""

_GRID = np.linspace(0, 1, 101)
_RESAMPLES = 400
_NUM_BINS = 10
UNIT: dict[str, Any] = {
    "type": "quantitative",
    "scale": {"domain": [0, 1]},
    "axis": {"values": [0, 0.2, 0.4, 0.6, 0.8, 1]},
}
"""An axis from 0 to 1."""


def draw_curves(tumours: Results) -> list[Chart]:
    """Return ROC and precision-recall curves with bands of 95 % over groups.

    Args:
        tumours: scored tumour images of both classes.
    """
    from sklearn.metrics import precision_recall_curve, roc_curve

    malignant, probability = tumours.label == 1, tumours.probability

    def roc(weights: Values) -> Values:
        false, true, _ = roc_curve(malignant, probability, sample_weight=weights)
        heights: Values = np.interp(_GRID, false, true)
        return heights

    def precision_recall(weights: Values) -> Values:
        precision, recall, _ = precision_recall_curve(malignant, probability, sample_weight=weights)
        heights: Values = np.interp(_GRID, recall[::-1], precision[::-1])
        return heights

    return [
        _draw_band(
            "roc",
            "ROC curve",
            "Sensitivity against the share of benign tumours called malignant, with a 95 % band.",
            _make_band(tumours, roc),
            ("1 - specificity", "sensitivity"),
            diagonal=True,
        ),
        _draw_band(
            "precision-recall",
            "Precision and recall",
            "Precision against recall of malignant tumours, with a 95 % band.",
            _make_band(tumours, precision_recall),
            ("recall", "precision"),
            diagonal=False,
        ),
    ]


def draw_reliability(tumours: Results, logits: Values) -> Chart:
    """Return the share of malignant tumours by predicted probability, before and after scaling.

    Args:
        tumours: scored tumour images.
        logits: logits of malignant before temperature scaling, in the same order.
    """
    raw = 1 / (1 + np.exp(-logits))
    rows: list[dict[str, Any]] = []
    for kind, probability in (("calibrated", tumours.probability), ("before", raw)):
        bins = np.minimum((probability * _NUM_BINS).astype(int), _NUM_BINS - 1)
        for index in np.unique(bins):
            inside = bins == index
            rows.append(
                {
                    "kind": kind,
                    "predicted": float(probability[inside].mean()),
                    "observed": float((tumours.label[inside] == 1).mean()),
                    "images": int(inside.sum()),
                }
            )
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 260,
        "layer": [
            _diagonal(),
            {
                "mark": {"type": "line", "point": False, "strokeWidth": 1.5},
                "encoding": {
                    "x": {"field": "predicted", "title": "predicted probability", **UNIT},
                    "y": {"field": "observed", "title": "share malignant", **UNIT},
                    "color": {
                        "field": "kind",
                        "type": "nominal",
                        "title": None,
                        "sort": ["calibrated", "before"],
                    },
                },
            },
            {
                "mark": {"type": "point", "filled": True},
                "encoding": {
                    "x": {"field": "predicted", **UNIT},
                    "y": {"field": "observed", **UNIT},
                    "color": {"field": "kind", "type": "nominal", "sort": ["calibrated", "before"]},
                    "size": {"field": "images", "type": "quantitative", "legend": None},
                },
            },
        ],
    }
    return Chart(
        name="reliability",
        title="Reliability",
        description="Share of malignant tumours by predicted probability, before and after "
        "temperature scaling. On the diagonal, probabilities can be taken literally.",
        spec=spec,
    )


def draw_decision_curve(tumours: Results) -> Chart:
    """Return net benefit by threshold probability (Vickers and Elkin 2006), beside the extremes."""
    thresholds = np.linspace(0.01, 0.99, 99)
    malignant = tumours.label == 1
    prevalence = malignant.mean()
    odds = thresholds / (1 - thresholds)
    called = tumours.probability[None] >= thresholds[:, None]
    model = (called & malignant).mean(axis=1) - (called & ~malignant).mean(axis=1) * odds
    everyone = prevalence - (1 - prevalence) * odds
    rows = [
        {"threshold": float(x), "benefit": float(y), "policy": policy}
        for policy, values in (
            ("model", model),
            ("biopsy all", everyone),
            ("biopsy none", np.zeros_like(model)),
        )
        for x, y in zip(thresholds, values, strict=True)
        if y >= -0.05
    ]
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 260,
        "mark": {"type": "line", "strokeWidth": 1.5, "clip": True},
        "encoding": {
            "x": {"field": "threshold", "type": "quantitative", "title": "threshold probability"},
            "y": {"field": "benefit", "type": "quantitative", "title": "net benefit"},
            "color": {
                "field": "policy",
                "type": "nominal",
                "title": None,
                "sort": ["model", "biopsy all", "biopsy none"],
            },
        },
    }
    return Chart(
        name="decision-curve",
        title="Decision curve",
        description="Net benefit of a biopsy above a threshold probability: by the model, of all "
        "tumours, and of none.",
        spec=spec,
    )


def _make_band(tumours: Results, curve: Curve) -> list[dict[str, float]]:
    value = curve(np.ones(len(tumours)))
    samples = [
        curve(weights)
        for chunk in resample_weights(tumours.group, resamples=_RESAMPLES, seed=0)
        for weights in chunk
        # A resample of a single class has no curve.
        if len(np.unique(tumours.label[weights > 0])) > 1
    ]
    low, high = np.percentile(samples, (2.5, 97.5), axis=0) if samples else (value, value)
    return [
        {"x": float(x), "y": float(y), "low": float(a), "high": float(b)}
        for x, y, a, b in zip(_GRID, value, low, high, strict=True)
    ]


def _draw_band(
    name: str,
    title: str,
    description: str,
    rows: list[dict[str, float]],
    axes: tuple[str, str],
    *,
    diagonal: bool,
) -> Chart:
    x = {"field": "x", "title": axes[0], **UNIT}
    layers: list[dict[str, Any]] = [_diagonal()] if diagonal else []
    layers += [
        {
            "mark": {"type": "area", "opacity": 0.2, "color": colour(0)},
            "encoding": {
                "x": x,
                "y": {"field": "low", "title": axes[1], **UNIT},
                "y2": {"field": "high"},
            },
        },
        {
            "mark": {"type": "line", "strokeWidth": 2, "color": colour(0)},
            "encoding": {"x": x, "y": {"field": "y", **UNIT}},
        },
    ]
    spec = {"data": {"values": rows}, "width": 300, "height": 260, "layer": layers}
    return Chart(name=name, title=title, description=description, spec=spec)


def _diagonal() -> dict[str, Any]:
    return {
        "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
        "mark": {"type": "line", "strokeDash": [4, 3], "color": "var(--quiet)", "strokeWidth": 1},
        "encoding": {
            "x": {"field": "x", "type": "quantitative"},
            "y": {"field": "y", "type": "quantitative"},
        },
    }
