"""Temperature and threshold, both fitted on the inner validation part, never on a test fold.

Where the cases say nothing about one, it keeps its neutral value: temperature 1, threshold 0.5.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from mtil.metrics.classification import checked
from mtil.metrics.weighted import Array

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
    from scipy.optimize import minimize_scalar  # half a second, which most processes never need

    values, malignant = checked(logits, labels)
    margin = np.where(malignant, values, -values)  # (n,); positive where the sign is right
    if malignant.all() or not malignant.any() or (margin >= 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    fit = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(fit.x))


def calibrated(logit: npt.NDArray[np.floating[Any]], temperature: float) -> npt.NDArray[np.float64]:
    """Return the calibrated probabilities of logits, in double precision like the threshold."""
    from scipy.special import expit  # a sixth of a second, which what writes maps never needs

    probability: npt.NDArray[np.float64] = expit(np.asarray(logit, np.float64) / temperature)
    return probability


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
    middle, f1 = _candidates(probability, labels)
    return _nearest_to_half(middle[f1 == f1.max()])


def steady_threshold(
    probability: npt.ArrayLike, labels: npt.ArrayLike, *, resamples: int = 500, seed: int = 0
) -> float:
    """Return the threshold nearest to 0.5 whose F1 is within one standard error of the best.

    With few cases the best threshold hangs on one or two of them. Calibrated probabilities have a
    natural threshold, which is left only as far as the cases give reason to (the one-standard-error
    rule of Breiman et al., 1984). The standard error is that of the best threshold's F1 over
    resampled cases.

    Args:
        probability: (n,), of being malignant, calibrated.
        labels: (n,), 1 malignant or 0 benign.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: the lengths differ, a probability is not finite, or a label is neither 0 nor 1.
    """
    middle, f1 = _candidates(probability, labels)
    values, malignant = checked(probability, labels)
    called = values >= _nearest_to_half(middle[f1 == f1.max()])
    size = len(values)
    rng = np.random.default_rng(seed)
    times = rng.multinomial(size, np.full(size, 1 / size), resamples) if size else np.zeros((1, 0))
    hits = times @ (2.0 * (called & malignant))  # (resamples,)
    whole = times @ (called * 1.0 + malignant)
    error = float(np.std(hits / np.maximum(whole, 1)))
    return _nearest_to_half(middle[f1 >= f1.max() - error])


def _candidates(
    probability: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the thresholds that make a difference, ascending, and the F1 of each."""
    values, malignant = checked(probability, labels)
    distinct, case = np.unique(values, return_inverse=True)
    if malignant.all() or not malignant.any() or len(distinct) == 1:
        return np.array([0.5]), np.array([1.0])
    called = _from_each_on(case, np.ones(len(case)))
    tp = _from_each_on(case, malignant.astype(np.float64))
    f1 = 2 * tp / (called + malignant.sum())  # (distinct,); called malignant from each value on
    below = np.concatenate([[0.0], distinct[:-1]])
    middle = below + (distinct - below) / 2
    middle = np.where(middle > below, middle, distinct)  # where no number lies between
    return middle, f1


def _nearest_to_half(thresholds: npt.NDArray[np.float64]) -> float:
    return float(thresholds[np.argmin(np.abs(thresholds - 0.5))])


def _from_each_on(case: npt.NDArray[np.intp], weight: Array) -> Array:
    """Return the weight of the cases at or above each distinct value, ascending."""
    return np.bincount(case, weights=weight)[::-1].cumsum()[::-1]
