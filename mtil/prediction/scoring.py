"""Score test rows with models, image by image. Imports no Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.config import compute_config_digest
from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.shards import OBJECTION, pixels
from mtil.data.images.read import decode_mask_png
from mtil.errors import CheckpointError
from mtil.metrics import score_map, score_mask
from mtil.metrics.mask_rule import HALF_OF_PEAK, average_rules
from mtil.prediction.predictor import (
    Prediction,
    Predictor,
    add_zoom,
    average_predictions,
    explain_chain,
    predict_passes,
    resize_map,
)
from mtil.run.checkpoint import TrainedModel
from mtil.run.pictures import (
    PICTURE_FIELDS,
    draw_evidence,
    draw_map,
    draw_mask,
    has_picture,
)
from mtil.run.scores import PREDICTIONS_SCHEMA as PREDICTIONS_SCHEMA

EVALUATION_COLUMNS = (
    "sample_id", "image", "label", "group", "fold", "part", "height", "width", "mask_png", "source",
    "pixel_size", "meta",
)  # fmt: skip

SCORED_SCHEMA = pa.unify_schemas([PREDICTIONS_SCHEMA, pa.schema(PICTURE_FIELDS)])
"""A row per image and pass: the scores, and the pictures where there are any."""

Drawn = npt.NDArray[np.bool_]
"""(b,) whether an image gets pictures."""

_BATCH = 32


def score(rows: pa.Table, *predictors: Predictor, num_passes: int = 1) -> pa.Table:
    """Score the rows of a shard with models, each applied in `num_passes` passes.

    See `score_chains`.
    """
    return score_chains(rows, [[predictor] * num_passes for predictor in predictors])


def score_chains(
    rows: pa.Table,
    chains: Sequence[Sequence[Predictor]],
    *,
    num_images: int = 0,
    normals: bool = True,
) -> pa.Table:
    """Score the rows of a shard in passes, each pass at the original size of the rows.

    Args:
        rows: rows of a shard, with the columns `EVALUATION_COLUMNS`.
        chains: chains of equal length, with a model per pass, see `predict_passes`.
            Lesion maps, logits, probabilities and thresholds are averaged over the chains in every
            pass, and in the zoom pass if the models have one.
        num_images: images of the data set, which decide the images with pictures.
        normals: images may be normal; if False, each gets a mask.

    Returns:
        a row per image and pass, with the schema `SCORED_SCHEMA`. Equal input rows give equal
        scores in every process.
    """
    scored: list[dict[str, Any]] = []
    # Batches are slices of the given rows only. The batch size influences floating-point results,
    # so batches must not depend on the process.
    for start in range(0, rows.num_rows, _BATCH):
        batch = rows.slice(start, _BATCH)
        images = to_squares(pixels(batch.column("image")))
        by_chain = [predict_passes(chain, images) for chain in chains]
        drawn = [has_picture(name, num_images) for name in batch["sample_id"].to_pylist()]
        evidence = _explain(images, chains, np.array(drawn))
        for pass_index, (predictions, predictors) in enumerate(
            zip(zip(*by_chain, strict=True), zip(*map(add_zoom, chains), strict=True), strict=True)
        ):
            scored += _score_batch(
                batch,
                pass_index,
                average_predictions(predictions),
                [predictor.model for predictor in predictors],
                evidence,
                normals=normals,
            )
    return pa.Table.from_pylist(scored, schema=SCORED_SCHEMA)


def _explain(
    images: npt.NDArray[np.uint8], chains: Sequence[Sequence[Predictor]], drawn: Drawn
) -> dict[int, npt.NDArray[np.float32]]:
    """Return the mean contributions of the chains, by index of the images with pictures."""
    if not drawn.any():
        return {}
    maps = np.mean([explain_chain(chain, images[drawn]) for chain in chains], axis=0)
    return dict(zip(np.flatnonzero(drawn).tolist(), maps, strict=True))


def _score_batch(
    rows: pa.Table,
    pass_index: int,
    prediction: Prediction,
    models: Sequence[TrainedModel],
    evidence: Mapping[int, npt.NDArray[np.float32]],
    *,
    normals: bool,
) -> list[dict[str, Any]]:
    """Score an ensemble's predictions for one pass over a batch of rows.

    The rows in `evidence` also get pictures.
    """
    _check_finite(rows, prediction, models)
    threshold = float(np.mean([model.threshold for model in models]))
    rule = average_rules([model.mask_rule for model in models]) if normals else HALF_OF_PEAK
    origin = describe_origin(models)
    kept_rows = rows.drop_columns(
        ["image", "mask_png", "height", "width", "part", "pixel_size", "meta"]
    ).to_pylist()
    sizes = zip(rows.column("height").to_pylist(), rows.column("width").to_pylist(), strict=True)
    scored = []
    for index, (row, (height, width)) in enumerate(zip(kept_rows, sizes, strict=True)):
        target = decode_mask_png(rows.column("mask_png")[index].as_py())
        lesion = resize_map(prediction.lesion[index], height, width)
        mask = rule(lesion, prediction.presence[index])
        scores = score_mask(mask, target)
        row |= {
            "objection": dict(rows.column("meta")[index].as_py()).get(OBJECTION, ""),
            "pass": pass_index,
            "logit": float(prediction.logit[index]),
            "probability": float(prediction.malignant[index]),
            "predicted": bool(prediction.malignant[index] >= threshold),
            "presence_logit": float(prediction.presence_logit[index]),
            "lesion_probability": float(prediction.presence[index]),
            "mask_spread": float(prediction.mask_spread[index]),
            "probability_spread": float(prediction.malignant_spread[index]),
        }
        for fields_of in (scores, score_map(lesion, target)):
            row |= {field.name: getattr(fields_of, field.name) for field in fields(fields_of)}
        pixel_size = rows.column("pixel_size")[index].as_py()
        for name in ("hd95", "assd"):
            row[f"{name}_mm"] = None if pixel_size is None else row[name] * pixel_size
        if index in evidence:
            row |= {
                "mask_png": draw_mask(mask),
                "map_png": draw_map(prediction.lesion[index]),
                "evidence_png": draw_evidence(evidence[index]),
            }
        scored.append(row | origin)
    return scored


def _check_finite(rows: pa.Table, prediction: Prediction, models: Sequence[TrainedModel]) -> None:
    """Raise CheckpointError if a prediction is not finite: all metrics would be meaningless."""
    finite = np.isfinite(prediction.logit) & np.isfinite(prediction.malignant)
    finite &= np.isfinite(prediction.presence_logit)
    finite &= np.isfinite(prediction.lesion).all(axis=(1, 2))
    if not finite.all():
        name = rows.column("sample_id")[int(np.flatnonzero(~finite)[0])].as_py()
        digests = ", ".join(model.digest[:12] for model in models)
        raise CheckpointError(
            f"Model {digests} predicts no finite number for {name!r}. Train the fold again."
        )


def describe_origin(models: Sequence[TrainedModel]) -> dict[str, str]:
    """Return the origin columns of predictions: models, data set, configuration, version."""
    return {
        "model_sha256": ";".join(model.digest for model in models),
        "fingerprint": models[0].fingerprint,
        "config_digest": compute_config_digest(models[0].config),
        "version": models[0].version,
    }
