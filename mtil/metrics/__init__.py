"""Segmentation and classification metrics with group-bootstrap intervals. No Ray, no PyTorch."""

from mtil.metrics.bootstrap import Interval, bootstrap, resample_weights
from mtil.metrics.calibration import (
    calibrate_logits,
    find_best_threshold,
    find_steady_threshold,
    fit_temperature,
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
from mtil.metrics.epoch_selection import select_epoch
from mtil.metrics.errors import MapResults, budget_errors
from mtil.metrics.probability_maps import MapScores, score_map
from mtil.metrics.results import Label, Results
from mtil.metrics.segmentation import MaskScores, score_mask
from mtil.metrics.summary import (
    METRICS,
    paired_difference,
    summarise,
    summarise_by_class,
    summarise_by_size,
)

__all__ = [
    "METRICS",
    "Interval",
    "Label",
    "MapResults",
    "MapScores",
    "MaskScores",
    "Results",
    "accuracy",
    "auc",
    "average_precision",
    "bootstrap",
    "brier",
    "budget_errors",
    "calibrate_logits",
    "ece",
    "f1",
    "find_best_threshold",
    "find_steady_threshold",
    "fit_temperature",
    "macro_f1",
    "paired_difference",
    "resample_weights",
    "score_map",
    "score_mask",
    "select_epoch",
    "sensitivity",
    "sensitivity_at_90_specificity",
    "specificity",
    "summarise",
    "summarise_by_class",
    "summarise_by_size",
]
