"""How well scores and decisions tell malignant (1) from benign (0) tumours.

A figure is NaN where it is not defined: a rate without the cases that it counts; F1, AUC, average
precision and what derives from them unless there are both classes; everything without any case.
Each is that of `mtil.metrics.weighted` for one resample, which holds every case once.
"""

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError
from mtil.metrics import weighted
from mtil.metrics.weighted import Array, Confusion, Flags, Ranking


def confusion(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> Confusion:
    """Count cases by class and decision; malignant is called from the threshold on.

    Args:
        probability: (n,), of being malignant; any score will do with a threshold on its scale.
        label: (n,), 1 malignant or 0 benign.
        threshold: the least probability that is called malignant.

    Raises:
        DataError: as for `checked`; so for all functions below.
    """
    score, malignant = checked(probability, label)
    return weighted.confusion(score >= threshold, malignant, _once(score))


def f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return F1 of the malignant class. Arguments as for `confusion`; so for the next four."""
    return float(confusion(probability, label, threshold=threshold).f1()[0])


def macro_f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the mean of both classes' F1."""
    return float(confusion(probability, label, threshold=threshold).macro_f1()[0])


def accuracy(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the share of cases that are called what they are."""
    return float(confusion(probability, label, threshold=threshold).accuracy()[0])


def sensitivity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of malignant cases that are found."""
    return float(confusion(probability, label, threshold=threshold).sensitivity()[0])


def specificity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of benign cases that are called benign."""
    return float(confusion(probability, label, threshold=threshold).specificity()[0])


def auc(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the ROC curve.

    Args:
        score: (n,), higher for malignant; logits and probabilities have the same area.
        label: (n,), 1 malignant or 0 benign.
    """
    return float(_ranking(*checked(score, label)).auc()[0])


def average_precision(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the steps of the precision-recall curve. Arguments as for `auc`."""
    return float(_ranking(*checked(score, label)).average_precision()[0])


def sensitivity_at_90_specificity(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the highest sensitivity of any threshold whose specificity is at least 0.9.

    Arguments as for `auc`. A point between two thresholds is not reached by interpolation.
    """
    return float(_ranking(*checked(score, label)).sensitivity_at_90_specificity()[0])


def ece(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the expected calibration error over 15 bins of equal mass.

    A case's bin is floor(15 r / n), where r is its rank in the middle of the cases of the same
    probability: ties share a bin, so that the order of cases does not matter.

    Args:
        probability: (n,), of being malignant, in [0, 1].
        label: (n,), 1 malignant or 0 benign.
    """
    return float(_ranking(*_checked_probability(probability, label)).ece()[0])


def brier(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the mean squared error of the probabilities. Arguments as for `ece`."""
    values, malignant = _checked_probability(probability, label)
    return float(weighted.mean((values - malignant) ** 2, _once(values))[0])


def checked(score: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, Flags]:
    """Return scores as float64 and whether each case is malignant, both (n,).

    Raises:
        DataError: the lengths differ, a score is not finite, or a label is neither 0 nor 1.
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
    values, malignant = checked(probability, label)
    if ((values < 0) | (values > 1)).any():
        other = values[(values < 0) | (values > 1)][0]
        raise DataError(
            f"A probability must lie in [0, 1], but got {other}; apply the sigmoid to logits."
        )
    return values, malignant


def _ranking(score: Array, malignant: Flags) -> Ranking:
    return Ranking.of(score, malignant, _once(score))


def _once(cases: Array) -> Array:
    """Return the weights (1, n) of the cases (n,) as they are."""
    return np.ones((1, len(cases)))
