"""The Optuna study of a search: storage, sampler, early stopping and results. No Ray."""

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

from mtil.documents import MIB, Document, shorten_text
from mtil.errors import ConfigError, DataError, MtilError, StorageError
from tune.record import SamplerKind, Search, StoppingRule
from tune.space import KeyValue

CAUSE_ATTRIBUTE, STOPPED_ATTRIBUTE, FIGURES_ATTRIBUTE, SECONDS_ATTRIBUTE = (
    "cause",
    "stopped_after",
    "figures",
    "seconds",
)
"""Names of a trial's user attributes."""

_STARTUP_TRIALS = {1: 10, 2: 5}
"""Number of random trials before TPE, by number of goals."""
_CANDIDATES = {1: 24, 2: 100}
"""Number of points among which TPE chooses, by number of goals; two goals need more points."""
_POPULATION = 20
"""Trials in a generation of NSGA-II."""
_SECRET_KEYS = {"password", "passwd", "sslpassword"}
_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "stopped early",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class TrialRecord:
    """A trial as recorded in the study."""

    number: int
    state: str
    values: list[float] | None
    point: dict[str, KeyValue]
    cause: str | None
    stopped_after: int | None
    """Epochs after which the rule stopped the trial; None if not stopped."""
    figures: list[dict[str, float]]
    """Figures of the trainings, fold by fold, on the inner validation rows."""
    seconds: float | None


_TRIALS: TypeAdapter[TrialRecord] = TypeAdapter(TrialRecord)
_MAX_JOURNAL_BYTES = 256 * MIB


def resolve_storage(where: str) -> str:
    """Return the `--storage` value in a form valid in any folder and process.

    Raises:
        ConfigError: if the value holds a password, or names a storage in memory.
    """
    if "://" not in where:
        return str(Path(where).absolute())
    try:
        url = make_url(where)
    except (SQLAlchemyError, ValueError):
        # The value is not shown, as it may hold a password.
        raise ConfigError(
            "`--storage` must be a file or the URL of a database, such as sqlite:///FILE or "
            "postgresql://USER@HOST:5432/NAME, but is neither."
        ) from None
    if url.password is not None or _SECRET_KEYS & url.query.keys():
        raise ConfigError(
            "`--storage` must hold no password, since the search stores and shows the URL. Use the "
            "database's environment variable or file for passwords, such as PGPASSWORD, ~/.pgpass "
            "or ?read_default_file=FILE."
        )
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError(
                f"`--storage` must outlive the command, but {where} is in memory. Name a file."
            )
        if not url.database.startswith("file:"):
            url = url.set(database=str(Path(url.database).absolute()))
    return url.render_as_string()


def open_storage(where: str) -> BaseStorage:
    """Open a journal file, or the storage of a URL such as `sqlite:///FILE`.

    Raises:
        StorageError: if the storage cannot be opened.
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
        with _refuse_damage(where):
            return JournalStorage(JournalFileBackend(str(path)))
    except OSError as error:
        raise StorageError(
            f"The study's journal {where} cannot be opened: {error.strerror}."
        ) from None


def repair_journal(where: str) -> None:
    """Cut off an unfinished last line of a journal, left by a driver whose machine died.

    Only for the driver of a search, before opening the storage. Readers skip unfinished lines.
    """
    journal = Path(where)
    if "://" in where or not journal.exists():
        return
    lock = JournalFileSymlinkLock(where)
    lock.acquire()
    try:
        with journal.open("rb+") as file:
            text = file.read()
            # The next record would otherwise continue the unfinished line.
            file.truncate(text.rfind(b"\n") + 1)
    finally:
        lock.release()


def load_study(search: Search) -> Study:
    """Return the study of a search.

    Raises:
        DataError: if the study does not exist yet.
    """
    study = find_study(search)
    if study is None:
        raise DataError(f"The search {search.uri} has no trial yet. Run `mtil-tune run`.")
    return study


def find_study(search: Search) -> Study | None:
    """Return the study of a search, or None before the first `mtil-tune run`.

    Raises:
        StorageError: if the storage is damaged, or holds a study of a different program.
    """
    # Optuna would create a missing journal.
    if "://" not in search.storage and not Path(search.storage).exists():
        return None
    storage = open_storage(search.storage)
    with _refuse_damage(search.storage):
        names = [summary.study_name for summary in storage.get_all_studies()]
        if search.asked.study not in names:
            return None
        study = optuna.load_study(study_name=search.asked.study, storage=storage)
        _check_trials(search, study)
    return study


@contextmanager
def _refuse_damage(where: str) -> Iterator[None]:
    """Convert errors of a damaged study into a StorageError of one sentence."""
    try:
        yield
    # Optuna does not validate stored data. Damage surfaces as any of the errors below, wherever
    # a value is used first.
    except (
        ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError,
        SQLAlchemyError, TypeError, ValueError,
    ) as error:  # fmt: skip
        if isinstance(error, MtilError):
            raise
        reason = shorten_text(" ".join(str(error).split())) or type(error).__name__
        raise StorageError(
            f"The study's storage {where} holds no valid Optuna study ({reason}). Restore the "
            "storage, or start a new search."
        ) from None


def _check_journal(path: Path) -> None:
    """Check the size and every complete line of a journal.

    A last line without an end is still being written or was cut off. Readers skip the line.

    Raises:
        StorageError: if the file is too large, or a line is damaged; the message names the line.
    """
    # Optuna's own parser has no bounds on size and depth.
    document = Document(
        f"The study's journal {path}",
        "restore it, or start a new search",
        StorageError,
        max_bytes=_MAX_JOURNAL_BYTES,
        finite=False,
    )
    if not path.is_file():
        document.refuse("must be a regular file, but is not")
    document.check_size(path.stat().st_size)
    text = path.read_bytes()
    document.lines(text[: text.rfind(b"\n") + 1])


def _check_trials(search: Search, study: Study) -> None:
    """Raise ValueError for trials not written by mtil."""
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
            # Raises if the distribution cannot hold the value.
            trial.distributions[name].to_internal_repr(value)
        _TRIALS.validate_json(json.dumps(asdict(to_record(trial))), strict=True)


def make_sampler(kind: SamplerKind, seed: int, number: int, num_goals: int = 1) -> BaseSampler:
    """Return the sampler of a trial, seeded by search seed and trial number.

    Args:
        kind: `tpe`, `nsga2` or `random`.
        seed: `--search-seed` of the search.
        number: number of the trial, from 0.
        num_goals: number of goals, 1 or 2.
    """
    # One sampler per trial: suggestions then depend only on the study, and an interrupted search
    # continues as if never interrupted.
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    trial_seed = int.from_bytes(digest[:4], "big")
    with suppress_library_warnings():
        if kind == "random":
            return RandomSampler(seed=trial_seed)
        if kind == "nsga2":
            return NSGAIISampler(seed=trial_seed, population_size=_POPULATION)
        return TPESampler(
            seed=trial_seed,
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=_STARTUP_TRIALS[num_goals],
            n_ei_candidates=_CANDIDATES[num_goals],
        )


def make_pruner(rule: StoppingRule) -> BasePruner:
    """Return the Optuna pruner of a rule; to be asked only after the epochs of the rule."""
    if rule.kind == "median":
        return MedianPruner(n_startup_trials=5)
    if rule.kind == "halving":
        return SuccessiveHalvingPruner(min_resource=rule.first, reduction_factor=rule.factor)
    return NopPruner()


class EarlyStopper:
    """Actor to write epochs of trials into the study and to decide on early stopping."""

    def __init__(self, storage: str, study: str, rule: StoppingRule) -> None:
        self._rule = rule
        self._study = optuna.load_study(
            study_name=study,
            storage=open_storage(storage),
            pruner=make_pruner(rule),
        )

    def record(self, number: int, epoch: int, value: float) -> bool:
        """Record the value of a trial after `epoch` epochs; return whether the trial goes on.

        A restarted training may report all epochs again. A repeated report records nothing, and
        returns False if the trial has been stopped, else True.
        """
        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished() or STOPPED_ATTRIBUTE in frozen.user_attrs:
            return False
        if epoch in frozen.intermediate_values:
            return True
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        trial.report(value, epoch)
        if self._rule.is_checked_after(epoch) and trial.should_prune():
            trial.set_user_attr(STOPPED_ATTRIBUTE, epoch)
            return False
        return True

    def has_stopped(self, number: int) -> bool:
        """Return whether the rule has stopped a trial."""
        return STOPPED_ATTRIBUTE in self._study.get_trials(deepcopy=False)[number].user_attrs


@contextmanager
def suppress_library_warnings() -> Iterator[None]:
    """Suppress library warnings without use for the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # PED-ANOVA assumes low values to be good, which `negate_goal` takes care of.
        warnings.filterwarnings("ignore", "PedAnovaImportanceEvaluator computes")
        # `mtil-tune show` prints a hint for shares with few trials.
        warnings.filterwarnings("ignore", "Some regimes for parameter")
        # Ray Tune warns where the search space is slow to evaluate, as on a slow machine.
        warnings.filterwarnings("ignore", "Define-by-run function passed")
        yield


def to_record(trial: FrozenTrial) -> TrialRecord:
    """Convert an Optuna trial."""
    attributes = trial.user_attrs
    completed = trial.state == TrialState.COMPLETE
    return TrialRecord(
        number=trial.number,
        state=_STATES[trial.state],
        values=list(trial.values) if completed else None,
        point=dict(trial.params),
        cause=attributes.get(CAUSE_ATTRIBUTE),
        stopped_after=attributes.get(STOPPED_ATTRIBUTE),
        figures=attributes.get(FIGURES_ATTRIBUTE, []),
        seconds=attributes.get(SECONDS_ATTRIBUTE),
    )


def list_trials(study: Study) -> list[TrialRecord]:
    """Return all trials, ordered by number."""
    return [to_record(trial) for trial in study.get_trials(deepcopy=False)]


def count_trials(study: Study) -> dict[str, int]:
    """Return the number of trials by state."""
    num_by_state = dict.fromkeys(_STATES.values(), 0)
    for trial in study.get_trials(deepcopy=False):
        num_by_state[_STATES[trial.state]] += 1
    return num_by_state


def count_ended(counts: Mapping[str, int]) -> int:
    """Return the number of completed or early stopped trials, as counted by `--num-trials`."""
    return counts["completed"] + counts["stopped early"]


def select_best(study: Study, number: int | None = None) -> list[TrialRecord]:
    """Return the completed trials, best first, each point once. With two goals, the Pareto front.

    Args:
        study: the study.
        number: maximum number of trials; by default all.

    Raises:
        DataError: if no trial is completed.
    """
    has_two_goals = len(study.directions) == 2
    completed = (
        study.best_trials if has_two_goals else study.get_trials(states=(TrialState.COMPLETE,))
    )
    if not completed:
        raise DataError("The search has no completed trial yet. Continue with `mtil-tune run`.")
    ordered = sorted(completed, key=lambda trial: (-cast(float, trial.values[0]), trial.number))
    points: dict[tuple[Any, ...], TrialRecord] = {}
    for trial in ordered:
        points.setdefault(tuple(sorted(trial.params.items())), to_record(trial))
    return list(points.values())[:number]


def compute_importances(study: Study, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the importance of each key for each goal, as shares from PED-ANOVA.

    Goals are left out if the trials are too few, or all have the same value.
    """
    # Inside the function: the module imports scikit-learn where installed.
    from optuna.importance import get_param_importances

    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    by_goal = {}
    for index, name in enumerate(names):
        if len({trial.values[index] for trial in completed}) < 2:
            continue
        with suppress_library_warnings():
            shares: Mapping[str, float] = get_param_importances(study, target=negate_goal(index))
        by_goal[name] = {key: float(share) for key, share in shares.items()}
    return by_goal


def negate_goal(goal: int) -> Callable[[FrozenTrial], float]:
    """Return a function from a trial to the negated goal, since Optuna's importances minimise."""
    return lambda trial: -float(trial.values[goal])
