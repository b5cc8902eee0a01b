"""Folder of a search: the request, and the configurations derived from the request. No Ray.

search.json        data set, whole configuration, budget of a trial, space, objective, rule
study.journal      the Optuna study, unless stored elsewhere; the only source of truth
trials/0007/       the run of trial 7, with the history of each training
confirm/           the trainings of `mtil-tune confirm`
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from mtil import __version__
from mtil.config import STRICT, Config, apply_overrides, config_from_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select_rows
from mtil.data.dataset.shards import read_shard
from mtil.documents import Document, Sha256, format_value
from mtil.errors import ConfigError, DataError, NotFoundError
from mtil.run.folder import Run
from mtil.storage import Store, open_store, split_uri
from tune import space as spaces
from tune.objective import SearchObjective, parse_objective
from tune.space import CIRCLE_SUBSPACES, KeyValue, SearchSpace

SEARCH_FILE = "search.json"
_JOURNAL = "study.journal"

SamplerKind = Literal["tpe", "nsga2", "random"]
StoppingKind = Literal["none", "median", "halving"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StoppingRule:
    """When to stop a trial early, by comparison of trials at equal epochs."""

    kind: StoppingKind = "none"
    """`median` stops trials below the median of completed trials. `halving` stops trials outside
    the best share of trials with as many epochs."""
    first: int = 1
    """Epochs before the first check."""
    factor: int = 2
    """Factor between the epochs of successive checks. `halving` keeps one trial in `factor`."""

    def is_checked_after(self, epoch: int) -> bool:
        """Return whether a trial is checked after `epoch` epochs."""
        if self.kind == "none":
            return False
        check = self.first
        while check < epoch:
            check *= self.factor
        return check == epoch


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrialBudget:
    """Resources of a trial, equal for all trials."""

    folds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [0])
    num_epochs: int | None = None
    """Epochs of each training; by default as in the configuration."""
    image_size: int | None = None
    num_workers: int | None = None
    circle: bool = False
    """Whether a trial is a whole circle; otherwise one training per fold."""

    def apply_to(self, config: Config) -> Config:
        """Return the configuration of a trial: the base configuration within the budget."""
        train: dict[str, Any] = {}
        if self.num_epochs is not None:
            # The warm-up remains an equal share of the epochs.
            ratio = self.num_epochs / config.train.num_epochs
            train = {
                "num_epochs": self.num_epochs,
                "warmup_epochs": config.train.warmup_epochs * ratio,
            }
        if self.num_workers is not None:
            train["num_workers"] = self.num_workers
        data = {} if self.image_size is None else {"image_size": self.image_size}
        return config_from_dict({"train": train, "data": data}, config)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SearchRequest:
    """The request of a search, fixed for the life of the search folder."""

    data: str
    fingerprint: Sha256
    config: dict[str, Any]
    """The whole configuration, before the budget; used to train the winner."""
    budget: dict[str, Any]
    space: list[str]
    narrowing: dict[str, Any]
    objective: str
    sampler: SamplerKind
    seed: int
    rule: dict[str, Any]
    storage: str | None
    study: str
    version: str = __version__


class Search:
    """A search in a folder or bucket prefix."""

    def __init__(self, store: Store, asked: SearchRequest) -> None:
        self.store, self.asked = store, asked
        self.budget, self.rule = TrialBudget(**asked.budget), StoppingRule(**asked.rule)
        self.objective: SearchObjective = parse_objective(asked.objective)
        self._check_request()

    def _check_request(self) -> None:
        # Optuna's pruners compare a single value per trial.
        if len(self.objective.goals) == 2 and self.rule.kind != "none":
            raise ConfigError(
                "Early stopping needs a single goal, but --objective has two. Remove --stop-early."
            )
        for name in CIRCLE_SUBSPACES:
            if name in self.asked.space and not self.budget.circle:
                raise ConfigError(
                    f"`{name}` has an effect only in a whole circle. Add --circle, or remove "
                    f"`{name}` from --space."
                )
        if self.rule.first < 1 or self.rule.factor < 2:
            raise ConfigError(
                f"`--first-check` must be at least 1 and `--check-factor` at least 2, but got "
                f"{self.rule.first} and {self.rule.factor}."
            )

    @property
    def uri(self) -> str:
        """Location of the search."""
        return self.store.uri

    @cached_property
    def space(self) -> SearchSpace:
        """Search space around the configuration of a trial."""
        whole = config_from_dict(self.asked.config)
        return spaces.make_space(
            self.budget.apply_to(whole), self.asked.space, self.asked.narrowing
        )

    @property
    def storage(self) -> str:
        """Location of the study: a journal file, or the URL of an Optuna storage."""
        if self.asked.storage is not None:
            return self.asked.storage
        # Optuna appends to a journal, and a bucket has no append.
        if self.store.local_folder is None:
            raise ConfigError(
                f"The search {self.uri} is in a bucket, which cannot hold the study. Name a local "
                "file or the URL of a database with --storage."
            )
        return str(self.store.local_folder / _JOURNAL)

    def trial_config(self, point: Mapping[str, KeyValue]) -> Config:
        """Return the configuration of a trial at a point, within the budget."""
        return apply_overrides(self.space.base, spaces.to_overrides(point))

    def full_config(self, point: Mapping[str, KeyValue], base: Config | None = None) -> Config:
        """Return the configuration of a point on the full schedule, without the budget.

        Args:
            point: values by key; empty for the default.
            base: configuration under the point; by default the requested configuration.
        """
        full_config = base or config_from_dict(self.asked.config)
        narrowed = spaces.make_space(full_config, self.asked.space, self.asked.narrowing).base
        return apply_overrides(narrowed, spaces.to_overrides(point))

    def manifest(self) -> Manifest:
        """Read the manifest of the searched data set version.

        Raises:
            DataError: if the data set no longer has the version.
        """
        manifest = manifests.find_manifest(open_store(self.asked.data), self.asked.fingerprint)
        if manifest is None:
            raise DataError(
                f"The data set {self.asked.data} has no version with the fingerprint "
                f"{self.asked.fingerprint[:12]}… of the search. Restore the version, or start a "
                "new search."
            )
        return manifest

    def trial_uri(self, number: int) -> str:
        """Return the location of a trial's run."""
        return f"{self.uri}/trials/{number:04d}"

    def open_trial_run(self, number: int, point: Mapping[str, KeyValue]) -> Run:
        """Create or open the run of a trial."""
        return Run.create(
            self.trial_uri(number),
            self.trial_config(point),
            self.asked.data,
            self.asked.fingerprint,
        )

    def find_fresh_rows(self, folds: Sequence[int]) -> tuple[set[str], int]:
        """Return test rows of folds on which no trial was validated.

        The inner validation rows of a fold are test rows of other folds.

        Returns:
            sample ids of the fresh rows, and the number of test rows left out.

        Raises:
            DataError: if no fresh row is left, or the data set has changed.
        """
        manifest, store = self.manifest(), open_store(self.asked.data)
        test_selections = [select_rows(manifest, fold, "test") for fold in folds]
        normals = self.space.base.data.normals
        validation_selections = [
            select_rows(manifest, fold, "validation", normals=normals) for fold in self.budget.folds
        ]
        test_ids: set[str] = set()
        validated_ids: set[str] = set()
        for shard in manifest.shards:
            table = read_shard(store, shard, ("sample_id", "fold", "part", "label"))
            ids = table.column("sample_id").to_numpy(zero_copy_only=False)
            test_ids.update(*(ids[selection.rows(table)] for selection in test_selections))
            validated_ids.update(
                *(ids[selection.rows(table)] for selection in validation_selections)
            )
        if test_ids <= validated_ids:
            raise DataError(
                "All test rows of these folds were validation rows of the search. No row is left "
                "to compare on. Name another --fold, or `holdout`."
            )
        return test_ids - validated_ids, len(test_ids & validated_ids)

    def keep(self) -> None:
        """Write `search.json`, unless present.

        Raises:
            ConfigError: if the request differs from the existing search.
        """
        text = json.dumps(asdict(self.asked), indent=1) + "\n"
        if not self.store.create(SEARCH_FILE, text.encode()):
            self.plan(self.uri, self.asked)

    @classmethod
    def plan(cls, uri: str, asked: SearchRequest) -> "Search":
        """Return a search, or the existing search with an equal request. Writes nothing.

        Raises:
            ConfigError: if the request is invalid, or differs from the existing search.
        """
        store = open_store(uri)
        planned = cls(store, asked)
        # Both properties check the request: errors must come before anything is written.
        _ = planned.space, planned.storage
        if not store.exists(SEARCH_FILE):
            return planned
        existing = cls.open(uri)
        old_request, new_request = asdict(existing.asked), asdict(asked)
        # `version` and `study` are not requested: a newer mtil may resume the search.
        for key in old_request.keys() - {"version", "study"}:
            if old_request[key] != new_request[key]:
                raise ConfigError(
                    f"A search cannot change its request: {existing.uri} has `{_flag_of(key)}` "
                    f"{_describe_change(old_request[key], new_request[key])}. Name another --run."
                )
        return existing

    @classmethod
    def open(cls, uri: str) -> "Search":
        """Open the search at a URI.

        Raises:
            DataError: if there is no search, or `search.json` is damaged.
        """
        store = open_store(uri)
        document = Document(f"{store.uri}/{SEARCH_FILE}", "restore it, or name another search")
        try:
            asked = document.validate(_ASKED, document.object(document.read(store, SEARCH_FILE)))
        except NotFoundError:
            raise DataError(
                f"{store.uri} is not a search: {SEARCH_FILE} is missing. Start a search with "
                "`mtil-tune run`."
            ) from None
        document.validate(_BUDGETS, asked.budget)
        document.validate(_RULES, asked.rule)
        try:
            return cls(store, asked)
        except ConfigError as error:
            document.refuse(f"holds an invalid request: {str(error).rstrip('.')}")


_ASKED: TypeAdapter[SearchRequest] = TypeAdapter(SearchRequest)
_BUDGETS: TypeAdapter[TrialBudget] = TypeAdapter(TrialBudget)
_RULES: TypeAdapter[StoppingRule] = TypeAdapter(StoppingRule)


def make_study_name(uri: str) -> str:
    """Return the name of a search's study, derived from the URI."""
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return f"{split_uri(uri)[1]}-{digest}"


def _flag_of(key: str) -> str:
    return {
        "config": "--config",
        "rule": "--stop-early",
        "budget": "budget",
        "seed": "--search-seed",
    }.get(key, f"--{key}")


def _describe_change(old: Any, new: Any) -> str:
    """Describe the difference of two values; of two trees, the first differing key."""
    prefix = ""
    while isinstance(old, dict) and isinstance(new, dict):
        key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
        prefix += f"{key}."
        old, new = old.get(key), new.get(key)
    name = f"{prefix[:-1]} = " if prefix else ""
    return f"{name}{format_value(old)}, but {format_value(new)} is requested"
