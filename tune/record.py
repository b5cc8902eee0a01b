"""A search's folder: what it was asked to do, and the configurations that follow from it. No Ray.

search.json        data set, whole configuration, budget of a trial, space, objective, rule
study.journal      the Optuna study, unless it is kept in another storage: the one truth
trials/0007/       the run of trial 7, with the history of each of its trainings
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
from mtil.config import STRICT, Config, from_dict, with_overrides
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select
from mtil.data.dataset.shards import read
from mtil.documents import Document, Sha256, shown
from mtil.errors import ConfigError, DataError, NotFoundError
from mtil.run.folder import Run
from mtil.storage import LocalStore, Store, open_store, split_uri
from tune import space as spaces
from tune.objective import Objective, parse
from tune.space import OF_ROUNDS, Space, Value

FILE_NAME = "search.json"
_JOURNAL = "study.journal"

Sampler = Literal["tpe", "nsga2", "random"]
Stopping = Literal["none", "median", "halving"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Rule:
    """When a trial may be stopped early: by a rule over the others' figures at the same epoch."""

    kind: Stopping = "none"
    """`median` stops what is below the median of the completed trials, `halving` what is not
    among the best share of those that came as far."""
    first: int = 1
    """The first epoch after which it is asked."""
    factor: int = 2
    """It is asked again after so many times as many epochs; with `halving`, one of so many goes
    on."""

    def asks_after(self, epoch: int) -> bool:
        """Say whether a trial is judged after so many epochs."""
        if self.kind == "none":
            return False
        check = self.first
        while check < epoch:
            check *= self.factor
        return check == epoch


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Budget:
    """What each trial is given, the same for all."""

    folds: Annotated[list[int], Field(min_length=1)] = field(default_factory=lambda: [0])
    num_epochs: int | None = None
    """Epochs of each training; by default those of the configuration."""
    image_size: int | None = None
    num_workers: int | None = None
    circle: bool = False
    """Whether a trial is a whole circle, or one training a fold."""

    def applied(self, config: Config) -> Config:
        """Return the configuration of a trial; the warm-up keeps its share of the epochs."""
        train: dict[str, Any] = {}
        if self.num_epochs is not None:
            share = self.num_epochs / config.train.num_epochs
            train = {
                "num_epochs": self.num_epochs,
                "warmup_epochs": config.train.warmup_epochs * share,
            }
        if self.num_workers is not None:
            train["num_workers"] = self.num_workers
        data = {} if self.image_size is None else {"image_size": self.image_size}
        return from_dict({"train": train, "data": data}, config)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Asked:
    """What a search is asked to do; the same search is never asked for something else."""

    data: str
    fingerprint: Sha256
    config: dict[str, Any]
    """The whole configuration, which the winner is trained with in the end."""
    budget: dict[str, Any]
    space: list[str]
    narrowing: dict[str, Any]
    objective: str
    sampler: Sampler
    seed: int
    rule: dict[str, Any]
    storage: str | None
    study: str
    version: str = __version__


class Search:
    """A search at a URI."""

    def __init__(self, store: Store, asked: Asked) -> None:
        self.store, self.asked = store, asked
        self.budget, self.rule = Budget(**asked.budget), Rule(**asked.rule)
        self.objective: Objective = parse(asked.objective)
        self._check()

    def _check(self) -> None:
        if len(self.objective.goals) == 2 and self.rule.kind != "none":
            raise ConfigError(
                "Trials can be stopped early by one goal only, but --objective has two; leave "
                "--stop-early away."
            )
        for name in OF_ROUNDS:
            if name in self.asked.space and not self.budget.circle:
                raise ConfigError(
                    f"`{name}` matters only where a trial is a whole circle; add --circle or leave "
                    "it out of --space."
                )
        if self.rule.first < 1 or self.rule.factor < 2:
            raise ConfigError(
                f"`--first-check` must be at least 1 and `--check-factor` at least 2, but got "
                f"{self.rule.first} and {self.rule.factor}."
            )

    @property
    def uri(self) -> str:
        """Where the search is."""
        return self.store.uri

    @cached_property
    def space(self) -> Space:
        """What is varied, around the configuration of a trial."""
        whole = from_dict(self.asked.config)
        return spaces.make(self.budget.applied(whole), self.asked.space, self.asked.narrowing)

    @property
    def storage(self) -> str:
        """Where the study is kept: a journal file, or the URL of an Optuna storage."""
        if self.asked.storage is not None:
            return self.asked.storage
        if not isinstance(self.store, LocalStore):
            raise ConfigError(
                f"A search in a bucket must keep its study elsewhere, but {self.uri} names no "
                "--storage; give a local file or the URL of a database."
            )
        return str(self.store.root / _JOURNAL)

    def config_of(self, point: Mapping[str, Value]) -> Config:
        """Return the configuration of the trial of a point, within the budget."""
        return with_overrides(self.space.base, spaces.overrides(point))

    def whole_config_of(self, point: Mapping[str, Value], base: Config | None = None) -> Config:
        """Return the whole configuration of a point, on the full schedule.

        Args:
            point: values by key; none for the default.
            base: another configuration to lay them over.
        """
        whole = base or from_dict(self.asked.config)
        around = spaces.make(whole, self.asked.space, self.asked.narrowing).base
        return with_overrides(around, spaces.overrides(point))

    def manifest(self) -> Manifest:
        """Read the version of the data set that is searched on.

        Raises:
            DataError: if it is not there any more.
        """
        found = manifests.find(open_store(self.asked.data), self.asked.fingerprint)
        if found is None:
            raise DataError(
                f"A search must stay with its data set, but {self.asked.data} has none with the "
                f"fingerprint {self.asked.fingerprint[:12]}…; begin another search."
            )
        return found

    def trial_uri(self, number: int) -> str:
        """Return where the run of a trial is."""
        return f"{self.uri}/trials/{number:04d}"

    def trial_run(self, number: int, point: Mapping[str, Value]) -> Run:
        """Make the run of a trial, or take it up."""
        return Run.create(
            self.trial_uri(number), self.config_of(point), self.asked.data, self.asked.fingerprint
        )

    def fresh_rows(self, folds: Sequence[int]) -> tuple[set[str], int]:
        """Return the test rows of folds that no trial was judged by, and the number of others.

        A fold's inner validation rows are test rows of the other folds.

        Raises:
            DataError: if there are none, or the data set is not as it was.
        """
        manifest, store = self.manifest(), open_store(self.asked.data)
        tests = [select(manifest, fold, "test") for fold in folds]
        normals = self.space.base.data.normals
        judged = [
            select(manifest, fold, "validation", normals=normals) for fold in self.budget.folds
        ]
        test: set[str] = set()
        seen: set[str] = set()
        for shard in manifest.shards:
            table = read(store, shard, ("sample_id", "fold", "part", "label"))
            ids = table.column("sample_id").to_numpy(zero_copy_only=False)
            test.update(*(ids[one.rows(table)] for one in tests))
            seen.update(*(ids[one.rows(table)] for one in judged))
        if test <= seen:
            raise DataError(
                "The winners must be compared on rows that the search has not judged by, but it "
                "has seen all test rows of the folds; name another --fold, or `holdout`."
            )
        return test - seen, len(test & seen)

    def keep(self) -> None:
        """Write what was asked, unless it is there; nothing is written before.

        Raises:
            ConfigError: if another search is there.
        """
        text = json.dumps(asdict(self.asked), indent=1) + "\n"
        if not self.store.create(FILE_NAME, text.encode()):
            self.plan(self.uri, self.asked)

    @classmethod
    def create(cls, uri: str, asked: Asked) -> "Search":
        """Make a search, or take up the one that is there if it was asked to do the same.

        Raises:
            ConfigError: if what is asked makes no sense, or another search is there.
        """
        search = cls.plan(uri, asked)
        search.keep()
        return search

    @classmethod
    def plan(cls, uri: str, asked: Asked) -> "Search":
        """Return the search that `create` would, but write nothing.

        Raises:
            ConfigError: if what is asked makes no sense, or another search is there.
        """
        store = open_store(uri)
        made = cls(store, asked)
        _ = made.space, made.storage  # raise what is wrong with them before anything is written
        if not store.exists(FILE_NAME):
            return made
        found = cls.open(uri)
        before, now = asdict(found.asked), asdict(asked)
        for key in before.keys() - {"version", "study"}:
            if before[key] != now[key]:
                raise ConfigError(
                    f"A search must go on as it began, but {found.uri} has `{_differing(key)}` "
                    f"{_brief(before[key], now[key])}; name another --run."
                )
        return found

    @classmethod
    def open(cls, uri: str) -> "Search":
        """Open the search at a URI.

        Raises:
            DataError: if there is none.
        """
        store = open_store(uri)
        document = Document(f"{store.uri}/{FILE_NAME}", "restore it, or name another search")
        try:
            asked = document.validate(_ASKED, document.object(document.read(store, FILE_NAME)))
        except NotFoundError:
            raise DataError(
                f"A search must have a {FILE_NAME}, but {store.uri} has none; "
                "begin one with `mtil-tune run`."
            ) from None
        document.validate(_BUDGETS, asked.budget)
        document.validate(_RULES, asked.rule)
        try:
            return cls(store, asked)
        except ConfigError as error:
            document.refuse(f"asks for what makes no sense: {str(error).rstrip('.')}")


_ASKED: TypeAdapter[Asked] = TypeAdapter(Asked)
_BUDGETS: TypeAdapter[Budget] = TypeAdapter(Budget)
_RULES: TypeAdapter[Rule] = TypeAdapter(Rule)


def study_name(uri: str) -> str:
    """Return what the study of a search is called, the same in every process."""
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return f"{split_uri(uri)[1]}-{digest}"


def _differing(key: str) -> str:
    return {
        "config": "--config",
        "rule": "--stop-early",
        "budget": "budget",
        "seed": "--search-seed",
    }.get(key, f"--{key}")


def _brief(before: Any, now: Any) -> str:
    """Say how two values differ, for a tree by its first key that does."""
    prefix = ""
    while isinstance(before, dict) and isinstance(now, dict):
        key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
        prefix += f"{key}."
        before, now = before.get(key), now.get(key)
    name = f"{prefix[:-1]} = " if prefix else ""
    return f"{name}{shown(before)} and {shown(now)} was asked for"
