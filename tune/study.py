"""The Optuna study of a search: where it is kept, who samples, and what it says. No Ray."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock, JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from mtil.documents import MIB, Document, shortened
from mtil.errors import ConfigError, DataError, MtilError, StorageError
from tune.record import Rule, Sampler, Search
from tune.space import Value

CAUSE, STOPPED, FIGURES, SECONDS = "cause", "stopped_after", "figures", "seconds"
"""What a trial's user attributes are called."""

_STARTUP_TRIALS = {1: 10, 2: 5}
"""Trials that are drawn at random before TPE learns, by the number of goals."""
_CANDIDATES = {1: 24, 2: 100}
"""Of so many points TPE takes the most promising one; two goals need a finer choice."""
_POPULATION = 20
_SECRETS = {"password", "passwd", "sslpassword"}
_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Told:
    """What the study knows of a trial."""

    number: int
    state: str
    values: list[float] | None
    point: dict[str, Value]
    cause: str | None
    stopped_after: int | None
    """Epochs after which the rule stopped it."""
    figures: list[dict[str, float]]
    """Of its trainings, fold by fold, on the inner validation rows."""
    seconds: float | None


_TOLD: TypeAdapter[Told] = TypeAdapter(Told)
_MAX_JOURNAL_BYTES = 256 * MIB


def storage_of(where: str) -> str:
    """Return what `--storage` names so that it means the same from any folder and process.

    Raises:
        ConfigError: if it holds a password, or names what ends with the process.
    """
    if "://" not in where:
        return str(Path(where).absolute())
    try:
        url = make_url(where)
    except (SQLAlchemyError, ValueError):
        raise ConfigError(
            "`--storage` must be a file or a database's URL, such as sqlite:///FILE or "
            "postgresql://USER@HOST:5432/NAME, but got neither."
        ) from None
    if url.password is not None or _SECRETS & url.query.keys():
        raise ConfigError(
            "`--storage` must hold no password, as it is kept with the search and shown, but got "
            "one; leave it to the database's own environment variable or file, such as PGPASSWORD, "
            "~/.pgpass or ?read_default_file=FILE."
        )
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError(
                f"`--storage` must outlive the command, but got {where}; name a file."
            )
        if not url.database.startswith("file:"):
            url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string()


def open_storage(where: str) -> BaseStorage:
    """Open a journal file, or the storage of a URL such as `sqlite:///FILE`.

    Raises:
        StorageError: if that cannot be.
    """
    if "://" in where:
        try:
            return RDBStorage(where)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise StorageError(f"The study's storage {where} cannot be opened: {reason}.") from None
    try:
        path = Path(where)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _check_journal(path)
        with _undamaged(where):
            return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise StorageError(
            f"The study's journal {where} cannot be opened: {error.strerror}."
        ) from None


def mend(where: str) -> None:
    """Cut off the line that a writer left unfinished when its machine died, if there is one.

    Only for the one driver of a search, before it opens its storage: others just read past it.
    """
    journal = Path(where)
    if "://" in where or not journal.exists():
        return
    lock = JournalFileSymlinkLock(where)
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


def load(search: Search) -> Study:
    """Return the study of a search.

    Raises:
        DataError: if it has not begun.
    """
    study = find(search)
    if study is None:
        raise DataError(f"The search {search.uri} has no trial yet; run `mtil-tune run`.")
    return study


def find(search: Search) -> Study | None:
    """Return the study of a search; None if it has not begun.

    Raises:
        StorageError: if its storage is damaged, or holds another program's study.
    """
    if "://" not in search.storage and not Path(search.storage).exists():
        return None
    storage = open_storage(search.storage)
    with _undamaged(search.storage):
        names = [summary.study_name for summary in storage.get_all_studies()]
        if search.asked.study not in names:
            return None
        study = optuna.load_study(study_name=search.asked.study, storage=storage)
        _check_trials(search, study)
    return study


@contextmanager
def _undamaged(where: str) -> Iterator[None]:
    """Make one sentence of what Optuna raises when it reads a study that it has not written."""
    try:
        yield
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
        SQLAlchemyError, TypeError, ValueError,
    ) as error:  # fmt: skip
        if isinstance(error, MtilError):
            raise
        reason = shortened(" ".join(str(error).split())) or type(error).__name__
        raise StorageError(
            f"The study's storage {where} must hold a study as Optuna writes it, but does not "
            f"({reason}); restore it, or begin another search."
        ) from None


def _check_journal(path: Path) -> None:
    """Read each line of a journal within bounds; Optuna's own parser has none.

    A last line without an end is being written, or was cut off: readers go past it.

    Raises:
        StorageError: naming the first line that is damaged.
    """
    document = Document(
        f"The study's journal {path}",
        "restore it, or begin another search",
        StorageError,
        max_bytes=_MAX_JOURNAL_BYTES,
        finite=False,
    )
    if not path.is_file():
        document.refuse("must be a regular file, but is none")
    document.check_size(path.stat().st_size)
    text = path.read_bytes()
    document.lines(text[: text.rfind(b"\n") + 1])


def _check_trials(search: Search, study: Study) -> None:
    """Refuse trials whose values are not those that this program writes."""
    goals = len(search.objective.goals)
    if len(study.directions) != goals:
        raise ValueError(f"it has {len(study.directions)} goals instead of {goals}")
    for number, trial in enumerate(study.get_trials(deepcopy=False)):
        if trial.number != number:
            raise ValueError(f"trial {number} has the number {trial.number}")
        values = trial.values if trial.state == TrialState.COMPLETE else [0.0] * goals
        if values is None or len(values) != goals or not all(map(math.isfinite, values)):
            raise ValueError(f"the values of trial {number} are wrong")
        if not all(isinstance(value, bool | int | float | str) for value in trial.params.values()):
            raise ValueError(f"the parameters of trial {number} are wrong")
        for name, value in trial.params.items():
            trial.distributions[name].to_internal_repr(value)  # raises for what it cannot hold
        _TOLD.validate_json(json.dumps(asdict(told(trial))), strict=True)


def make_sampler(kind: Sampler, seed: int, number: int, num_goals: int = 1) -> BaseSampler:
    """Return the sampler of the trial of a number.

    Each trial has one of its own, seeded by the number: what it suggests follows from the study
    alone, so that a search that was interrupted goes on as if it had not been.
    """
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    own = int.from_bytes(digest[:4], "big")
    with quiet():
        if kind == "random":
            return RandomSampler(seed=own)
        if kind == "nsga2":
            return NSGAIISampler(seed=own, population_size=_POPULATION)
        return TPESampler(
            seed=own,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP_TRIALS[num_goals],
            n_ei_candidates=_CANDIDATES[num_goals],
        )


def make_pruner(rule: Rule) -> BasePruner:
    """Return Optuna's form of a rule, to be asked after the rule's epochs only."""
    if rule.kind == "median":
        return MedianPruner(n_startup_trials=5)
    if rule.kind == "halving":
        return SuccessiveHalvingPruner(min_resource=rule.first, reduction_factor=rule.factor)
    return NopPruner()


class Judge:
    """Writes the epochs of trials into the study, and says which trial is to end."""

    def __init__(self, storage: str, study: str, rule: Rule) -> None:
        self._rule = rule
        self._study = optuna.load_study(
            study_name=study,
            storage=open_storage(storage),
            pruner=make_pruner(rule),
        )

    def hear(self, number: int, epoch: int, value: float) -> bool:
        """Note what a trial is worth after so many epochs; say whether it goes on.

        What has been heard before gets the same answer.
        """
        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished() or STOPPED in frozen.user_attrs:
            return False
        if epoch in frozen.intermediate_values:
            return True
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        trial.report(value, epoch)
        if self._rule.asks_after(epoch) and trial.should_prune():
            trial.set_user_attr(STOPPED, epoch)
            return False
        return True

    def has_stopped(self, number: int) -> bool:
        """Say whether a trial was told to end."""
        return STOPPED in self._study.get_trials(deepcopy=False)[number].user_attrs


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the libraries say of themselves, and of what `worse` is for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
        warnings.filterwarnings("ignore", "Some regimes for parameter")  # `show` says it
        warnings.filterwarnings("ignore", "Define-by-run function passed")  # a slow machine
        yield


def told(trial: FrozenTrial) -> Told:
    """Return what the study knows of a trial."""
    attributes = trial.user_attrs
    completed = trial.state == TrialState.COMPLETE
    return Told(
        number=trial.number,
        state=_STATES[trial.state],
        values=list(trial.values) if completed else None,
        point=dict(trial.params),
        cause=attributes.get(CAUSE),
        stopped_after=attributes.get(STOPPED),
        figures=attributes.get(FIGURES, []),
        seconds=attributes.get(SECONDS),
    )


def trials(study: Study) -> list[Told]:
    """Return all trials, in their order."""
    return [told(trial) for trial in study.get_trials(deepcopy=False)]


def counts(study: Study) -> dict[str, int]:
    """Return how many trials are in each state."""
    found = dict.fromkeys(_STATES.values(), 0)
    for trial in study.get_trials(deepcopy=False):
        found[_STATES[trial.state]] += 1
    return found


def ended(counts: Mapping[str, int]) -> int:
    """Return how many trials came to an end of their own, as `--num-trials` counts them."""
    return counts["completed"] + counts["stopped early"]


def best(study: Study, number: int | None = None) -> list[Told]:
    """Return the completed trials, the best first, each point once; with two goals the front.

    Args:
        study: the study.
        number: how many at most.

    Raises:
        DataError: if none is completed.
    """
    two = len(study.directions) == 2
    found = study.best_trials if two else study.get_trials(states=(TrialState.COMPLETE,))
    if not found:
        raise DataError("A search must have a completed trial for this, but has none.")
    ordered = sorted(found, key=lambda trial: (-cast(float, trial.values[0]), trial.number))
    points: dict[tuple[Any, ...], Told] = {}
    for trial in ordered:
        points.setdefault(tuple(sorted(trial.params.items())), told(trial))
    return list(points.values())[:number]


def importances(study: Study, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return how much each key has mattered for each goal, as shares; by Optuna's PED-ANOVA.

    A goal for which the trials are too few or all alike is left out.
    """
    from optuna.importance import get_param_importances  # scikit-learn, where it is installed

    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = {}
    for index, name in enumerate(names):
        if len({trial.values[index] for trial in completed}) < 2:
            continue
        with quiet():
            shares: Mapping[str, float] = get_param_importances(study, target=worse(index))
        found[name] = {key: float(share) for key, share in shares.items()}
    return found


def worse(goal: int) -> Callable[[FrozenTrial], float]:
    """Return what Optuna's importances want of a trial: a number that is low where it is good."""
    return lambda trial: -float(trial.values[goal])
