"""Calibrate a trained model on the inner validation rows. No Ray."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from mtil.data.dataset.batches import Batch
from mtil.data.dataset.selection import NORMAL
from mtil.metrics import calibrate_logits, find_steady_threshold, fit_temperature
from mtil.metrics.mask_rule import MappedImage, MaskRule, choose_rule
from mtil.prediction.predictor import Predictor, predict_passes
from mtil.run.checkpoint import TrainedModel
from mtil.run.maps import quantise_probabilities
from mtil.training.tensors import to_tensors

_MOST_MAPS = 1000
"""Images from which the rule of the masks is chosen; more would only take memory and time."""


@dataclass(frozen=True, eq=False)
class ValidationPrediction:
    """The prediction for an inner validation row in the last pass."""

    sample_id: str
    label: int
    logit: float
    """Logit of malignant."""
    presence: float
    """Logit of a lesion in the image."""
    lesion: npt.NDArray[np.uint8]
    """(n, n) lesion probability per pixel in 255ths, at the size of the last pass's maps."""
    target: npt.NDArray[np.bool_]
    """(n, n) true mask."""


def predict_validation(
    chain: Sequence[Predictor], batches: Iterator[Batch]
) -> Iterator[ValidationPrediction]:
    """Yield the predictions of the last of a chain of models, see `predict_passes`."""
    for batch in batches:
        prediction = predict_passes(chain, batch.image)[-1]
        size = prediction.lesion.shape[-1]
        masks = to_tensors(batch, size, torch.device("cpu")).mask[:, 0].numpy() > 0
        lesions = quantise_probabilities(prediction.lesion)
        for index, sample_id in enumerate(batch.sample_id):
            yield ValidationPrediction(
                sample_id=sample_id,
                label=int(batch.label[index]),
                logit=float(prediction.logit[index]),
                presence=float(prediction.presence_logit[index]),
                lesion=lesions[index],
                target=masks[index],
            )


def calibrate_model(
    model: TrainedModel, rows: Sequence[ValidationPrediction], *, knows_normals: bool
) -> TrainedModel:
    """Return a model with temperatures, threshold and rule of the masks from its predictions.

    Args:
        model: an uncalibrated model.
        rows: predictions of all inner validation rows, in an order that is always the same.
        knows_normals: True if the network was trained to tell images without a lesion.
    """
    tumours = [row for row in rows if row.label != NORMAL]
    logit = np.array([row.logit for row in tumours])
    label = np.array([row.label for row in tumours])
    temperature = fit_temperature(logit, label)
    presence_temperature = None
    if knows_normals:
        presence_temperature = fit_temperature(
            np.array([row.presence for row in rows]),
            np.array([int(row.label != NORMAL) for row in rows]),
        )
    model = replace(
        model,
        temperature=temperature,
        threshold=find_steady_threshold(calibrate_logits(logit, temperature), label),
        presence_temperature=presence_temperature,
    )
    return replace(model, mask_rule=_choose_mask_rule(model, rows))


def _choose_mask_rule(model: TrainedModel, rows: Sequence[ValidationPrediction]) -> MaskRule:
    predict = model.config.predict
    if predict.mask_rule == "half":
        return MaskRule()
    presence = np.full(len(rows), np.nan)
    if model.presence_temperature is not None:
        logit = np.array([row.presence for row in rows])
        presence = calibrate_logits(logit, model.presence_temperature)
    step = max(1, math.ceil(len(rows) / _MOST_MAPS))
    images = [
        MappedImage(row.lesion.astype(np.float32) / np.float32(255), row.target, float(probability))
        for row, probability in zip(rows[::step], presence[::step], strict=True)
    ]
    return choose_rule(images, predict.max_false_positives)
