"""Scores of a predicted mask against the true mask, in the pixels of the original image."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MaskScores:
    """Scores of an image. Counts are in pixels, distances in the unit of the spacing."""

    tp: int
    """Lesion pixels in the prediction."""
    fp: int
    """Predicted pixels outside the lesion."""
    fn: int
    """Lesion pixels outside the prediction."""
    dice: float
    """2 tp / (2 tp + fp + fn); NaN without a lesion."""
    iou: float
    """tp / (tp + fp + fn); NaN without a lesion."""
    hd95: float
    """Larger of both directed 95th percentiles of outline distances; NaN without a lesion."""
    assd: float
    """Mean distance from the points of both outlines to the other outline; NaN without a lesion."""
    missed: bool
    """Whether the image has a lesion without any pixel in the prediction."""
    false_positive_area: float
    """fp divided by the number of pixels of the image."""


def score_mask(
    prediction: Mask, target: Mask, *, spacing: tuple[float, float] = (1.0, 1.0)
) -> MaskScores:
    """Compare a predicted mask with the true mask.

    Distances equal MONAI's `compute_hausdorff_distance(percentile=95)` and
    `compute_average_surface_distance(symmetric=True)`. With an empty prediction against a lesion,
    HD95 and ASSD are the diagonal of the image.

    Args:
        prediction: (height, width), true inside the predicted lesion.
        target: (height, width), true inside the lesion; all false for a normal image.
        spacing: height and width of a pixel, in the unit of the distances.

    Raises:
        DataError: if the masks are not boolean images of equal size, or a spacing is not positive.
    """
    _check(prediction, target, spacing)
    tp = int(np.count_nonzero(prediction & target))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(target)) - tp
    has_lesion = tp + fn > 0
    hd95, assd = math.nan, math.nan
    if has_lesion and tp + fp > 0:
        hd95, assd = _outline_distances(prediction, target, spacing)
    elif has_lesion:
        # A miss must be the worst case: a distance of 0 would reward misses.
        hd95 = assd = math.hypot(target.shape[0] * spacing[0], target.shape[1] * spacing[1])
    return MaskScores(
        tp=tp,
        fp=fp,
        fn=fn,
        dice=2 * tp / (2 * tp + fp + fn) if has_lesion else math.nan,
        iou=tp / (tp + fp + fn) if has_lesion else math.nan,
        hd95=hd95,
        assd=assd,
        missed=has_lesion and tp == 0,
        false_positive_area=fp / target.size,
    )


def find_outline(mask: Mask) -> Mask:
    """Return the pixels of a mask with a 4-neighbour outside the mask.

    Pixels beyond the border of the image count as outside.

    Args:
        mask: (height, width).
    """
    # The outline is the mask minus the eroded mask. Slices are faster than `scipy.ndimage`.
    edge = mask.copy()
    inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    edge[1:-1, 1:-1] &= ~inner
    return edge


def _outline_distances(
    prediction: Mask, target: Mask, spacing: tuple[float, float]
) -> tuple[float, float]:
    """Return HD95 and ASSD of two masks, both with at least one pixel."""
    # The import takes a third of a second, and a training never needs it.
    from scipy.spatial import KDTree

    predicted, expected = _outline_points(prediction, spacing), _outline_points(target, spacing)
    to_target = np.asarray(KDTree(expected, leafsize=32).query(predicted)[0])  # (predicted,)
    to_prediction = np.asarray(KDTree(predicted, leafsize=32).query(expected)[0])  # (expected,)
    hd95 = max(np.percentile(to_target, 95), np.percentile(to_prediction, 95))
    total = to_target.sum() + to_prediction.sum()
    return float(hd95), float(total / (len(predicted) + len(expected)))


def _outline_points(mask: Mask, spacing: tuple[float, float]) -> Points:
    pixels = np.asarray(np.argwhere(find_outline(mask)), np.float64)
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
