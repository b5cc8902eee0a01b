"""Request to train folds, checked before anything starts or is written. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtil.circle.initial import InitialModel, choose_initial_models
from mtil.circle.inputs import check_folds, check_plan
from mtil.circle.ledger import Ledger
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import parse_folds
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import ConfigError, DataError
from mtil.run.folder import Run, choose_manifest, open_existing_run
from mtil.run.plan import CirclePlan, Train
from mtil.storage import open_store


@dataclass(frozen=True, kw_only=True)
class TrainingRequest:
    """Checked request to train folds in an existing or new run."""

    run_uri: str
    data_uri: str
    config: Config
    manifest: Manifest
    """Manifest of the data set version used by the run."""
    folds: tuple[int, ...]
    initial: tuple[InitialModel, ...] = ()
    """Models that the run's trainings start from and that the run does not yet have."""

    @property
    def plan(self) -> CirclePlan:
        """Plan of a circle over the folds."""
        return CirclePlan.of(self.config.circle, self.folds)

    def create(self) -> Run:
        """Create the run, or open the existing run."""
        run = Run.create(self.run_uri, self.config, self.data_uri, self.manifest.fingerprint)
        for model in self.initial:
            # If two processes start the run at the same time, the first file counts.
            run.store.create(model.name, model.data)
        return run


def request_trainings(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    *,
    data_version: int | None = None,
) -> TrainingRequest:
    """Check that every fold can be trained.

    Args:
        data_uri: a prepared data set.
        run_uri: an existing or new run.
        config: the run's configuration.
        folds: folds to hold out, one training per fold; or text such as `0,2` or `all`.
        data_version: version of the data set. By default the run's, or for a new run the newest.

    Raises:
        UserError: if data set, run, folds and configuration do not fit together.
    """
    request = _check_request(data_uri, run_uri, config, folds, data_version)
    check_folds(request.folds, config, request.manifest)
    run = open_existing_run(run_uri, config, request.data_uri, request.manifest.fingerprint)
    if run is not None:
        # A damaged result is refused here, before Ray starts.
        for fold in request.folds:
            run.result(Train(0, fold))
    return _choose_initial(request, run)


def request_circle(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    *,
    data_version: int | None = None,
) -> TrainingRequest:
    """Check that all rounds of a circle can be trained. See `request_trainings`."""
    if config.loss.teacher:
        # A teacher has seen the parts that inner models are trained without.
        raise ConfigError(
            f"A circle cannot learn from a teacher, but `loss.teacher` is {config.loss.teacher:g}; "
            "set it to 0, or use `mtil distil`."
        )
    request = _check_request(data_uri, run_uri, config, folds, data_version)
    check_plan(request.plan, config, request.manifest)
    run = open_existing_run(run_uri, config, request.data_uri, request.manifest.fingerprint)
    if run is not None:
        # A damaged ledger is refused here, before Ray starts.
        Ledger.open(run.store)
    return _choose_initial(request, run)


def _choose_initial(request: TrainingRequest, run: Run | None) -> TrainingRequest:
    initial = choose_initial_models(
        request.config, open_store(request.data_uri), request.manifest, request.folds, run
    )
    return replace(request, initial=tuple(initial))


def _check_request(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    data_version: int | None,
) -> TrainingRequest:
    store = open_store(data_uri)
    manifest = choose_manifest(run_uri, store, data_version)
    fold_numbers = parse_folds(folds, manifest.num_folds) if isinstance(folds, str) else folds
    if HOLDOUT in fold_numbers:
        raise DataError(
            "Cannot train on the holdout: its images are for the final test. Name a fold."
        )
    return TrainingRequest(
        run_uri=run_uri,
        data_uri=store.uri,
        config=config,
        manifest=manifest,
        folds=tuple(fold_numbers),
    )
