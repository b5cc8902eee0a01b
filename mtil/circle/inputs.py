"""What ties a round to the one before: the rows, weights and maps that an action takes. No Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mtil.config import Config, compute_config_digest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import InnerDivision, RowSelection, count_rows, select_rows
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import DataError
from mtil.run import maps
from mtil.run.folder import Run
from mtil.run.maps import MapOrigin
from mtil.run.plan import (
    CirclePlan,
    Evaluate,
    Train,
    WriteMaps,
    find_map_writers,
    find_models_used,
    find_warm_start,
)
from mtil.run.priors import MapSource, PriorMaps

if TYPE_CHECKING:  # torch takes two seconds, and what only schedules does not need it
    from torch import Tensor

    from mtil.run.checkpoint import TrainedModel


def select_training_rows(config: Config, manifest: Manifest, of: Train) -> RowSelection:
    """Return the rows that a training learns from.

    Raises:
        DataError: if the data set has no such rows.
    """
    without = None if of.part is None else InnerDivision(of.part, config.circle.num_parts)
    return select_rows(manifest, of.fold, "train", normals=config.data.normals, without=without)


def select_mapped_rows(config: Config, manifest: Manifest, of: WriteMaps) -> RowSelection:
    """Return the rows whose maps an action writes.

    Raises:
        DataError: if the data set has no such rows.
    """
    only = None if of.part is None else InnerDivision(of.part, config.circle.num_parts)
    return select_rows(manifest, of.fold, "train", normals=config.data.normals, only=only)


def count_steps_per_epoch(config: Config, manifest: Manifest, of: Train) -> int:
    """Return the optimiser steps of a training's epoch: the same on every worker.

    Raises:
        DataError: if the rows do not fill one batch.
    """
    num_rows = count_rows(manifest, select_training_rows(config, manifest, of))
    steps = num_rows // config.train.batch_size
    if not steps:
        which = f"fold {of.fold}" + ("" if of.part is None else f" without part {of.part}")
        raise DataError(
            f"An epoch must fill a batch of {config.train.batch_size} images, but {which} trains "
            f"on {num_rows}; lower `train.batch_size`."
        )
    return steps


def check_plan(plan: CirclePlan, config: Config, manifest: Manifest) -> None:
    """Make sure before anything starts that a circle can be trained: its network and all its rows.

    Raises:
        ConfigError: if there is no such network.
        DataError: naming the training or the division that has too few rows.
    """
    check_folds(plan.folds, config, manifest)
    for fold in plan.folds:
        for part in plan.parts:
            select_mapped_rows(config, manifest, WriteMaps(0, fold, part))
            count_steps_per_epoch(config, manifest, Train(0, fold, part))
        select_rows(manifest, fold, "test")


def check_folds(folds: Sequence[int], config: Config, manifest: Manifest) -> None:
    """Make sure before anything starts that folds can be trained and validated.

    Raises:
        ConfigError: if there is no such network.
        DataError: naming what has too few rows.
    """
    from mtil.models.encoders import build_encoder

    build_encoder(config.model.encoder)
    for fold in folds:
        count_steps_per_epoch(config, manifest, Train(0, fold))
        select_rows(manifest, fold, "validation")


def load_initial_weights(run: Run, of: Train) -> "Mapping[str, Tensor] | None":
    """Return the weights that a training starts from; none means from scratch."""
    before = find_warm_start(run.plan([of.fold]), of)
    return None if before is None else run.model(before).weights


def find_prior_maps(run: Run, manifest: Manifest, action: Train | WriteMaps) -> PriorMaps | None:
    """Return the maps that an action's rows come with; none in the first round.

    Raises:
        DataError: if the training whose model wrote them has not ended.
    """
    writers = find_map_writers(run.plan([action.fold]), action)
    if not writers:
        return None
    if isinstance(action, Train):
        needed = select_training_rows(run.config, manifest, action)
    else:
        needed = select_mapped_rows(run.config, manifest, action)
    sources = tuple(find_map_source(run, manifest, writer) for writer in writers)
    return PriorMaps(run.uri, sources, needed)


def find_map_source(run: Run, manifest: Manifest, of: WriteMaps) -> MapSource:
    """Return where an action's maps are, and what they must say of themselves.

    Raises:
        DataError: if the training whose model writes them has not ended.
    """
    (writer,) = find_models_used(run.plan([of.fold]), of)
    result = run.result(writer)
    if result is None:
        raise DataError(f"The {writer} must have ended before its maps are read.")
    origin = MapOrigin(
        fingerprint=manifest.fingerprint,
        shard="",
        model_sha256=result.model_sha256,
        config_digest=compute_config_digest(run.config),
        round=of.round,
        fold=of.fold,
        part=of.part,
        size=maps.default_map_size(run.config.data.image_size),
    )
    return MapSource(run.map_folder(of), origin, select_mapped_rows(run.config, manifest, of))


def list_test_models(run: Run, number: int, fold: int) -> Sequence[Train]:
    """Return the trainings whose models look at a fold's test rows, one a pass.

    In the first round there is one pass, since nothing has learnt to read a map, unless the
    network was trained on its own output.
    """
    circle = run.config.circle
    models = find_models_used(run.plan([fold]), Evaluate(number, fold))
    if circle.test == "chain":
        return models
    return models * circle.num_passes if number or circle.maps == "recycle" else models


def list_own_test_models(run: Run, of: Train) -> Sequence[Train]:
    """Return the trainings whose models look at a test image as a training's will, in turn."""
    return [replace(one, part=of.part) for one in list_test_models(run, of.round, of.fold)]


def load_model_chains(run: Run, number: int, fold: int) -> "list[list[TrainedModel]]":
    """Return the models that judge a fold's test rows: chains that vote together, a model a pass.

    Raises:
        DataError: if a training that is needed has no result.
    """
    of_pass = _chains(run, number, fold)
    found = {of: run.model(of) for of in dict.fromkeys(of for chain in of_pass for of in chain)}
    return [[found[of] for of in chain] for chain in of_pass]


def check_test_models(run: Run, number: int, fold: int) -> None:
    """Make sure before anything starts that the models of `chains` are there, and whole.

    Raises:
        DataError: if a training that is needed has no result.
        OtherModelError: if a file is not the one that its result names.
        CheckpointError: if a file holds no model that this version can use.
    """
    for of in {of for chain in _chains(run, number, fold) for of in chain}:
        run.model(of)


def _chains(run: Run, number: int, fold: int) -> list[Sequence[Train]]:
    """Return the trainings of `chains`."""
    voters = run.find_trained_folds().get(number, []) if fold == HOLDOUT else [fold]
    if not voters:
        run.last_round()  # says it if no round at all is trained
        raise DataError(f"A round must be trained first, but round {number} of {run.uri} is not.")
    return [list_test_models(run, number, voter) for voter in voters]
