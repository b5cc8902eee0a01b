"""The weights from which a run's first trainings start: the models of another run.

The run keeps a copy of the initial model files and does not depend on the other run afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.errors import ConfigError, DataError
from mtil.run import names
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import Store, locate_file, open_store, path_within, split_uri

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class InitialModel:
    """A model file from which a fold's trainings start."""

    name: str
    """Name of the copy in the run."""
    data: bytes


def choose_initial_models(
    config: Config, store: Store, manifest: Manifest, folds: Sequence[int], run: Run | None
) -> list[InitialModel]:
    """Return the initial models of the folds without a copy in the run.

    If `train.init` names a run, the model of the same fold is tried first, then the models of the
    other folds in order. The first model without sight of the fold's test images is chosen.

    Args:
        config: the new run's configuration; `train.init` names a run or a model file.
        store: store of the new run's data set.
        manifest: version of the data set.
        folds: the folds to train.
        run: the new run, if it exists.

    Raises:
        ConfigError: if no weight of a model fits the network.
        DataError: if `train.init` is neither a run nor a model file of a run, if the data set of
            the other run cannot be read, or if all its models have seen test images of a fold.
        CheckpointError: if a model file is damaged.
    """
    if config.train.init is None:
        return []
    missing = [
        fold
        for fold in folds
        if run is None or not run.store.exists(names.initial_model_name(fold))
    ]
    if not missing:
        return []
    source, candidates = _list_candidates(config.train.init)
    chosen = []
    for fold in missing:
        reasons: list[str] = []
        # Within a data set, only the model of the same fold has not seen the test images.
        for training in sorted(candidates, key=lambda one: (one.fold != fold, one.fold)):
            reason = _find_seen_image(source, training, store, manifest, fold)
            if reason is None:
                chosen.append(_take_model(config, source, training, fold))
                break
            reasons.append(reason)
        else:
            raise DataError(
                f"Fold {fold} must start from a model that has not seen its test images, but "
                f"{reasons[0]}; name another `--init`."
            )
    return chosen


def load_fitting_weights(run: Run, fold: int) -> "Mapping[str, Tensor] | None":
    """Return the initial weights of a fold that fit the network; None without `train.init`.

    Raises:
        DataError: if the run has lost its copy of the model.
        CheckpointError: if the copy is damaged.
    """
    from mtil.run.checkpoint import model_from_bytes

    if run.config.train.init is None:
        return None
    name = names.initial_model_name(fold)
    data = run.read_initial_model(fold)
    return _select_fitting(run.config, model_from_bytes(data, f"{run.uri}/{name}").weights)


def _list_candidates(location: str) -> tuple[Run, list[Train]]:
    """Return the run at a location, or around a model file, and the trainings to choose from."""
    file = locate_file(location)
    if file is None:
        run = Run.open(location)
        last = run.last_round()
        return run, [Train(last, fold) for fold in run.find_trained_folds()[last]]
    folder, name = file
    uri = folder.uri
    for _ in range(4):  # a model file lies three folders below its run, of an inner model four
        uri, _ = split_uri(uri)
        store = open_store(uri)
        if not store.exists(names.RUN):
            continue
        run = Run.open(uri)
        relative = f"{path_within(folder, run.store)}/{name}"
        training = names.parse_training(relative)
        if training is not None and relative == run.model_file(training)[0]:
            return run, [training]
    raise DataError(
        f"`--init` must name a run or a model file inside a run, but {location} is neither; only "
        "the run tells which images the model has seen."
    )


def _find_seen_image(
    source: Run, training: Train, store: Store, manifest: Manifest, fold: int
) -> str | None:
    """Return why a model is refused for a fold: a test image seen in training. None if allowed."""
    # Imported late: the comparison needs SciPy, and the coordinator only schedules.
    from mtil.data.overlap import find_shared_images, list_images

    model = f"the model of fold {training.fold} in {source.uri}"
    if source.fingerprint == manifest.fingerprint:
        return None if training.fold == fold else f"{model} was trained on the same data set"
    source_store = open_store(source.data_uri)
    seen = list_images(source_store, source.manifest(), outside=training.fold)
    tested = {name for name, own in list_images(store, manifest).items() if own == fold}
    shared = find_shared_images((source_store, source.manifest(), seen), (store, manifest, tested))
    if not shared:
        return None
    one, other = shared[0]
    return f"{model} has seen {len(shared)} of them, such as {other!r} as {one!r}"


def _take_model(config: Config, source: Run, training: Train, fold: int) -> InitialModel:
    from mtil.run.checkpoint import model_from_bytes

    name, data = source.model_file(training)
    if not _select_fitting(config, model_from_bytes(data, f"{source.uri}/{name}").weights):
        raise ConfigError(
            f"`train.init` must have weights that fit the network, but {source.uri}/{name} has "
            "none; choose the same `model.encoder.name`."
        )
    return InitialModel(names.initial_model_name(fold), data)


def _select_fitting(config: Config, weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Return the weights with a name and shape of the network; with `init_part`, the encoder's."""
    import torch

    from mtil.models import TwoTaskNetwork

    with torch.device("meta"):
        expected = TwoTaskNetwork(_without_weights(config).model).state_dict()
    return {
        name: value
        for name, value in weights.items()
        if name in expected
        and expected[name].shape == value.shape
        and (config.train.init_part == "all" or name.startswith("encoder."))
    }


def _without_weights(config: Config) -> Config:
    """Return the configuration without pretrained weights: only shapes are needed."""
    from mtil.config import config_from_dict

    values: dict[str, Any] = {"model": {"encoder": {"pretrained": False}}}
    return config_from_dict(values, config)
