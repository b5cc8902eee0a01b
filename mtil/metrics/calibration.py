"""Temperature scaling and decision thresholds, fitted on the inner validation part only.

If the cases cannot determine a value, the neutral value is returned: temperature 1, threshold 0.5.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from mtil.metrics.classification import check_scores
from mtil.metrics.weighted import Array

MIN_TEMPERATURE = 0.05
MAX_TEMPERATURE = 20.0


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the temperature in [0.05, 20] with the lowest mean negative log-likelihood.

    See Guo et al., 2017, "On calibration of modern neural networks". Returns 1 if no minimum
    exists: without cases, with a single class, if all logits are 0 or all have the right sign.

    Args:
        logits: (n,), logit of malignant.
        labels: (n,), 1 malignant or 0 benign.

    Raises:
        DataError: if the lengths differ, a logit is not finite, or a label is not 0 or 1.
    """
    # The import takes half a second, and most processes never fit a temperature.
    from scipy.optimize import minimize_scalar

    values, malignant = check_scores(logits, labels)
    margin = np.where(malignant, values, -values)  # (n,); positive where the sign is right
    if malignant.all() or not malignant.any() or (margin >= 0).all():
        return 1.0

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, -margin / np.exp(log_temperature)).mean())

    # The likelihood has a single minimum in log T, so a bounded scalar search finds it.
    bounds = (np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
    fit = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return float(np.exp(fit.x))


def calibrate_logits(
    logit: npt.NDArray[np.floating[Any]], temperature: float
) -> npt.NDArray[np.float64]:
    """Return the calibrated probabilities of logits, in double precision like the threshold."""
    # The import takes a sixth of a second, and map writers never need it.
    from scipy.special import expit

    probability: npt.NDArray[np.float64] = expit(np.asarray(logit, np.float64) / temperature)
    return probability


def find_best_threshold(probability: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Return the threshold with the highest F1 of the malignant class.

    A case is called malignant if `probability >= threshold`. Candidates lie midway between
    neighbouring probabilities; the lowest candidate lies midway between 0 and the least
    probability. Ties go to the threshold nearest to 0.5, then to the lower threshold. Returns 0.5
    without cases, with a single class or with a single probability.

    Args:
        probability: (n,), probability of malignant in [0, 1].
        labels: (n,), 1 malignant or 0 benign.

    Raises:
        DataError: if the lengths differ, a probability is not finite, or a label is not 0 or 1.
    """
    middle, f1 = _candidates(probability, labels)
    return _nearest_to_half(middle[f1 == f1.max()])


def find_steady_threshold(
    probability: npt.ArrayLike, labels: npt.ArrayLike, *, resamples: int = 500, seed: int = 0
) -> float:
    """Return the threshold nearest to 0.5 with F1 within one standard error of the best F1.

    The standard error is the bootstrap error of F1 at the best threshold.

    Args:
        probability: (n,), calibrated probability of malignant.
        labels: (n,), 1 malignant or 0 benign.
        resamples: number of bootstrap resamples.
        seed: random seed of the bootstrap.

    Raises:
        DataError: if the lengths differ, a probability is not finite, or a label is not 0 or 1.
    """
    # With few cases the best threshold depends on one or two cases. Calibrated probabilities have
    # the natural threshold 0.5, which is left only as far as the cases give reason to: the
    # one-standard-error rule of Breiman et al., 1984.
    middle, f1 = _candidates(probability, labels)
    values, malignant = check_scores(probability, labels)
    called_malignant = values >= _nearest_to_half(middle[f1 == f1.max()])
    num_cases = len(values)
    rng = np.random.default_rng(seed)
    counts = (
        rng.multinomial(num_cases, np.full(num_cases, 1 / num_cases), resamples)
        if num_cases
        else np.zeros((1, 0))
    )
    f1_numerator = counts @ (2.0 * (called_malignant & malignant))  # (resamples,)
    f1_denominator = counts @ (called_malignant * 1.0 + malignant)
    standard_error = float(np.std(f1_numerator / np.maximum(f1_denominator, 1)))
    return _nearest_to_half(middle[f1 >= f1.max() - standard_error])


def _candidates(
    probability: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the candidate thresholds, ascending, and the F1 by candidate."""
    values, malignant = check_scores(probability, labels)
    distinct, value_index = np.unique(values, return_inverse=True)
    if malignant.all() or not malignant.any() or len(distinct) == 1:
        return np.array([0.5]), np.array([1.0])
    num_called = _reverse_cumsum(value_index, np.ones(len(value_index)))
    tp = _reverse_cumsum(value_index, malignant.astype(np.float64))
    f1 = 2 * tp / (num_called + malignant.sum())  # (distinct,)
    below = np.concatenate([[0.0], distinct[:-1]])
    middle = below + (distinct - below) / 2
    # Neighbouring floats have no number between them: take the upper value.
    middle = np.where(middle > below, middle, distinct)
    return middle, f1


def _nearest_to_half(thresholds: npt.NDArray[np.float64]) -> float:
    return float(thresholds[np.argmin(np.abs(thresholds - 0.5))])


def _reverse_cumsum(value_index: npt.NDArray[np.intp], weight: Array) -> Array:
    """Return the weight of the cases at or above every distinct value, ascending by value."""
    return np.bincount(value_index, weights=weight)[::-1].cumsum()[::-1]
