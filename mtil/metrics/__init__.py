"""Segmentation and classification metrics with group-bootstrap intervals. No Ray, no PyTorch."""

from mtil.metrics.bootstrap import Interval, bootstrap, resample_weights
from mtil.metrics.calibration import (
    best_threshold,
    calibrated,
    fit_temperature,
    steady_threshold,
)
from mtil.metrics.classification import (
    accuracy,
    auc,
    average_precision,
    brier,
    ece,
    f1,
    macro_f1,
    sensitivity,
    sensitivity_at_90_specificity,
    specificity,
)
from mtil.metrics.picking import kept_epoch
from mtil.metrics.results import Label, Results
from mtil.metrics.segmentation import MaskScores, score_mask
from mtil.metrics.summary import METRICS, by_class, by_size, paired_difference, summarise

__all__ = [
    "METRICS",
    "Interval",
    "Label",
    "MaskScores",
    "Results",
    "accuracy",
    "auc",
    "average_precision",
    "best_threshold",
    "bootstrap",
    "brier",
    "by_class",
    "by_size",
    "calibrated",
    "ece",
    "f1",
    "fit_temperature",
    "kept_epoch",
    "macro_f1",
    "paired_difference",
    "resample_weights",
    "score_mask",
    "sensitivity",
    "sensitivity_at_90_specificity",
    "specificity",
    "steady_threshold",
    "summarise",
]
