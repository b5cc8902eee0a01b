"""How well one predicted mask outlines one lesion, at the image's own pixels."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MaskScores:
    """Scores of one image. Counts are in pixels, distances in the unit of the spacing."""

    tp: int
    """Lesion pixels that were found."""
    fp: int
    """Predicted pixels outside the lesion."""
    fn: int
    """Lesion pixels that were not found."""
    dice: float
    """2 tp / (2 tp + fp + fn); NaN without a lesion, as are the next three."""
    iou: float
    """tp / (tp + fp + fn)."""
    hd95: float
    """The larger of the two directed 95th percentiles of the distances between outlines."""
    assd: float
    """Mean distance from a point of either outline to the other outline."""
    missed: bool
    """There is a lesion, and no pixel of it was found."""
    false_positive_area: float
    """fp as a share of the image."""


def score_mask(
    prediction: Mask, target: Mask, *, spacing: tuple[float, float] = (1.0, 1.0)
) -> MaskScores:
    """Compare a predicted mask with the true one.

    An empty prediction against a lesion has the image's diagonal as HD95 and ASSD: a miss is the
    worst case, never a distance of 0. Distances are those of MONAI's
    `compute_hausdorff_distance(percentile=95)` and
    `compute_average_surface_distance(symmetric=True)`.

    Args:
        prediction: (height, width), true inside the predicted lesion.
        target: (height, width), true inside the lesion; empty for a normal image.
        spacing: height and width of a pixel, in the unit that distances shall have.

    Raises:
        DataError: the masks are no boolean images of one size, or a spacing is not positive.
    """
    _check(prediction, target, spacing)
    tp = int(np.count_nonzero(prediction & target))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(target)) - tp
    lesion = tp + fn > 0
    hd95, assd = math.nan, math.nan
    if lesion and tp + fp > 0:
        hd95, assd = _outline_distances(prediction, target, spacing)
    elif lesion:
        hd95 = assd = math.hypot(target.shape[0] * spacing[0], target.shape[1] * spacing[1])
    return MaskScores(
        tp=tp,
        fp=fp,
        fn=fn,
        dice=2 * tp / (2 * tp + fp + fn) if lesion else math.nan,
        iou=tp / (tp + fp + fn) if lesion else math.nan,
        hd95=hd95,
        assd=assd,
        missed=lesion and tp == 0,
        false_positive_area=fp / target.size,
    )


def outline(mask: Mask) -> Mask:
    """Return the pixels of a mask with a 4-neighbour outside it.

    What lies beyond the image is outside, so that a mask's pixels at the border are outline. This
    is the mask minus its erosion, which slices compute faster than `scipy.ndimage` does.

    Args:
        mask: (height, width).
    """
    edge = mask.copy()
    inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    edge[1:-1, 1:-1] &= ~inner
    return edge


def _outline_distances(
    prediction: Mask, target: Mask, spacing: tuple[float, float]
) -> tuple[float, float]:
    """Return HD95 and ASSD of two masks of which neither is empty."""
    from scipy.spatial import KDTree  # a third of a second, which a training never needs

    a, b = _outline_points(prediction, spacing), _outline_points(target, spacing)
    to_target = np.asarray(KDTree(b, leafsize=32).query(a)[0])  # (points of a,)
    to_prediction = np.asarray(KDTree(a, leafsize=32).query(b)[0])  # (points of b,)
    hd95 = max(np.percentile(to_target, 95), np.percentile(to_prediction, 95))
    total = to_target.sum() + to_prediction.sum()
    return float(hd95), float(total / (len(a) + len(b)))


def _outline_points(mask: Mask, spacing: tuple[float, float]) -> Points:
    pixels = np.asarray(np.argwhere(outline(mask)), np.float64)
    return pixels * np.asarray(spacing, np.float64)


def _check(prediction: Mask, target: Mask, spacing: tuple[float, float]) -> None:
    if prediction.dtype != np.bool_ or target.dtype != np.bool_:
        raise DataError(
            f"Masks must be boolean, but got {prediction.dtype} and {target.dtype}; "
            "apply a threshold first."
        )
    if prediction.ndim != 2 or prediction.shape != target.shape or prediction.size == 0:
        raise DataError(
            f"Prediction and target must be images of one size, but got {prediction.shape} and "
            f"{target.shape}; resize the prediction to the original image."
        )
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(
            f"A spacing must be positive, but got {spacing}; use (1.0, 1.0) for pixels."
        )
