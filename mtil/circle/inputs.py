"""Inputs of an action: the rows, and the weights and maps of earlier rounds. No Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mtil.circle.initial import load_fitting_weights
from mtil.config import Config, compute_config_digest
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import InnerDivision, RowSelection, count_rows, select_rows
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.dataset.source_weights import SourceWeights
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

# The import of torch takes two seconds, and the coordinator only schedules.
if TYPE_CHECKING:
    from torch import Tensor

    from mtil.run.checkpoint import TrainedModel


def select_training_rows(config: Config, manifest: Manifest, training: Train) -> RowSelection:
    """Return the training rows of a training. An inner model skips the rows of one part.

    Raises:
        DataError: if the data set lacks the fold or the selection is empty.
    """
    part = training.part
    without = None if part is None else InnerDivision(part, config.circle.num_parts)
    normals = config.data.normals
    return select_rows(manifest, training.fold, "train", normals=normals, without=without)


def select_mapped_rows(config: Config, manifest: Manifest, action: WriteMaps) -> RowSelection:
    """Return the rows mapped by an action: the training rows of a fold, or of one part.

    Raises:
        DataError: if the data set lacks the fold or the selection is empty.
    """
    only = None if action.part is None else InnerDivision(action.part, config.circle.num_parts)
    return select_rows(manifest, action.fold, "train", normals=config.data.normals, only=only)


def count_steps_per_epoch(config: Config, manifest: Manifest, training: Train) -> int:
    """Return the optimiser steps of an epoch, equal on all workers.

    Raises:
        DataError: if the training rows do not fill one batch.
    """
    num_rows = count_rows(manifest, select_training_rows(config, manifest, training))
    # Rounded down: rows left over by the division fill no batch and are skipped.
    steps = num_rows // config.train.batch_size
    if not steps:
        part = "" if training.part is None else f" without part {training.part}"
        raise DataError(
            f"An epoch must fill a batch of {config.train.batch_size} images, but fold "
            f"{training.fold}{part} has {num_rows} training images; lower `train.batch_size`."
        )
    return steps


def make_source_weights(config: Config, manifest: Manifest) -> SourceWeights | None:
    """Return the weights of the images by source; None if all images weigh the same.

    Raises:
        ConfigError: if `data.source_weights` names an unknown source, or leaves no image a weight.
    """
    weights = dict(config.data.source_weights)
    return SourceWeights(manifest.sources, weights) if weights else None


def check_plan(plan: CirclePlan, config: Config, manifest: Manifest) -> None:
    """Check that a circle can be trained: the encoder exists and all actions have enough rows.

    Raises:
        ConfigError: if the encoder is unknown.
        DataError: if a training, a part or a test fold has too few rows.
    """
    check_folds(plan.folds, config, manifest)
    for fold in plan.folds:
        for part in plan.parts:
            # Only for errors: rows depend on fold and part, not on the round.
            select_mapped_rows(config, manifest, WriteMaps(0, fold, part))
            count_steps_per_epoch(config, manifest, Train(0, fold, part))
        select_rows(manifest, fold, "test")


def check_folds(folds: Sequence[int], config: Config, manifest: Manifest) -> None:
    """Check that folds can be trained and validated.

    Raises:
        ConfigError: if the encoder or a source in `data.source_weights` is unknown.
        DataError: if a fold has too few training rows or no validation rows.
    """
    from mtil.models.encoders import build_encoder

    build_encoder(config.model.encoder)
    make_source_weights(config, manifest)
    for fold in folds:
        count_steps_per_epoch(config, manifest, Train(0, fold))
        select_rows(manifest, fold, "validation")


def load_initial_weights(run: Run, training: Train) -> "Mapping[str, Tensor] | None":
    """Return the initial weights of a training by name; None from scratch.

    A warm start has all weights, `train.init` those that fit.

    Raises:
        DataError: if the training of the previous round has no result, or the run has lost the
            copy of its initial model.
        CheckpointError: if a model file is damaged.
    """
    source = find_warm_start(run.plan([training.fold]), training)
    if source is None:
        return load_fitting_weights(run, training.fold)
    return run.model(source).weights


def find_prior_maps(run: Run, manifest: Manifest, action: Train | WriteMaps) -> PriorMaps | None:
    """Return the prior maps of an action's rows; None in round 0, and without stored maps.

    Raises:
        DataError: if the training behind a map has no result.
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


def find_map_source(run: Run, manifest: Manifest, action: WriteMaps) -> MapSource:
    """Return the map folder of an action, with the expected origin and rows of the maps.

    Raises:
        DataError: if the training of the mapping model has no result.
    """
    (training,) = find_models_used(run.plan([action.fold]), action)
    result = run.result(training)
    if result is None:
        raise DataError(
            f"The {training} must have ended before its maps are read, but has no result; "
            "continue the run with `mtil circle`."
        )
    origin = MapOrigin(
        fingerprint=manifest.fingerprint,
        # `MapSource.origin_of` fills in the shard.
        shard="",
        model_sha256=result.model_sha256,
        config_digest=compute_config_digest(run.config),
        round=action.round,
        fold=action.fold,
        part=action.part,
        size=maps.default_map_size(run.config.data.image_size),
    )
    rows = select_mapped_rows(run.config, manifest, action)
    return MapSource(run.map_folder(action), origin, rows)


def list_test_models(run: Run, round_index: int, fold: int) -> Sequence[Train]:
    """Return the training behind the model of each pass over a fold's test rows, in pass order."""
    circle = run.config.circle
    models = find_models_used(run.plan([fold]), Evaluate(round_index, fold))
    if circle.test == "chain":
        return models
    # With stored maps, a model of round 0 has not learnt to read a map, so one pass is enough.
    if not round_index and circle.stores_maps:
        return models
    return models * circle.num_passes


def list_own_test_models(run: Run, training: Train) -> Sequence[Train]:
    """Return the training behind the model of each pass that tests a training's own model.

    For an inner model, the earlier passes use inner models without the same part.
    """
    models = list_test_models(run, training.round, training.fold)
    return [replace(model, part=training.part) for model in models]


def load_model_chains(run: Run, round_index: int, fold: int) -> "list[list[TrainedModel]]":
    """Load the models for a fold's test rows, as chains with a model per pass.

    A fold has one chain, and with `predict.voters` all a chain per inner model of the round before.
    The holdout has the chains of all trained folds. The predictions of the chains are to be
    averaged. A model that serves several passes is loaded once.

    Raises:
        DataError: if the round is not trained or a training has no result.
        OtherModelError: if a model file differs from the digest in its result.
        CheckpointError: if a file holds no model that this version can use.
    """
    chains = _list_chains(run, round_index, fold)
    trainings = dict.fromkeys(training for chain in chains for training in chain)
    models = {training: run.model(training) for training in trainings}
    return [[models[training] for training in chain] for chain in chains]


def check_test_models(run: Run, round_index: int, fold: int) -> None:
    """Check that the models of `load_model_chains` exist undamaged.

    Raises:
        DataError: if the round is not trained or a training has no result.
        OtherModelError: if a model file differs from the digest in its result.
        CheckpointError: if a file holds no model that this version can use.
    """
    chains = _list_chains(run, round_index, fold)
    for training in {training for chain in chains for training in chain}:
        run.model(training)


def _list_chains(run: Run, round_index: int, fold: int) -> list[Sequence[Train]]:
    """Return the trainings behind the models of `load_model_chains`."""
    # No model was trained on the holdout, so the models of all folds may predict it.
    folds = run.find_trained_folds().get(round_index, []) if fold == HOLDOUT else [fold]
    if not folds:
        # Raises a clearer error if no round at all is trained.
        run.last_round()
        raise DataError(
            f"Round {round_index} of {run.uri} is not trained. Train it first, or choose another "
            "round."
        )
    return [
        chain
        for chain_fold in folds
        for chain in (
            list_test_models(run, round_index, chain_fold),
            *_list_inner_chains(run, round_index, chain_fold),
        )
    ]


def _list_inner_chains(run: Run, round_index: int, fold: int) -> list[Sequence[Train]]:
    """Return the inner models of the round before as chains of the main chain's length."""
    config = run.config
    if config.predict.voters == "main" or config.circle.maps != "cross_fit" or not round_index:
        return []
    length = len(list_test_models(run, round_index, fold))
    before = find_models_used(run.plan([fold]), Evaluate(round_index - 1, fold))
    chains: list[Sequence[Train]] = []
    for part in range(config.circle.num_parts):
        chain = [replace(model, part=part) for model in before]
        # Inner models of round 0 have learnt no map: a further pass changes nothing.
        chains.append([*chain, *[chain[-1]] * (length - len(chain))])
    return chains
