"""Distil an ensemble: one model learns from the soft outputs of several. No Ray.

The teacher of a fold is the ensemble of the fold's models. Neither the teacher nor the distilled
model has seen the fold's test images.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtil.circle.inputs import load_model_chains, select_training_rows
from mtil.circle.request import TrainingRequest, request_trainings
from mtil.config import Config
from mtil.data.dataset.batches import ROLE_COLUMNS, TRAINING_COLUMNS, to_squares
from mtil.data.dataset.selection import count_rows
from mtil.data.dataset.shards import pixels, read_shard
from mtil.errors import ConfigError, DataError
from mtil.prediction.predictor import (
    Predictor,
    average_predictions,
    build_predictors,
    predict_passes,
)
from mtil.prediction.units import check_ensemble
from mtil.run import names
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.maps import quantise_probabilities
from mtil.run.plan import Train
from mtil.run.teacher import TeacherOutputs, read_teacher_outputs, write_teacher_outputs
from mtil.storage import open_store

TEACHER_SHARE = 0.5
"""Usual share of the teacher's outputs in the targets."""
_BATCH = 32


def request_distillation(
    teachers: Sequence[str], run_uri: str, config: Config, folds: Sequence[int] | str
) -> TrainingRequest:
    """Check that folds can be trained with the outputs of an ensemble.

    Args:
        teachers: runs of one data set; the predictions of the last round's models are averaged.
        run_uri: an existing or new run.
        config: the run's configuration; without `loss.teacher`, `TEACHER_SHARE` is set.
        folds: folds to hold out; or text such as `0,2` or `all`.

    Raises:
        ConfigError: if `run_uri` is a teacher.
        UserError: if data set, runs, folds and configuration do not fit together.
    """
    first = Run.open(teachers[0])
    if open_store(run_uri).uri in {open_store(teacher).uri for teacher in teachers}:
        raise ConfigError(
            f"A distilled run must not be its own teacher, but --to names {run_uri}; name another."
        )
    if not config.loss.teacher:
        config = replace(config, loss=replace(config.loss, teacher=TEACHER_SHARE))
    version = first.manifest().version
    request = request_trainings(first.data_uri, run_uri, config, folds, data_version=version)
    for fold in request.folds:
        check_ensemble(first, first.last_round(), fold, teachers[1:])
    return request


def write_outputs(
    request: TrainingRequest,
    teachers: Sequence[str],
    device: torch.device,
    listen: Callable[[dict[str, Any]], None],
) -> None:
    """Write the teacher's outputs for the training images of every fold without outputs.

    Args:
        request: the folds, from `request_distillation`.
        teachers: runs whose models are averaged.
        device: device of the networks.
        listen: called with `{"kind": "taught", "fold", "images", "of"}` after each batch.

    Raises:
        DataError: if a shard is missing or damaged, the outputs are too large, or the run has
            outputs of other models.
        CheckpointError: if a model file is damaged.
    """
    run = request.create()
    runs = [Run.open(teacher) for teacher in teachers]
    for fold in request.folds:
        chains = [chain for one in runs for chain in load_model_chains(one, one.last_round(), fold)]
        models = ";".join(chain[-1].digest for chain in chains)
        if not run.store.exists(names.teacher_name(fold)):
            write_teacher_outputs(run, fold, _predict(request, fold, chains, device, listen))
        elif read_teacher_outputs(run, fold).model_sha256 != models:
            raise DataError(
                f"A distilled run must keep its teachers, but fold {fold} of {run.uri} has the "
                "outputs of other models; name another --to."
            )


def _predict(
    request: TrainingRequest,
    fold: int,
    chains: Sequence[Sequence[TrainedModel]],
    device: torch.device,
    listen: Callable[[dict[str, Any]], None],
) -> TeacherOutputs:
    """Return the outputs of chains of models for a fold's training images."""
    selection = select_training_rows(request.config, request.manifest, Train(0, fold))
    num_images = count_rows(request.manifest, selection)
    predictors: list[list[Predictor]] = [build_predictors(chain, device) for chain in chains]
    store = open_store(request.data_uri)
    ids: list[str] = []
    maps, malignant = [], []
    for shard in request.manifest.shards:
        if not selection.count(shard):
            continue
        table = read_shard(store, shard, (*TRAINING_COLUMNS, *ROLE_COLUMNS))
        table = table.take(pa.array(selection.rows(table)))
        for start in range(0, table.num_rows, _BATCH):
            batch = table.slice(start, _BATCH)
            images = to_squares(pixels(batch.column("image")))
            prediction = average_predictions(
                [predict_passes(chain, images)[-1] for chain in predictors]
            )
            ids += batch.column("sample_id").to_pylist()
            maps.append(quantise_probabilities(prediction.lesion))
            malignant.append(prediction.malignant)
            listen({"kind": "taught", "fold": fold, "images": len(ids), "of": num_images})
    models = (chain[-1].digest for chain in chains)
    return TeacherOutputs(ids, np.concatenate(maps), np.concatenate(malignant), ";".join(models))
