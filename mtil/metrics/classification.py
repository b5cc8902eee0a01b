"""How well scores and decisions tell malignant (1) from benign (0) tumours.

A figure is NaN where it is not defined: a rate without the cases that it counts; F1, AUC, average
precision and what derives from them unless there are both classes; everything without any case.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from mtil.errors import DataError

Array = npt.NDArray[np.float64]

NUM_BINS = 15
"""Bins of the calibration error."""


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Cases by class and decision; each an array of one shape, so that resamples go in one step.

    Counts add, so parts of a data set combine exactly.
    """

    tp: Array
    """Malignant, called malignant."""
    fp: Array
    """Benign, called malignant."""
    fn: Array
    """Malignant, called benign."""
    tn: Array
    """Benign, called benign."""

    def sensitivity(self) -> Array:
        """Return the share of malignant cases that are found."""
        return ratio(self.tp, self.tp + self.fn)

    def specificity(self) -> Array:
        """Return the share of benign cases that are called benign."""
        return ratio(self.tn, self.tn + self.fp)

    def accuracy(self) -> Array:
        """Return the share of cases that are called what they are."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def f1(self) -> Array:
        """Return F1 of the malignant class."""
        return self._if_both(ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn))

    def macro_f1(self) -> Array:
        """Return the mean of both classes' F1."""
        malignant = ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)
        benign = ratio(2 * self.tn, 2 * self.tn + self.fp + self.fn)
        return self._if_both((malignant + benign) / 2)

    def _if_both(self, figure: Array) -> Array:
        both = (self.tp + self.fn > 0) & (self.tn + self.fp > 0)
        return np.where(both, figure, np.nan)


def ratio(part: Array, whole: Array) -> Array:
    """Return `part / whole`, and NaN where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole != 0)
    return quotient


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
    called = score >= threshold
    return Confusion(
        tp=np.asarray((called & malignant).sum(), np.float64),
        fp=np.asarray((called & ~malignant).sum(), np.float64),
        fn=np.asarray((~called & malignant).sum(), np.float64),
        tn=np.asarray((~called & ~malignant).sum(), np.float64),
    )


def f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return F1 of the malignant class. Arguments as for `confusion`; so for the next four."""
    return float(confusion(probability, label, threshold=threshold).f1())


def macro_f1(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the mean of both classes' F1."""
    return float(confusion(probability, label, threshold=threshold).macro_f1())


def accuracy(probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5) -> float:
    """Return the share of cases that are called what they are."""
    return float(confusion(probability, label, threshold=threshold).accuracy())


def sensitivity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of malignant cases that are found."""
    return float(confusion(probability, label, threshold=threshold).sensitivity())


def specificity(
    probability: npt.ArrayLike, label: npt.ArrayLike, *, threshold: float = 0.5
) -> float:
    """Return the share of benign cases that are called benign."""
    return float(confusion(probability, label, threshold=threshold).specificity())


def auc(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the ROC curve.

    Args:
        score: (n,), higher for malignant; logits and probabilities have the same area.
        label: (n,), 1 malignant or 0 benign.
    """
    values, malignant = checked(score, label)
    return float(roc_auc_score(malignant, values)) if _both(malignant) else np.nan


def average_precision(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the area under the steps of the precision-recall curve. Arguments as for `auc`."""
    values, malignant = checked(score, label)
    return float(average_precision_score(malignant, values)) if _both(malignant) else np.nan


def sensitivity_at_90_specificity(score: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the highest sensitivity of any threshold whose specificity is at least 0.9.

    Arguments as for `auc`. A point between two thresholds is not reached by interpolation.
    """
    values, malignant = checked(score, label)
    if not _both(malignant):
        return np.nan
    false_alarms, found, _ = roc_curve(malignant, values, drop_intermediate=False)
    return float(found[false_alarms <= 0.1].max())


def ece(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the expected calibration error over 15 bins of equal mass.

    A case's bin is floor(15 r / n), where r is its rank in the middle of the cases of the same
    probability: ties share a bin, so that the order of cases does not matter.

    Args:
        probability: (n,), of being malignant, in [0, 1].
        label: (n,), 1 malignant or 0 benign.
    """
    values, malignant = _checked_probability(probability, label)
    _, case, counts = np.unique(values, return_inverse=True, return_counts=True)
    twice_rank = (2 * np.cumsum(counts) - counts)[case]  # (n,)
    bins = NUM_BINS * twice_rank // max(2 * len(values), 1)
    gaps = np.bincount(bins, weights=values - malignant, minlength=NUM_BINS)
    return float(ratio(np.abs(gaps).sum(), np.asarray(len(values))))


def brier(probability: npt.ArrayLike, label: npt.ArrayLike) -> float:
    """Return the mean squared error of the probabilities. Arguments as for `ece`."""
    values, malignant = _checked_probability(probability, label)
    return float(ratio(((values - malignant) ** 2).sum(), np.asarray(len(values))))


def checked(score: npt.ArrayLike, label: npt.ArrayLike) -> tuple[Array, npt.NDArray[np.bool_]]:
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


def _checked_probability(
    probability: npt.ArrayLike, label: npt.ArrayLike
) -> tuple[Array, npt.NDArray[np.bool_]]:
    values, malignant = checked(probability, label)
    if ((values < 0) | (values > 1)).any():
        other = values[(values < 0) | (values > 1)][0]
        raise DataError(
            f"A probability must lie in [0, 1], but got {other}; apply the sigmoid to logits."
        )
    return values, malignant


def _both(malignant: npt.NDArray[np.bool_]) -> bool:
    return bool(malignant.any() and not malignant.all())
