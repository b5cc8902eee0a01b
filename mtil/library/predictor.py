"""Predict the lesion outline and class of an image with trained models. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtil.data.images.pictures import Picture
from mtil.data.images.read import Gray
from mtil.errors import DataError
from mtil.prediction.images import Ensemble, load_chains
from mtil.prediction.predictor import resize_map

_GRAY_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.bool_))


@dataclass(frozen=True)
class ImagePrediction:
    """The prediction for one image of height h and width w."""

    mask: npt.NDArray[np.bool_]
    """(h, w), True inside the lesion; follows from `lesion` by the rule of the models."""
    lesion: npt.NDArray[np.float32]
    """(h, w), probability of lesion per pixel in the last pass, from 0 to 1."""
    malignancy: float
    """Calibrated probability of malignant from 0 to 1, given that the image shows a lesion."""
    is_malignant: bool
    """True if `malignancy` is at least `ImagePredictor.threshold`."""
    lesion_probability: float | None
    """Calibrated probability from 0 to 1 of a lesion in the image; None if the models were trained
    without normal images."""
    mask_spread: float | None
    """Disagreement of several models about the mask, from 0 to 1: 1 minus the mean Dice of all
    pairs of their masks. None for one model."""
    malignancy_spread: float | None
    """Standard deviation of `malignancy` over several models; None for one model."""
    class_name: str
    """`normal` if a lesion is less likely than not, unless the image is known to show one; else
    `benign` or `malignant`."""
    passes: tuple[npt.NDArray[np.float32], ...]
    """Arrays (h, w), probability of lesion per pixel in every pass. The last equals `lesion`."""


class ImagePredictor:
    """Trained models that predict images of any size; several models are averaged.

    Make with `load`.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble

    @property
    def threshold(self) -> float:
        """Lowest `malignancy` of an image classified as malignant, from 0 to 1.

        Chosen on the inner validation rows; with several folds, the mean over the folds.
        """
        return self._ensemble.threshold

    @property
    def lineage(self) -> dict[str, str]:
        """Origin of the predictions, as text by name.

        `model_sha256` holds the digests of the model files, with `;` between folds and `>` between
        the rounds of a fold. `fingerprint` is of the data set, `config_digest` of the
        configuration, and `mtil_version` the version of mtil.
        """
        return dict(self._ensemble.lineage)

    def __call__(self, image: npt.NDArray[Any]) -> ImagePrediction:
        """Segment and classify one image of any size.

        Args:
            image: gray (h, w), RGB (h, w, 3) or RGBA (h, w, 4) of dtype uint8. A gray image may
                also be uint16 or bool.

        Raises:
            DataError: if `image` has a different shape or dtype, or the prediction is not finite.
        """
        gray = _to_gray(image)
        by_pass = self._ensemble.passes([gray], at_once=1)
        passes = tuple(resize_map(one.lesion[0], *gray.shape) for one in by_pass)
        malignancy = float(by_pass[-1].malignant[0])
        presence = float(by_pass[-1].presence[0])
        if not (np.isfinite(malignancy) and all(np.isfinite(lesion).all() for lesion in passes)):
            raise DataError("The model predicted a value that is not finite; train the fold again.")
        return ImagePrediction(
            mask=self._ensemble.mask_rule(passes[-1], presence),
            lesion=passes[-1],
            malignancy=malignancy,
            is_malignant=malignancy >= self.threshold,
            lesion_probability=_known(presence),
            mask_spread=_known(by_pass[-1].mask_spread[0]),
            malignancy_spread=_known(by_pass[-1].malignant_spread[0]),
            class_name=self._ensemble.name_class(malignancy, presence),
            passes=passes,
        )


def load(
    run_or_checkpoint: str,
    fold: int | None = None,
    *,
    others: Sequence[str] = (),
    normals: bool = True,
) -> ImagePredictor:
    """Load trained models for prediction, on a GPU if present.

    Args:
        run_or_checkpoint: path or URI of a run, or of a model file of a run,
            `rounds/*/fold-*/model-*.pt`.
        fold: the fold whose model predicts; by default the predictions of all trained folds are
            averaged.
        others: further runs or model files, whose predictions are averaged with the first's.
        normals: images may be normal; if False, each gets an outline, and the class benign or
            malignant.

    Returns:
        a function from an image to an `ImagePrediction`.

    Raises:
        DataError: if `run_or_checkpoint` is neither a run nor a model file, or the fold is not
            trained.
        CheckpointError: if a model file is damaged.

    Example:
        >>> import mtil
        >>> predictor = mtil.load(run)
        >>> prediction = predictor(image)
        >>> prediction.mask.shape == image.shape, 0 <= prediction.malignancy <= 1
        (True, True)
    """
    chains = load_chains(run_or_checkpoint, *others)
    if fold is not None:
        folds = [chain[-1].fold for chain in chains]
        chains = [chain for chain in chains if chain[-1].fold == fold]
        if not chains:
            raise DataError(
                f"Fold {fold} of {run_or_checkpoint} is not trained, but folds "
                f"{', '.join(map(str, folds))} are; choose a trained fold."
            )
    return ImagePredictor(Ensemble(chains, normals=normals))


def _known(value: float) -> float | None:
    """Return a number, or None for NaN."""
    return None if np.isnan(value) else float(value)


def _to_gray(image: npt.NDArray[Any]) -> Gray:
    pixels = np.asarray(image)
    is_gray = pixels.ndim == 2 and pixels.dtype in _GRAY_DTYPES
    is_colour = pixels.ndim == 3 and pixels.shape[2] in (3, 4) and pixels.dtype == np.uint8
    if not (is_gray or is_colour) or not pixels.size:
        raise DataError(
            "An image must be an array (h, w), (h, w, 3) or (h, w, 4) of 8 bits, or (h, w) of 16 "
            f"bits, but is {pixels.dtype} {pixels.shape}; make the array, for example, with "
            "`np.asarray(PIL.Image.open(path))`."
        )
    return Picture("the image", Image.fromarray(np.ascontiguousarray(pixels))).gray()
