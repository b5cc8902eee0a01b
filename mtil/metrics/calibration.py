"""Temperature and threshold, both fitted on the inner validation part, never on a test fold.

Where the cases say nothing about one, it keeps its neutral value: temperature 1, threshold 0.5.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from mtil.metrics.classification import Array, checked

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the temperature in [0.05, 20] whose probabilities fit the labels best.

    It minimises the mean negative log-likelihood (Guo et al., 2017, "On calibration of modern
    neural networks"), which has one minimum in log T. It is 1 where no minimum exists: no case, a
    single class, logits that are all 0, or logits that all have the right sign.

    Args:
        logits: (n,), of being malignant.
        labels: (n,), 1 malignant or 0 benign.

    Raises:
        DataError: the lengths differ, a logit is not finite, or a label is neither 0 nor 1.
    """
    values, malignant = checked(logits, labels)
    margin = np.where(malignant, values, -values)  # (n,); positive where the sign is right
    if malignant.all() or not malignant.any() or (margin >= 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    fit = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(fit.x))


def best_threshold(probability: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the threshold with the highest F1 of the malignant class.

    A case is called malignant where `probability >= threshold`. Candidates lie midway between
    neighbouring probabilities, the lowest midway between 0 and the least one; of equally good ones,
    the nearest to 0.5 wins, then the lower. The result is 0.5 where there is nothing to choose: no
    case, a single class or a single probability.

    Args:
        probability: (n,), of being malignant, in [0, 1].
        labels: (n,), 1 malignant or 0 benign.

    Raises:
        DataError: the lengths differ, a probability is not finite, or a label is neither 0 nor 1.
    """
    values, malignant = checked(probability, labels)
    distinct, case = np.unique(values, return_inverse=True)
    if malignant.all() or not malignant.any() or len(distinct) == 1:
        return 0.5
    called = _from_each_on(case, np.ones(len(case)))
    tp = _from_each_on(case, malignant.astype(np.float64))
    f1 = 2 * tp / (called + malignant.sum())  # (distinct,); called malignant from each value on
    below = np.concatenate([[0.0], distinct[:-1]])
    middle = below + (distinct - below) / 2
    middle = np.where(middle > below, middle, distinct)  # where no number lies between
    best = middle[f1 == f1.max()]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _from_each_on(case: npt.NDArray[np.intp], weight: Array) -> Array:
    """Return the weight of the cases at or above each distinct value, ascending."""
    return np.bincount(case, weights=weight)[::-1].cumsum()[::-1]
