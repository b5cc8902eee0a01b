"""Weighted figures for many bootstrap resamples at once.

A resample is a row of weights: the number of copies of every case. Functions take weights
(resamples, n) and return figures (resamples,), equal to the plain figure of the repeated cases.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

NUM_BINS = 15
"""Number of bins of the calibration error."""


@dataclass(frozen=True, slots=True, eq=False)
class Confusion:
    """Numbers of cases by class and decision, as arrays of equal shape, such as (resamples,).

    Counts are additive: the counts of parts of a data set combine exactly.
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
        """Return the share of malignant cases called malignant."""
        return ratio(self.tp, self.tp + self.fn)

    def specificity(self) -> Array:
        """Return the share of benign cases called benign."""
        return ratio(self.tn, self.tn + self.fp)

    def accuracy(self) -> Array:
        """Return the share of correct decisions."""
        return ratio(self.tp + self.tn, self.tp + self.fp + self.fn + self.tn)

    def f1(self) -> Array:
        """Return the F1 of the malignant class; NaN unless both classes have cases."""
        return self._if_both(ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn))

    def macro_f1(self) -> Array:
        """Return the mean F1 of both classes; NaN unless both classes have cases."""
        malignant = ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)
        benign = ratio(2 * self.tn, 2 * self.tn + self.fp + self.fn)
        return self._if_both((malignant + benign) / 2)

    def _if_both(self, figure: Array) -> Array:
        both = (self.tp + self.fn > 0) & (self.tn + self.fp > 0)
        return np.where(both, figure, np.nan)


def ratio(part: Array, whole: Array) -> Array:
    """Return `part / whole`; NaN where `whole` is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    quotient = np.full(part.shape, np.nan)
    np.divide(part, whole, out=quotient, where=whole != 0)
    return quotient


def weighted_sum(values: Array | Counts | Flags, weights: Array) -> Array:
    """Return the weighted sums of values (n,)."""
    # numpy's sum, not a BLAS product: the result must not depend on the number of threads.
    sums: Array = np.einsum("rn,n->r", weights, np.asarray(values, np.float64))
    return sums


def weighted_mean(values: Array | Flags, weights: Array) -> Array:
    """Return the weighted means of values (n,); NaN for a resample without a case."""
    return ratio(weighted_sum(values, weights), weights.sum(axis=1))


def count_weighted_confusion(called: Flags, malignant: Flags, weights: Array) -> Confusion:
    """Count weighted cases by decision (n,) and class (n,)."""
    return Confusion(
        tp=weighted_sum(called & malignant, weights),
        fp=weighted_sum(called & ~malignant, weights),
        fn=weighted_sum(~called & malignant, weights),
        tn=weighted_sum(~called & ~malignant, weights),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Cases of all resamples, counted by distinct probability. Counts are exact in float64."""

    probability: Array
    """(distinct,), ascending."""
    malignant: Array
    """(resamples, distinct), number of malignant cases."""
    benign: Array
    """(resamples, distinct), number of benign cases."""

    @classmethod
    def of(cls, probability: Array, malignant: Flags, weights: Array) -> "Ranking":
        """Rank cases by probability (n,), given their class (n,) and weights (resamples, n)."""
        order = np.argsort(probability, kind="stable")
        distinct, start = np.unique(probability[order], return_index=True)
        if len(distinct) == 0:
            return cls(distinct, weights[:, :0], weights[:, :0])
        sorted_weights, is_malignant = weights[:, order], malignant[order]
        positive = np.add.reduceat(sorted_weights * is_malignant, start, axis=1)
        return cls(
            distinct, positive, np.add.reduceat(sorted_weights * ~is_malignant, start, axis=1)
        )

    def auc(self) -> Array:
        """Return the area under the ROC curve: the share of correctly ordered pairs."""
        # Ties count as half a correct pair.
        below = np.cumsum(self.benign, axis=1) - self.benign / 2
        pairs = self.malignant.sum(axis=1) * self.benign.sum(axis=1)
        return ratio((self.malignant * below).sum(axis=1), pairs)

    def average_precision(self) -> Array:
        """Return the precision at each threshold, weighted by the step in recall."""
        tp, fp = _reverse_cumsum(self.malignant), _reverse_cumsum(self.benign)
        precision = ratio(tp, np.maximum(tp + fp, 1))
        figure = ratio((self.malignant * precision).sum(axis=1), self.malignant.sum(axis=1))
        return np.where(self.benign.sum(axis=1) > 0, figure, np.nan)

    def sensitivity_at_90_specificity(self) -> Array:
        """Return the highest sensitivity of all thresholds with a specificity of at least 0.9."""
        tp, fp = _reverse_cumsum(self.malignant), _reverse_cumsum(self.benign)
        num_benign = self.benign.sum(axis=1)
        # Compared in integers, because 0.1 is not exact in binary.
        num_true_positives = np.where(10 * fp <= num_benign[:, None], tp, 0).max(axis=1, initial=0)
        figure = ratio(num_true_positives, self.malignant.sum(axis=1))
        return np.where(num_benign > 0, figure, np.nan)

    def ece(self) -> Array:
        """Return the expected calibration error over `NUM_BINS` bins of equal mass."""
        mass = self.malignant + self.benign
        num_cases = mass.sum(axis=1)
        # Twice the middle rank of the tied cases: all numbers stay integers, and the bins exact.
        twice_rank = 2 * np.cumsum(mass, axis=1) - mass
        bins = NUM_BINS * twice_rank // np.maximum(2 * num_cases, 1)[:, None]
        # Only probabilities with mass 0 can lie above the last bin.
        bins = np.minimum(bins, NUM_BINS - 1).astype(np.int64)
        bins += NUM_BINS * np.arange(len(mass))[:, None]
        gap = mass * self.probability - self.malignant
        gaps = np.bincount(bins.ravel(), weights=gap.ravel(), minlength=NUM_BINS * len(mass))
        return ratio(np.abs(gaps.reshape(-1, NUM_BINS)).sum(axis=1), num_cases)


def _reverse_cumsum(counts: Array) -> Array:
    """Return the counts at or above every distinct probability."""
    return counts[:, ::-1].cumsum(axis=1)[:, ::-1]
