"""Test rows to scores per image. No Ray."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from mtil.config import digest
from mtil.data.dataset.batches import squares
from mtil.data.dataset.shards import pixels
from mtil.data.images.read import decode_mask_png
from mtil.errors import CheckpointError
from mtil.metrics import score_mask
from mtil.prediction.predictor import (
    MASK_THRESHOLD,
    Prediction,
    Predictor,
    at_size,
    in_passes,
    mean,
)
from mtil.run.checkpoint import Model
from mtil.run.scores import PREDICTIONS as PREDICTIONS

EVALUATION_COLUMNS = (
    "sample_id", "image", "label", "group", "fold", "part", "height", "width", "mask_png", "source",
    "pixel_size",
)  # fmt: skip

_BATCH = 32


def score(rows: pa.Table, *predictors: Predictor, num_passes: int = 1) -> pa.Table:
    """Predict the rows of a shard with models that go over them again and again.

    See `score_chains`.
    """
    return score_chains(rows, [[predictor] * num_passes for predictor in predictors])


def score_chains(rows: pa.Table, chains: Sequence[Sequence[Predictor]]) -> pa.Table:
    """Predict the rows of a shard in passes and score each pass at the rows' original size.

    A chain names the model of each pass, see `in_passes`. Several chains of the same length vote
    together in every pass: lesion maps, logits, probabilities and thresholds are averaged. Batches
    are cut from the given rows alone, so that the same rows give the same figures whoever computes
    them.
    """
    scored: list[dict[str, Any]] = []
    for start in range(0, rows.num_rows, _BATCH):
        batch = rows.slice(start, _BATCH)
        images = squares(pixels(batch.column("image")))
        told = [in_passes(chain, images) for chain in chains]
        for number, (said, judges) in enumerate(
            zip(zip(*told, strict=True), zip(*chains, strict=True), strict=True)
        ):
            scored += _score_batch(batch, number, mean(said), [judge.model for judge in judges])
    return pa.Table.from_pylist(scored, schema=PREDICTIONS)


def _score_batch(
    rows: pa.Table, number: int, said: Prediction, models: Sequence[Model]
) -> list[dict[str, Any]]:
    """Score what models said together of some rows in the pass of a number."""
    _check_finite(rows, said, models)
    threshold = float(np.mean([model.threshold for model in models]))
    origin = lineage(models)
    plain = rows.drop_columns(
        ["image", "mask_png", "height", "width", "part", "pixel_size"]
    ).to_pylist()
    sizes = zip(rows.column("height").to_pylist(), rows.column("width").to_pylist(), strict=True)
    scored = []
    for index, (row, (height, width)) in enumerate(zip(plain, sizes, strict=True)):
        target = decode_mask_png(rows.column("mask_png")[index].as_py())
        scores = score_mask(at_size(said.lesion[index], height, width) >= MASK_THRESHOLD, target)
        row |= {
            "pass": number,
            "logit": float(said.logit[index]),
            "probability": float(said.malignant[index]),
            "predicted": bool(said.malignant[index] >= threshold),
        }
        row |= {field.name: getattr(scores, field.name) for field in fields(scores)}
        pixel_size = rows.column("pixel_size")[index].as_py()
        for name in ("hd95", "assd"):
            row[f"{name}_mm"] = None if pixel_size is None else row[name] * pixel_size
        scored.append(row | origin)
    return scored


def _check_finite(rows: pa.Table, said: Prediction, models: Sequence[Model]) -> None:
    """Refuse predictions that are no numbers, of which every figure would be nonsense."""
    finite = np.isfinite(said.logit) & np.isfinite(said.malignant)
    finite &= np.isfinite(said.lesion).all(axis=(1, 2))
    if not finite.all():
        name = rows.column("sample_id")[int(np.flatnonzero(~finite)[0])].as_py()
        digests = ", ".join(model.digest[:12] for model in models)
        raise CheckpointError(
            f"A prediction must be a number, but that of {name!r} by the model {digests} is not; "
            "train the fold again."
        )


def lineage(models: Sequence[Model]) -> dict[str, str]:
    """Return what the predictions of models of one run name as their origin."""
    return {
        "model_sha256": ";".join(model.digest for model in models),
        "fingerprint": models[0].fingerprint,
        "config_digest": digest(models[0].config),
        "version": models[0].version,
    }
