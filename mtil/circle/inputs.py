"""What ties a round to the one before: the rows, weights and maps that an action takes. No Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mtil.config import Config, digest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Inner, Selection, select, total
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import DataError
from mtil.run import maps
from mtil.run.folder import Run
from mtil.run.maps import Origin
from mtil.run.plan import (
    Evaluate,
    Plan,
    Train,
    WriteMaps,
    models_of,
    reads_maps_of,
    starts_from,
)
from mtil.run.priors import MapSource, PriorMaps

if TYPE_CHECKING:  # torch takes two seconds, and what only schedules does not need it
    from torch import Tensor

    from mtil.run.checkpoint import Model


def training_rows(config: Config, manifest: Manifest, of: Train) -> Selection:
    """Return the rows that a training learns from.

    Raises:
        DataError: if the data set has no such rows.
    """
    without = None if of.part is None else Inner(of.part, config.circle.num_parts)
    return select(manifest, of.fold, "train", normals=config.data.normals, without=without)


def mapped_rows(config: Config, manifest: Manifest, of: WriteMaps) -> Selection:
    """Return the rows whose maps an action writes.

    Raises:
        DataError: if the data set has no such rows.
    """
    only = None if of.part is None else Inner(of.part, config.circle.num_parts)
    return select(manifest, of.fold, "train", normals=config.data.normals, only=only)


def steps_per_epoch(config: Config, manifest: Manifest, of: Train) -> int:
    """Return the optimiser steps of a training's epoch: the same on every worker.

    Raises:
        DataError: if the rows do not fill one batch.
    """
    num_rows = total(manifest, training_rows(config, manifest, of))
    steps = num_rows // config.train.batch_size
    if not steps:
        which = f"fold {of.fold}" + ("" if of.part is None else f" without part {of.part}")
        raise DataError(
            f"An epoch must fill a batch of {config.train.batch_size} images, but {which} trains "
            f"on {num_rows}; lower `train.batch_size`."
        )
    return steps


def check_plan(plan: Plan, config: Config, manifest: Manifest) -> None:
    """Make sure before anything starts that a circle can be trained: its network and all its rows.

    Raises:
        ConfigError: if there is no such network.
        DataError: naming the training or the division that has too few rows.
    """
    check_folds(plan.folds, config, manifest)
    for fold in plan.folds:
        for part in plan.parts:
            mapped_rows(config, manifest, WriteMaps(0, fold, part))
            steps_per_epoch(config, manifest, Train(0, fold, part))
        select(manifest, fold, "test")


def check_folds(folds: Sequence[int], config: Config, manifest: Manifest) -> None:
    """Make sure before anything starts that folds can be trained and validated.

    Raises:
        ConfigError: if there is no such network.
        DataError: naming what has too few rows.
    """
    from mtil.models.encoders import build_encoder

    build_encoder(config.model.encoder)
    for fold in folds:
        steps_per_epoch(config, manifest, Train(0, fold))
        select(manifest, fold, "validation")


def initial_weights(run: Run, of: Train) -> "Mapping[str, Tensor] | None":
    """Return the weights that a training starts from; none means from scratch."""
    before = starts_from(run.plan([of.fold]), of)
    return None if before is None else run.model(before).weights


def prior_maps(run: Run, manifest: Manifest, action: Train | WriteMaps) -> PriorMaps | None:
    """Return the maps that an action's rows come with; none in the first round.

    Raises:
        DataError: if the training whose model wrote them has not ended.
    """
    writers = reads_maps_of(run.plan([action.fold]), action)
    if not writers:
        return None
    if isinstance(action, Train):
        needed = training_rows(run.config, manifest, action)
    else:
        needed = mapped_rows(run.config, manifest, action)
    sources = tuple(map_source(run, manifest, writer) for writer in writers)
    return PriorMaps(run.uri, sources, needed)


def map_source(run: Run, manifest: Manifest, of: WriteMaps) -> MapSource:
    """Return where an action's maps are, and what they must say of themselves.

    Raises:
        DataError: if the training whose model writes them has not ended.
    """
    (writer,) = models_of(run.plan([of.fold]), of)
    result = run.result(writer)
    if result is None:
        raise DataError(f"The {writer} must have ended before its maps are read.")
    origin = Origin(
        fingerprint=manifest.fingerprint,
        shard="",
        model_sha256=result.model_sha256,
        config_digest=digest(run.config),
        round=of.round,
        fold=of.fold,
        part=of.part,
        size=maps.default_size(run.config.data.image_size),
    )
    return MapSource(run.map_folder(of), origin, mapped_rows(run.config, manifest, of))


def judges(run: Run, number: int, fold: int) -> Sequence[Train]:
    """Return the trainings whose models look at a fold's test rows, one a pass.

    In the first round there is one pass, since nothing has learnt to read a map, unless the
    network was trained on its own output.
    """
    circle = run.config.circle
    models = models_of(run.plan([fold]), Evaluate(number, fold))
    if circle.test == "chain":
        return models
    return models * circle.num_passes if number or circle.maps == "recycle" else models


def own_judges(run: Run, of: Train) -> Sequence[Train]:
    """Return the trainings whose models look at a test image as a training's will, in turn."""
    return [replace(one, part=of.part) for one in judges(run, of.round, of.fold)]


def chains(run: Run, number: int, fold: int) -> "list[list[Model]]":
    """Return the models that judge a fold's test rows: chains that vote together, a model a pass.

    Raises:
        DataError: if a training that is needed has no result.
    """
    of_pass = _chains(run, number, fold)
    found = {of: run.model(of) for of in dict.fromkeys(of for chain in of_pass for of in chain)}
    return [[found[of] for of in chain] for chain in of_pass]


def check_models(run: Run, number: int, fold: int) -> None:
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
    voters = run.trained().get(number, []) if fold == HOLDOUT else [fold]
    if not voters:
        run.last_round()  # says it if no round at all is trained
        raise DataError(f"A round must be trained first, but round {number} of {run.uri} is not.")
    return [judges(run, number, voter) for voter in voters]
