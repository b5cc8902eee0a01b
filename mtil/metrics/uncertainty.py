"""Does an uncertainty find images with errors? Risk-coverage curves (Geifman & El-Yaniv 2017)."""

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


def area_under_risk_coverage(risk: Values, uncertainty: Values) -> float:
    """Return the mean risk over all coverages, the images with the least uncertainty first.

    At coverage k / n the risk is the mean over the k least uncertain of n images. Images of equal
    uncertainty enter in random order: the expected value is returned.

    Args:
        risk: (n,) loss of each image.
        uncertainty: (n,) one number an image; only the order counts.
    """
    _, tie = np.unique(uncertainty, return_inverse=True)
    mean_of_tie = np.bincount(tie, risk) / np.bincount(tie)
    ordered = mean_of_tie[np.sort(tie)]
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))


def summarise_risk(risk: Values, uncertainty: Values) -> dict[str, float]:
    """Return the area under the risk-coverage curve beside two bounds.

    `area` is for the given uncertainty, `random` without any order (the mean risk), `ideal` for the
    order of the risks themselves. `gained` is the share of the way from random to ideal, 0 where
    both are equal.
    """
    area, ideal = (area_under_risk_coverage(risk, order) for order in (uncertainty, risk))
    random = float(np.mean(risk))
    return {
        "area": area,
        "random": random,
        "ideal": ideal,
        "gained": (random - area) / (random - ideal) if random > ideal else 0.0,
    }
