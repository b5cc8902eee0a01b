"""A trained model applied to images. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn import functional as F

from mtil.batches import resize_images
from mtil.checkpoint import Model
from mtil.config import Config
from mtil.engine import wants_bf16

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to the lesion."""
ENLARGEMENT = 0.2
STRIDE = 32


class View(NamedTuple):
    """One way to show an image to the network."""

    size: int
    mirrored: bool


@dataclass(frozen=True)
class Prediction:
    """What a model says of a batch of images."""

    lesion: npt.NDArray[np.float32]
    """(b, n, n) probability that a pixel is lesion, at the network's input size."""
    logit: npt.NDArray[np.float32]
    """(b,) uncalibrated logit of malignant."""
    malignant: npt.NDArray[np.float64]
    """(b,) calibrated probability of malignant."""


class Predictor:
    """A model on a device."""

    def __init__(self, model: Model, device: torch.device | None = None) -> None:
        """Build the network.

        Raises:
            CheckpointError: if the weights do not fit the architecture.
        """
        self.model = model
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = model.network().to(self.device)
        self._views = views(model.config)
        self._autocast = wants_bf16(model.config.train, self.device)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Prediction:
        """Predict gray images (b, s, s) of the size that data sets are prepared at.

        Logits and maps are averaged over the views that the configuration asks for.
        """
        stored = torch.from_numpy(np.array(images)).to(self.device)[:, None]
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
        ):
            seen = [self._look(stored, view) for view in self._views]
        lesion = torch.stack([lesion for lesion, _ in seen]).mean(dim=0)
        logit = torch.stack([logit for _, logit in seen]).mean(dim=0).cpu().numpy()
        return Prediction(
            lesion=lesion[:, 0].cpu().numpy(),
            logit=logit,
            malignant=calibrated(logit, self.model.temperature),
        )

    def _look(self, stored: Tensor, view: View) -> tuple[Tensor, Tensor]:
        image = resize_images(stored, view.size)
        output = self._network(image.flip(-1) if view.mirrored else image)
        lesion = output.mask.float().sigmoid()
        if view.mirrored:
            lesion = lesion.flip(-1)
        size = self.model.config.data.image_size
        if view.size != size:
            lesion = F.interpolate(lesion, (size, size), mode="bilinear", antialias=True)
        return lesion, output.malignant.float()


def mean(said: Sequence[Prediction]) -> Prediction:
    """Return what several models say together."""
    return Prediction(
        lesion=np.mean([one.lesion for one in said], axis=0, dtype=np.float32),
        logit=np.mean([one.logit for one in said], axis=0, dtype=np.float32),
        malignant=np.mean([one.malignant for one in said], axis=0),
    )


def views(config: Config) -> list[View]:
    """Return how an image is looked at.

    A network that was trained on randomly scaled images sees lesions larger than they are at test
    time; a larger input makes up for it (Touvron et al. 2019).
    """
    size = config.data.image_size
    sizes, mirrored = [size], [False]
    if config.predict.views != "plain":
        mirrored.append(True)
    if config.predict.views == "flip_and_scale":
        sizes.append(size + STRIDE * max(1, round(ENLARGEMENT * size / STRIDE)))
    return [View(at, flip) for at in sizes for flip in mirrored]


def calibrated(logit: npt.NDArray[np.floating[Any]], temperature: float) -> npt.NDArray[np.float64]:
    """Return the calibrated probabilities of logits, in double precision like the threshold."""
    probability: npt.NDArray[np.float64] = expit(np.asarray(logit, np.float64) / temperature)
    return probability


def at_size(lesion: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize one map of probabilities (n, n) to an image's own size (height, width)."""
    resized: npt.NDArray[np.float32] = F.interpolate(
        torch.from_numpy(lesion)[None, None],
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0, 0].numpy()
    return resized
