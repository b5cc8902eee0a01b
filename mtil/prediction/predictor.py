"""A trained model applied to images. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from mtil.config import Config
from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.shards import pixels
from mtil.metrics import calibrate_logits
from mtil.models.devices import should_use_bf16
from mtil.run.checkpoint import TrainedModel
from mtil.run.maps import MapOrigin, encode_maps, quantise_probabilities
from mtil.training.tensors import resize_images

MASK_THRESHOLD = 0.5
"""Probability from which a pixel belongs to the lesion."""
VIEW_ENLARGEMENT = 0.2
NETWORK_STRIDE = 32

_BATCH = 32


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

    def __init__(self, model: TrainedModel, device: torch.device | None = None) -> None:
        """Build the network.

        Raises:
            CheckpointError: if the weights do not fit the architecture.
        """
        self.model = model
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = model.network().to(self.device)
        self._autocast = should_use_bf16(model.config.train, self.device)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Prediction:
        """Predict gray images (b, s, s) of the size that data sets are prepared at, in one pass.

        Logits and maps are averaged over the views that the configuration asks for.
        """
        (said,) = predict_passes([self], images)
        return said

    def look(self, stored: Tensor, view: View, prior: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the network says of a view.

        Args:
            stored: gray bytes (b, 1, s, s) on the device.
            view: how to show them.
            prior: (b, 1, n, n) probability of lesion, of the view's size and mirrored with it; None
                is the same as all zeros.

        Returns:
            probability of lesion (b, 1, n, n), of the view's size and mirrored with it, and logits
            of malignant (b,).
        """
        image = resize_images(stored, view.size)
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
        ):
            output = self._network(image.flip(-1) if view.mirrored else image, prior)
        return output.as_prior(), output.malignant.float()

    def maps(
        self, images: npt.NDArray[np.uint8], prior: npt.NDArray[np.uint8] | None, size: int
    ) -> npt.NDArray[np.uint8]:
        """Return the maps (b, size, size) of images (b, s, s), given the former round's maps.

        They are read by training as the next round's prior maps, so they are made as those are at
        test time: there, a pass is given what the pass before said of the same view, never an
        average over views. Hence the image is seen plainly, once: averaged maps would be smoother
        and better in training than any that the network meets afterwards.
        """
        view = View(self.model.config.data.image_size, mirrored=False)
        stored = torch.from_numpy(np.array(images)).to(self.device)[:, None]
        given = None
        if prior is not None:
            held = torch.from_numpy(np.array(prior)).to(self.device)[:, None]
            given = resize_images(held, view.size)
        lesion, _ = self.look(stored, view, given)
        return quantise_probabilities(
            F.interpolate(lesion, (size, size), mode="area")[:, 0].cpu().numpy()
        )


def predict_passes(chain: Sequence[Predictor], images: npt.NDArray[np.uint8]) -> list[Prediction]:
    """Predict gray images (b, s, s) in passes, the first from a zero map, and return each pass.

    Args:
        chain: the model of each pass, given what the former said of the same view: the same one
            again and again, or those of the rounds in turn. All look at images in the same way.
        images: of the size that data sets are prepared at.
    """
    config, device = chain[0].model.config, chain[0].device
    stored = torch.from_numpy(np.array(images)).to(device)[:, None]
    size = (config.data.image_size,) * 2
    said: list[list[tuple[Tensor, Tensor]]] = [[] for _ in chain]
    for view in list_views(config):
        prior = None
        for predictor, of_pass in zip(chain, said, strict=True):
            prior, logit = predictor.look(stored, view, prior)
            lesion = prior.flip(-1) if view.mirrored else prior
            if lesion.shape[-2:] != size:
                lesion = F.interpolate(lesion, size, mode="bilinear", antialias=True)
            of_pass.append((lesion, logit))
    return [_averaged(seen, one.model.temperature) for seen, one in zip(said, chain, strict=True)]


def _averaged(seen: Sequence[tuple[Tensor, Tensor]], temperature: float) -> Prediction:
    lesion = torch.stack([lesion for lesion, _ in seen]).mean(dim=0)
    logit = torch.stack([logit for _, logit in seen]).mean(dim=0).cpu().numpy()
    return Prediction(
        lesion=lesion[:, 0].cpu().numpy(),
        logit=logit,
        malignant=calibrate_logits(logit, temperature),
    )


def build_predictors(
    models: Sequence[TrainedModel], device: torch.device | None = None
) -> list[Predictor]:
    """Build the networks of a chain; a model that comes several times is built once."""
    different = {id(model): model for model in models}
    built = {key: Predictor(model, device) for key, model in different.items()}
    return [built[id(model)] for model in models]


def map_shard(rows: pa.Table, predictor: Predictor, origin: MapOrigin) -> bytes:
    """Map a data shard's rows and return the map shard.

    Batches are cut from the given rows alone, so that the same rows give the same bytes whoever
    maps them, as long as each process computes with the same number of threads.

    Args:
        rows: those of the data shard that are to have maps, in its order: `sample_id`, `image` and,
            after the first round, `prior`.
        predictor: the model that maps them.
        origin: names that model, and the size of the maps.
    """
    assert origin.model_sha256 == predictor.model.digest
    found = [np.empty((0, origin.size, origin.size), np.uint8)]
    for start in range(0, rows.num_rows, _BATCH):
        batch = rows.slice(start, _BATCH)
        images, prior = to_squares(pixels(batch.column("image"))), None
        if "prior" in batch.column_names:
            prior = to_squares(pixels(batch.column("prior")))
        found.append(predictor.maps(images, prior, origin.size))
    return encode_maps(rows.column("sample_id").to_pylist(), np.concatenate(found), origin)


def average_predictions(said: Sequence[Prediction]) -> Prediction:
    """Return what several models say together."""
    return Prediction(
        lesion=np.mean([one.lesion for one in said], axis=0, dtype=np.float32),
        logit=np.mean([one.logit for one in said], axis=0, dtype=np.float32),
        malignant=np.mean([one.malignant for one in said], axis=0),
    )


def list_views(config: Config) -> list[View]:
    """Return how an image is looked at.

    A network that was trained on randomly scaled images sees lesions larger than they are at test
    time; a larger input makes up for it (Touvron et al. 2019).
    """
    size = config.data.image_size
    sizes, mirrored = [size], [False]
    if config.predict.views != "plain":
        mirrored.append(True)
    if config.predict.views == "flip_and_scale":
        sizes.append(
            size + NETWORK_STRIDE * max(1, round(VIEW_ENLARGEMENT * size / NETWORK_STRIDE))
        )
    return [View(at, flip) for at in sizes for flip in mirrored]


def resize_map(lesion: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize one map of probabilities (n, n) to an image's own size (height, width)."""
    resized: npt.NDArray[np.float32] = F.interpolate(
        torch.from_numpy(lesion)[None, None],
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0, 0].numpy()
    return resized
