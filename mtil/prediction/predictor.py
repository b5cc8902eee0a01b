"""Apply trained models to images. No Ray."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import combinations
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
from mtil.models.memory import explain_lack_of_memory
from mtil.models.windows import Window, measure_zoom
from mtil.prediction.zoom import paste_windows, propose_windows
from mtil.run.checkpoint import TrainedModel
from mtil.run.maps import MapOrigin, encode_maps, quantise_probabilities
from mtil.training.tensors import resize_images

VIEW_ENLARGEMENT = 0.2
"""Enlargement of the larger view, as a fraction of the image size."""
NETWORK_STRIDE = 32
"""The larger view exceeds the image size by a multiple of this stride, in pixels."""

_BATCH = 32


class View(NamedTuple):
    """A version of an image for test-time augmentation."""

    size: int
    """Side of the network's input in pixels."""
    mirrored: bool
    """True to flip the image left to right."""


@dataclass(frozen=True)
class Prediction:
    """The predictions for a batch of b images."""

    lesion: npt.NDArray[np.float32]
    """(b, n, n) lesion probability per pixel, at the network's input size n; in the zoom pass at
    the size of the stored images."""
    logit: npt.NDArray[np.float32]
    """(b,) uncalibrated malignancy logit."""
    malignant: npt.NDArray[np.float64]
    """(b,) calibrated probability of malignant, given that the image shows a lesion."""
    presence_logit: npt.NDArray[np.float32]
    """(b,) uncalibrated logit of a lesion in the image."""
    presence: npt.NDArray[np.float64]
    """(b,) calibrated probability of a lesion in the image; NaN if the model cannot tell."""
    mask_spread: npt.NDArray[np.float64]
    """(b,) disagreement of several models about the mask: 1 minus the mean Dice of all pairs of
    their masks at one half. NaN for a single model."""
    malignant_spread: npt.NDArray[np.float64]
    """(b,) standard deviation of `malignant` over several models; NaN for a single model."""


class Look(NamedTuple):
    """The outputs of a network for one view of b images."""

    lesion: Tensor
    """(b, 1, n, n) lesion probability, in the size and orientation of the view."""
    malignant: Tensor
    """(b,) malignancy logits."""
    presence: Tensor
    """(b,) logits of a lesion in the image."""


class Predictor:
    """A trained model on a device."""

    def __init__(self, model: TrainedModel, device: torch.device | None = None) -> None:
        """Build the network.

        Args:
            model: weights, configuration and calibration.
            device: device of the network; by default a GPU if present.

        Raises:
            CheckpointError: if the weights do not fit the architecture.
        """
        self.model = model
        self.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network = model.network().to(self.device)
        self._autocast = should_use_bf16(model.config.train, self.device)

    def __call__(self, images: npt.NDArray[np.uint8]) -> Prediction:
        """Predict gray images (b, s, s) in one pass, without a prior.

        The images have the size of the data set's stored images. Logits and maps are averaged over
        the views of `predict.views`.
        """
        (prediction,) = predict_passes([self], images)
        return prediction

    def look(
        self,
        stored: Tensor,
        view: View,
        prior: Tensor | None,
        windows: Sequence[Window] | None = None,
    ) -> Look:
        """Run the network on one view.

        Args:
            stored: gray bytes (b, 1, s, s) on the device.
            view: size and orientation of the network's input.
            prior: (b, 1, n, n) lesion probability in the view's size and orientation; None equals
                all zeros.
            windows: window of each image; by default the whole image.

        Raises:
            OutOfMemoryError: if the memory is too small for the images.
        """
        image, zoom = resize_images(stored, view.size, windows), None
        if windows is not None:
            zoom = measure_zoom(windows, stored.shape[-1]).to(self.device)
        with (
            self._explain_lack_of_memory(view, len(stored)),
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast),
        ):
            output = self._network(image.flip(-1) if view.mirrored else image, prior, zoom=zoom)
        return Look(output.as_prior(), output.malignant.float(), output.presence.float())

    def explain(self, stored: Tensor, view: View, prior: Tensor | None) -> Tensor:
        """Return what each place of a view adds to the malignancy logit, (b, n, n) on the CPU.

        Args:
            stored: gray bytes (b, 1, s, s) on the device.
            view: size and orientation of the network's input.
            prior: (b, 1, n, n) lesion probability, as for `look`.

        Raises:
            OutOfMemoryError: if the memory is too small for the images.
        """
        image = resize_images(stored, view.size)
        with self._explain_lack_of_memory(view, len(stored)):
            return self._network.explain(image.flip(-1) if view.mirrored else image, prior).cpu()

    def _explain_lack_of_memory(self, view: View, num_images: int) -> AbstractContextManager[None]:
        images = "an image" if num_images == 1 else f"{num_images} images"
        purpose = f"to predict {images} of {view.size} pixels"
        return explain_lack_of_memory(self.device, purpose, "end other programs that use it")

    def maps(
        self, images: npt.NDArray[np.uint8], prior: npt.NDArray[np.uint8] | None, size: int
    ) -> npt.NDArray[np.uint8]:
        """Return quantised maps (b, size, size) of images (b, s, s).

        Args:
            images: gray images.
            prior: maps of the previous round, with one map per image; None in round 0.
            size: side of the returned maps in pixels.
        """
        # The next round trains on the maps as priors, so maps are made as priors are at test time.
        # There, a pass reads the previous pass's map of the same view, never an average over views.
        # Averaged maps would be smoother and better in training than all priors met later.
        view = View(self.model.config.data.image_size, mirrored=False)
        stored = torch.from_numpy(np.array(images)).to(self.device)[:, None]
        view_prior = None
        if prior is not None:
            stored_prior = torch.from_numpy(np.array(prior)).to(self.device)[:, None]
            view_prior = resize_images(stored_prior, view.size)
        lesion = self.look(stored, view, view_prior).lesion
        return quantise_probabilities(
            F.interpolate(lesion, (size, size), mode="area")[:, 0].cpu().numpy()
        )


def predict_passes(chain: Sequence[Predictor], images: npt.NDArray[np.uint8]) -> list[Prediction]:
    """Predict gray images (b, s, s) in several passes. Return the prediction of every pass.

    The first pass reads a zero map, each later pass the map of the previous pass for the same view.
    With `zoom.num_windows` the last model of the chain makes a further pass over windows, see
    `zoom_in`.

    Args:
        chain: the model of each pass: one model several times, or the models of successive rounds.
            All models must have equal image size and views.
        images: gray images in the size of the data set's stored images.
    """
    config, device = chain[0].model.config, chain[0].device
    stored = torch.from_numpy(np.array(images)).to(device)[:, None]
    size = (config.data.image_size,) * 2
    looks_by_pass: list[list[Look]] = [[] for _ in chain]
    for view in list_views(config):
        prior = None
        for predictor, looks in zip(chain, looks_by_pass, strict=True):
            look = predictor.look(stored, view, prior)
            prior = look.lesion
            # Only the copy for the average is restored: the next pass reads the map of its view.
            lesion = prior.flip(-1) if view.mirrored else prior
            if lesion.shape[-2:] != size:
                lesion = F.interpolate(lesion, size, mode="bilinear", antialias=True)
            looks.append(look._replace(lesion=lesion))
    means = [average_looks(looks) for looks in looks_by_pass]
    if config.zoom.num_windows:
        means.append(zoom_in(chain[-1], stored, means[-1], reads_maps=len(chain) > 1))
    return [
        _calibrate(mean, predictor.model)
        for mean, predictor in zip(means, add_zoom(chain), strict=True)
    ]


def explain_chain(
    chain: Sequence[Predictor], images: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Return what each place of gray images (b, s, s) adds to the malignancy logit, (b, n, n).

    Contributions are those of the last pass over the whole images, seen plainly.
    """
    stored = torch.from_numpy(np.array(images)).to(chain[0].device)[:, None]
    view = View(chain[0].model.config.data.image_size, mirrored=False)
    prior = None
    for predictor in chain[:-1]:
        prior = predictor.look(stored, view, prior).lesion.clone()
    contributions: npt.NDArray[np.float32] = chain[-1].explain(stored, view, prior).numpy()
    return contributions


def add_zoom(chain: Sequence[Predictor]) -> list[Predictor]:
    """Return the predictor of every pass of `predict_passes`, with the zoom pass."""
    return [*chain, chain[-1]] if chain[-1].model.config.zoom.num_windows else [*chain]


def count_passes(chain: Sequence[TrainedModel]) -> int:
    """Return the number of passes of a chain of models, with the zoom pass."""
    return len(chain) + bool(chain[-1].config.zoom.num_windows)


def zoom_in(predictor: Predictor, stored: Tensor, coarse: Look, *, reads_maps: bool) -> Look:
    """Look at windows of images, which the map of the previous pass proposes.

    The map of a window is averaged with the previous map inside the window. The logits of the first
    window join the previous logits with weight `zoom.logit_weight`. Images without a window keep
    map and logits.

    Args:
        predictor: the model.
        stored: gray bytes (b, 1, s, s) on the device.
        coarse: outputs of the previous pass over the whole images.
        reads_maps: True to give the network the previous map of a window as the prior.

    Returns:
        maps (b, 1, s, s) and logits, on the CPU.
    """
    config, side = predictor.model.config, stored.shape[-1]
    weight = config.zoom.logit_weight
    results = []
    # Image by image: the size of a batch influences the last digits, and the number of windows of
    # the other images must not.
    for index in range(len(stored)):
        before = Look(*(values[index : index + 1] for values in coarse))
        lesion = resize_map(before.lesion[0, 0].numpy(), side, side)
        windows = propose_windows(lesion, config.zoom)
        if not windows:
            results.append(before._replace(lesion=torch.from_numpy(lesion)[None, None]))
            continue
        image = stored[index].expand(len(windows), -1, -1, -1)
        prior = None
        if reads_maps:
            quantised = torch.from_numpy(quantise_probabilities(lesion)).to(predictor.device)
            prior = resize_images(
                quantised.expand(len(windows), 1, -1, -1), config.data.image_size, windows
            )
        looks = []
        for view in list_views(config, enlarged=False):
            view_prior = prior.flip(-1) if prior is not None and view.mirrored else prior
            look = predictor.look(image, view, view_prior, windows)
            looks.append(
                look._replace(lesion=look.lesion.flip(-1) if view.mirrored else look.lesion)
            )
        mean = average_looks(looks)
        maps = [
            resize_map(one[0].numpy(), window.side, window.side)
            for one, window in zip(mean.lesion, windows, strict=True)
        ]
        results.append(
            Look(
                torch.from_numpy(paste_windows(lesion, windows, maps))[None, None],
                before.malignant.lerp(mean.malignant[:1], weight),
                before.presence.lerp(mean.presence[:1], weight),
            )
        )
    return Look(*(torch.cat(values) for values in zip(*results, strict=True)))


def average_looks(looks: Sequence[Look]) -> Look:
    """Average lesion probabilities and logits over views of equal size; return them on the CPU."""
    return Look(*(torch.stack(values).mean(dim=0).cpu() for values in zip(*looks, strict=True)))


def _calibrate(mean: Look, model: TrainedModel) -> Prediction:
    """Return the prediction from the mean outputs over views."""
    logit, presence_logit = mean.malignant.numpy(), mean.presence.numpy()
    unknown = np.full(len(logit), np.nan)
    return Prediction(
        lesion=mean.lesion[:, 0].numpy(),
        logit=logit,
        malignant=calibrate_logits(logit, model.temperature),
        presence_logit=presence_logit,
        presence=(
            unknown
            if model.presence_temperature is None
            else calibrate_logits(presence_logit, model.presence_temperature)
        ),
        mask_spread=unknown,
        malignant_spread=unknown,
    )


def build_predictors(
    models: Sequence[TrainedModel], device: torch.device | None = None
) -> list[Predictor]:
    """Build the networks of a chain. A model that serves several passes is built once."""
    unique_models = {id(model): model for model in models}
    predictors = {key: Predictor(model, device) for key, model in unique_models.items()}
    return [predictors[id(model)] for model in models]


def map_shard(rows: pa.Table, predictor: Predictor, origin: MapOrigin) -> bytes:
    """Map rows of a data shard. Return the bytes of the map shard.

    Args:
        rows: the rows to map, in the order of the data shard, with the columns `sample_id`, `image`
            and, after round 0, `prior`.
        predictor: the model.
        origin: digest of the model, and size of the maps.
    """
    assert origin.model_sha256 == predictor.model.digest
    # Batches are cut from the given rows alone. Equal rows then give equal bytes in every process
    # with the same number of threads.
    # Begins with an empty array, since a shard may have no row to map.
    maps = [np.empty((0, origin.size, origin.size), np.uint8)]
    for start in range(0, rows.num_rows, _BATCH):
        batch = rows.slice(start, _BATCH)
        images, prior = to_squares(pixels(batch.column("image"))), None
        if "prior" in batch.column_names:
            prior = to_squares(pixels(batch.column("prior")))
        maps.append(predictor.maps(images, prior, origin.size))
    return encode_maps(rows.column("sample_id").to_pylist(), np.concatenate(maps), origin)


def average_predictions(predictions: Sequence[Prediction]) -> Prediction:
    """Average the predictions of several models for one batch; one alone is returned.

    Maps of different sizes are enlarged to the largest.
    """
    if len(predictions) == 1:
        return predictions[0]
    side = max(single.lesion.shape[-1] for single in predictions)
    maps = np.stack([_resize_maps(single.lesion, side) for single in predictions])
    return Prediction(
        lesion=maps.mean(axis=0, dtype=np.float32),
        logit=np.mean([single.logit for single in predictions], axis=0, dtype=np.float32),
        malignant=np.mean([single.malignant for single in predictions], axis=0),
        presence_logit=np.mean(
            [single.presence_logit for single in predictions], axis=0, dtype=np.float32
        ),
        presence=np.mean([single.presence for single in predictions], axis=0),
        mask_spread=measure_mask_spread(maps >= 0.5),
        malignant_spread=np.std([single.malignant for single in predictions], axis=0),
    )


def measure_mask_spread(masks: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Return 1 minus the mean Dice of all pairs of masks, for each of b images: (b,).

    Two empty masks agree.

    Args:
        masks: (m, b, n, n) masks of m > 1 models.
    """
    areas = masks.sum(axis=(2, 3))
    agreements = []
    for i, j in combinations(range(len(masks)), 2):
        overlap = 2 * (masks[i] & masks[j]).sum(axis=(1, 2))
        total = areas[i] + areas[j]
        agreements.append(np.where(total, overlap / np.maximum(total, 1), 1.0))
    spread: npt.NDArray[np.float64] = 1 - np.mean(agreements, axis=0)
    return spread


def _resize_maps(lesion: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """Resize maps (b, n, n) to (b, side, side)."""
    if lesion.shape[-1] == side:
        return lesion
    return np.stack([resize_map(one, side, side) for one in lesion])


def list_views(config: Config, *, enlarged: bool = True) -> list[View]:
    """Return the views of an image by `predict.views`, the plain view first.

    Args:
        config: the run's configuration.
        enlarged: False leaves out the views of a larger size.
    """
    size = config.data.image_size
    sizes, mirrored = [size], [False]
    if config.predict.views != "plain":
        mirrored.append(True)
    if config.predict.views == "flip_and_scale" and enlarged:
        # Training on randomly scaled images shows lesions larger than at test time. A larger test
        # image makes up for the difference (Touvron et al. 2019).
        sizes.append(
            size + NETWORK_STRIDE * max(1, round(VIEW_ENLARGEMENT * size / NETWORK_STRIDE))
        )
    return [View(view_size, flip) for view_size in sizes for flip in mirrored]


def resize_map(lesion: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float32]:
    """Resize a probability map (n, n) to the original size (height, width) of an image."""
    resized: npt.NDArray[np.float32] = F.interpolate(
        torch.from_numpy(lesion)[None, None],
        (height, width),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0, 0].numpy()
    return resized
