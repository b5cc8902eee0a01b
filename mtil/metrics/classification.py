"""Metrics of scores and decisions for malignant (1) against benign (0) tumours.

An undefined figure is NaN. A rate is undefined without cases in its denominator. F1, AUC, average
precision and derived figures need both classes. Every figure equals the figure of
`mtil.metrics.weighted` for a single resample with weight 1 for every case.
"""

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics import weighted
from mtil.metrics.weighted import Array, Confusion, Flags, Ranking


def count_confusion(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> Confusion:
    """Count cases by class and decision. Malignant is called if `probability >= threshold`.

    Args:
        probability: (n,), probability of malignant, or any score on the scale of the threshold.
        label: (n,), 1 malignant or 0 benign.
        threshold: least probability called malignant.

    Raises:
        DataError: see `check_scores`; applies to all functions of the module.
    """
    score, malignant = check_scores(probability, label)
    return weighted.count_weighted_confusion(score >= threshold, malignant, _unit_weights(score))


def f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the F1 of the malignant class. Arguments: see `count_confusion`."""
    return float(count_confusion(probability, label, threshold=threshold).f1()[0])


def macro_f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the mean F1 of both classes. Arguments: see `count_confusion`."""
    return float(count_confusion(probability, label, threshold=threshold).macro_f1()[0])


def accuracy(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the share of correct decisions. Arguments: see `count_confusion`."""
    return float(count_confusion(probability, label, threshold=threshold).accuracy()[0])


def sensitivity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of malignant cases called malignant. Arguments: see `count_confusion`."""
    return float(count_confusion(probability, label, threshold=threshold).sensitivity()[0])


def specificity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of benign cases called benign. Arguments: see `count_confusion`."""
    return float(count_confusion(probability, label, threshold=threshold).specificity()[0])


def auc(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the ROC curve.

    Args:
        score: (n,), higher for malignant; logits and probabilities give the same area.
        label: (n,), 1 malignant or 0 benign.
    """
    return float(_rank(*check_scores(score, label)).auc()[0])


def average_precision(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the steps of the precision-recall curve. Arguments: see `auc`."""
    return float(_rank(*check_scores(score, label)).average_precision()[0])


def sensitivity_at_90_specificity(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the highest sensitivity of all thresholds with a specificity of at least 0.9.

    Arguments: see `auc`. Points between two thresholds are not interpolated.
    """
    return float(_rank(*check_scores(score, label)).sensitivity_at_90_specificity()[0])


def ece(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the expected calibration error over 15 bins of equal mass.

    The bin of a case is floor(15 r / n), with r the middle rank of all cases of equal probability.
    Ties share a bin, and the order of cases does not matter.

    Args:
        probability: (n,), probability of malignant in [0, 1].
        label: (n,), 1 malignant or 0 benign.
    """
    return float(_rank(*_checked_probability(probability, label)).ece()[0])


def brier(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the mean squared error of the probabilities. Arguments: see `ece`."""
    values, malignant = _checked_probability(probability, label)
    return float(weighted.weighted_mean((values - malignant) ** 2, _unit_weights(values))[0])


def check_scores(score: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Flags]:
    """Validate scores and labels; return scores as float64 and flags of malignant, both (n,).

    Raises:
        DataError: if the lengths differ, a score is not finite, or a label is not 0 or 1.
    """
    values, labels = np.asarray(score, np.float64), np.asarray(label)
    if values.ndim != 1 or values.shape != labels.shape:
        raise DataError(
            f"Each case must have one score and one label, but got {values.shape} scores and "
            f"{labels.shape} labels; pass two columns of one table."
        )
    if not np.isfinite(values).all():
        raise DataError(
            f"Scores must be finite, but {np.count_nonzero(~np.isfinite(values))} of {len(values)} "
            "are not; lower the learning rate if training diverged."
        )
    if not np.isin(labels, (0, 1)).all():
        other = labels[~np.isin(labels, (0, 1))][0]
        raise DataError(
            f"A label must be 0 (benign) or 1 (malignant), but got {other}; "
            "leave normal images out."
        )
    return values, labels == 1


def _checked_probability(probability: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Flags]:
    values, malignant = check_scores(probability, label)
    if ((values < 0) | (values > 1)).any():
        other = values[(values < 0) | (values > 1)][0]
        raise DataError(
            f"A probability must lie in [0, 1], but got {other}; apply the sigmoid to logits."
        )
    return values, malignant


def _rank(score: Array, malignant: Flags) -> Ranking:
    return Ranking.of(score, malignant, _unit_weights(score))


def _unit_weights(cases: Array) -> Array:
    """Return weights (1, n) of 1 for cases (n,)."""
    return np.ones((1, len(cases)))
