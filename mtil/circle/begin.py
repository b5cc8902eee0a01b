"""What a run is asked to train, checked once, before anything starts or is written. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass

from mtil.circle.inputs import check_folds, check_plan
from mtil.circle.ledger import Ledger
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import parse_folds
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import DataError
from mtil.run.folder import Run, manifest_for, take_up
from mtil.run.plan import Plan, Train
from mtil.storage import open_store


@dataclass(frozen=True, kw_only=True)
class Request:
    """Folds to train, in a run that is there or can be made."""

    run_uri: str
    data_uri: str
    config: Config
    manifest: Manifest
    """The version of the data set that the run has, or will have."""
    folds: tuple[int, ...]

    @property
    def plan(self) -> Plan:
        """The rounds of a circle of these folds."""
        return Plan.of(self.config.circle, self.folds)

    def create(self) -> Run:
        """Make the run, or open the one that is there."""
        return Run.create(self.run_uri, self.config, self.data_uri, self.manifest.fingerprint)


def request_trainings(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    *,
    data_version: int | None = None,
) -> Request:
    """Check that folds can be trained, each once.

    Args:
        data_uri: a prepared data set.
        run_uri: where the run is, or will be made.
        config: the run's configuration.
        folds: which folds to hold out, one at a time; or text such as `0,2` or `all`.
        data_version: of the data set; the run's, or for a new run the newest, if none is named.

    Raises:
        UserError: if data set, run, folds and configuration do not fit each other.
    """
    made = _request(data_uri, run_uri, config, folds, data_version)
    check_folds(made.folds, config, made.manifest)
    begun = take_up(run_uri, config, made.data_uri, made.manifest.fingerprint)
    if begun is not None:
        for fold in made.folds:
            begun.result(Train(0, fold))  # refused if it is damaged
    return made


def request_circle(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    *,
    data_version: int | None = None,
) -> Request:
    """Check that a circle's rounds can be trained; arguments and errors of `request_trainings`."""
    made = _request(data_uri, run_uri, config, folds, data_version)
    check_plan(made.plan, config, made.manifest)
    begun = take_up(run_uri, config, made.data_uri, made.manifest.fingerprint)
    if begun is not None:
        Ledger.open(begun.store)  # refused if it is damaged
    return made


def _request(
    data_uri: str,
    run_uri: str,
    config: Config,
    folds: Sequence[int] | str,
    data_version: int | None,
) -> Request:
    store = open_store(data_uri)
    manifest = manifest_for(run_uri, store, data_version)
    chosen = parse_folds(folds, manifest.num_folds) if isinstance(folds, str) else folds
    if HOLDOUT in chosen:
        raise DataError("A holdout is for a final test, not to be trained; name a fold.")
    return Request(
        run_uri=run_uri,
        data_uri=store.uri,
        config=config,
        manifest=manifest,
        folds=tuple(chosen),
    )
