"""Driver of a search: Ray Tune runs the trials suggested by Optuna.

The study is the only source of truth. Tune's own records are discarded: after any death a new Tuner
resumes the trials listed as running in the study. Only two processes write the study: the searcher
in the driver, and the `EarlyStopper` actor on the driver's node, which adds epochs. Trials never
open the study, so a journal file on the driver's disk serves a whole cluster.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import optuna
import ray
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState
from ray import tune as ray_tune
from ray.tune.execution.class_cache import DEFAULT_ENV_VARS
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtil import errors
from mtil.config import Config
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import NORMAL, count_rows, select_rows
from mtil.distributed.runtime import cluster
from mtil.distributed.training import trainer
from mtil.errors import ConfigError, DataError, RunError, UserError
from mtil.process import supervisor
from mtil.process.memory import CPU_MALLOC_SETTINGS
from mtil.run.relay import GuardedListener
from tune import study as studies
from tune.record import Search
from tune.search import driver_lock
from tune.search.concurrency import count_dataset_copies, count_worker_threads, plan_concurrency
from tune.search.trial import (
    NUMBER_KEY,
    OUTCOME_KEY,
    TrialContext,
    TrialFunction,
    TrialOutcome,
    describe_cause,
    run_in_tune,
    run_trial,
)

SearchListener = Callable[[dict[str, Any]], None]

_MAX_LOSSES = 2
"""Restarts of a trial after the loss of a process or machine."""
_MAX_EARLY_FAILURES = 5
"""Failures after which a search without an ended trial stops."""
_MINIMAL_RESOURCES = {"memory": 1024.0}
"""Reservation of a trial with separate workers, in bytes. Tune requires a reservation."""

_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run_search(
    search: Search,
    num_trials: int,
    listen: SearchListener,
    *,
    max_concurrent: int | None = None,
    keep_models: bool = False,
    does: TrialFunction = run_trial,
) -> None:
    """Run trials until `num_trials` trials are completed or stopped early.

    Args:
        search: the search.
        num_trials: total number of trials, with the trials of earlier commands.
        listen: function called with `{"kind": "begun", …}` once, and with `{"kind": "trial", …}`
            after each trial.
        max_concurrent: maximum number of concurrent trials; by default limited by the cluster.
        keep_models: whether to keep the trials' models.
        does: function that runs a trial.

    Raises:
        UserError: if the data set or the resources do not suit the search.
        RunError: if another driver runs this search, or too many trials failed.
    """
    with driver_lock.hold_driver_lock(search.store):
        # Under the lock, before the storage is opened: no other process may write meanwhile.
        studies.repair_journal(search.storage)
        searcher = StudySearch(search, num_trials, GuardedListener(listen))
        if searcher.missing:
            _run_missing(search, searcher, max_concurrent, keep_models, does)
    searcher.raise_for_failures()


def _run_missing(
    search: Search,
    searcher: "StudySearch",
    max_concurrent: int | None,
    keep_models: bool,
    does: TrialFunction,
) -> None:
    config = search.space.base
    nodes, wanted = cluster.list_nodes(), min(max_concurrent or searcher.missing, searcher.missing)
    # A circle's trainings hold copies of the data set, which limits the number of trials.
    if search.budget.circle:
        resources: Any = ray.cluster_resources  # untyped
        store_bytes = resources()["object_store_memory"]
        wanted = min(wanted, count_dataset_copies(store_bytes, search.manifest()))
    concurrent, cpus = plan_concurrency(nodes, config, wanted)
    searcher.begin(concurrent)
    means = TrialContext(
        held=_hold_dataset(search) if does is run_trial else None,
        early_stopper=_start_early_stopper(search) if len(search.objective.goals) == 1 else None,
        cpus=cpus,
        num_threads=count_worker_threads(nodes, config, concurrent),
        keep_models=keep_models,
    )
    try:
        _run_tuner(search, searcher, concurrent, means, does)
    finally:
        if means.early_stopper is not None:
            # Tune keeps references to its trials, which would keep the actor alive.
            ray.kill(means.early_stopper)


def _run_tuner(
    search: Search,
    searcher: "StudySearch",
    concurrent: int,
    means: TrialContext,
    does: TrialFunction,
) -> None:
    config = search.space.base
    with _environment(config), tempfile.TemporaryDirectory(prefix="mtil-tune-") as scratch:
        supervisor.remove_at_end(Path(scratch))
        ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(run_in_tune, uri=search.uri, means=means, work=does),
                ray_tune.PlacementGroupFactory([_trial_resources(search, means.cpus)]),
            ),
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,  # the searcher decides when the search is finished
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray_tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_LOSSES),
                stop=UserErrorStopper(searcher),
                callbacks=[FailureCallback(searcher)],
            ),
        ).fit()


@contextmanager
def _environment(config: Config) -> Iterator[None]:
    """Set environment variables of Tune, and the memory settings of CPU workers."""
    os.environ.update(_TUNE_ENVIRONMENT)
    # Tune has no option for the environment of trials, but gives trials this dictionary.
    default_variables = dict(DEFAULT_ENV_VARS)
    if not config.train.gpus_per_worker:
        DEFAULT_ENV_VARS.update(CPU_MALLOC_SETTINGS)
    try:
        yield
    finally:
        DEFAULT_ENV_VARS.clear()
        DEFAULT_ENV_VARS.update(default_variables)


class StudySearch(OptunaSearch):
    """Ray Tune searcher with Optuna suggestions from a persistent study."""

    def __init__(self, search: Search, num_trials: int, listen: SearchListener) -> None:
        self._search, self._num_trials, self._listen = search, num_trials, listen
        self._causes: list[str] = []
        self.mistake: UserError | None = None
        """A user's mistake common to all trials, which ends the search."""
        names = search.objective.names
        has_one_goal = len(names) == 1
        with studies.suppress_library_warnings():
            super().__init__(
                space=search.space.suggest,
                metric=names[0] if has_one_goal else names,
                mode="max" if has_one_goal else ["max", "max"],
                sampler=self._new_sampler(0),
                study_name=search.asked.study,
                storage=studies.open_storage(search.storage),
            )
            self.study = cast(optuna.Study, self._ot_study)
            if not self._list_trials():
                self.study.set_metric_names(names)
        self._orphans = [trial.number for trial in self._list_trials(TrialState.RUNNING)]
        # The first trial is the default, as the reference for all others.
        if not self._list_trials():
            default = search.space.default()
            if default is not None:
                self.study.enqueue_trial(default)

    @property
    def missing(self) -> int:
        """Number of trials still to be completed or stopped early."""
        return max(0, self._num_trials - self._count_ended())

    def begin(self, concurrent: int) -> None:
        """Report the state of the search to the listener."""
        self._listen(
            {
                "kind": "begun",
                "asked": self._num_trials,
                "ended": self._count_ended(),
                "taken_up": list(self._orphans),
                "concurrent": concurrent,
            }
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the point and number of the next trial.

        Trials left running by an earlier driver come first. None asks Tune to wait.
        """
        if self.mistake is not None:
            return cast(dict[str, Any], Searcher.FINISHED)
        if self._orphans:
            number = self._orphans.pop(0)
            frozen = self.study.get_trials(deepcopy=False)[number]
            # Suggestions of a stored trial return the stored values: the trial keeps its point.
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
        else:
            running = len(self._list_trials(TrialState.RUNNING))
            if not self.missing or self._is_hopeless():
                return None if running else cast(dict[str, Any], Searcher.FINISHED)
            if running >= self.missing:
                return None  # a running trial may fail, and is then replaced
            # A sampler per trial: suggestions depend only on the study, even after a restart.
            self.study.sampler = self._new_sampler(len(self._list_trials()))
            with studies.suppress_library_warnings():
                trial = self.study.ask()
        self._ot_trials[trial_id] = trial
        with studies.suppress_library_warnings():
            point = cast(dict[str, Any], super().suggest(trial_id))
        return point | {NUMBER_KEY: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ignore the result: the `EarlyStopper` has already recorded every epoch."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the outcome of a trial in the study; `fail` records trials without a result."""
        if result is not None and OUTCOME_KEY in result:
            self._record_outcome(trial_id, json.loads(result[OUTCOME_KEY]))

    def fail(self, trial_id: str, cause: str) -> None:
        """Record a failed trial whose process died repeatedly."""
        self._record_outcome(trial_id, {"cause": cause})

    def raise_for_failures(self) -> None:
        """Raise if failures prevented the requested number of trials.

        Raises:
            UserError: the user's mistake, if any.
            RunError: if failures left too few trials; the message has the last cause.
        """
        if self.mistake is not None:
            raise self.mistake
        if self.missing and self._causes:
            raise RunError(
                f"{len(self._causes)} trials failed, and {self.missing} of {self._num_trials} are "
                f"missing. The last failure: {self._causes[-1]}"
            )

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is persistent."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is read from its storage."""

    def __getstate__(self) -> dict[str, Any]:
        """Return an empty state."""
        # Tune pickles the searcher into records without a reader.
        return {}

    def _record_outcome(self, trial_id: str, outcome: TrialOutcome) -> None:
        trial = self._ot_trials.pop(trial_id)
        if self._is_common_mistake(outcome):
            kind = getattr(errors, outcome["mistake"], UserError)
            self.mistake = self.mistake or kind(outcome["cause"])
            return  # the trial remains running in the study; the next command resumes it
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        cause = outcome.get("cause")
        values = None
        if cause is None and studies.STOPPED_ATTRIBUTE not in frozen.user_attrs:
            values, cause = self._goal_values(outcome)
        for name in (studies.FIGURES_ATTRIBUTE, studies.SECONDS_ATTRIBUTE):
            if name in outcome:
                trial.set_user_attr(name, outcome[name])
        if cause is not None:
            trial.set_user_attr(studies.CAUSE_ATTRIBUTE, cause)
            self.study.tell(trial, state=TrialState.FAIL)
            self._causes.append(cause)
            self._write_trace(trial.number, outcome.get("trace"))
        elif values is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, values)
        record = studies.to_record(self.study.get_trials(deepcopy=False)[trial.number])
        self._listen(
            {
                "kind": "trial",
                "trial": record,
                "ended": self._count_ended(),
                "asked": self._num_trials,
            }
        )

    def _is_common_mistake(self, outcome: TrialOutcome) -> bool:
        """Return whether an outcome is a user's mistake common to all trials."""
        # Once a trial has ended, a configuration error concerns only the failed trial.
        error_name = outcome.get("mistake")
        return error_name is not None and not (
            error_name == ConfigError.__name__ and self._count_ended()
        )

    def _goal_values(self, outcome: TrialOutcome) -> tuple[list[float], str | None]:
        """Return the values of the goals, and the cause if there are no valid values."""
        try:
            values = self._search.objective.mean(outcome["figures"])
        except DataError as error:
            return [], str(error)
        if not all(math.isfinite(value) for value in values):
            return [], "Its figures are not numbers, since the training diverged."
        return values, None

    def _write_trace(self, number: int, trace: str | None) -> None:
        if trace:
            self._search.store.write(f"trials/{number:04d}/error.txt", trace.encode())

    def _new_sampler(self, number: int) -> BaseSampler:
        asked, goals = self._search.asked, self._search.objective.goals
        return studies.make_sampler(asked.sampler, asked.seed, number, len(goals))

    def _list_trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _count_ended(self) -> int:
        return len(self._list_trials(TrialState.COMPLETE, TrialState.PRUNED))

    def _is_hopeless(self) -> bool:
        failed = len(self._causes)
        return failed >= max(_MAX_EARLY_FAILURES, self._num_trials) or (
            failed >= _MAX_EARLY_FAILURES and not self._count_ended()
        )


class UserErrorStopper(ray_tune.Stopper):
    """Ray Tune stopper: ends the search and all running trials at a user's mistake."""

    def __init__(self, searcher: StudySearch) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return False: single trials are never stopped here."""
        return False

    def stop_all(self) -> bool:
        """Return whether to end all trials."""
        return self._searcher.mistake is not None


class FailureCallback(ray_tune.Callback):
    """Ray Tune callback: reports causes of dead trials and frees their resources."""

    def __init__(self, searcher: StudySearch) -> None:
        self._searcher = searcher

    def on_trial_recover(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """Free the resources of a dead trial's workers."""
        cluster.free_orphaned_groups()

    def on_trial_error(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """Record the cause of a failed trial in the study."""
        # The searcher interface of Tune gets no error, only the callback does.
        cluster.free_orphaned_groups()
        error = trial.get_pickled_error() or RunError(str(trial.get_error()))
        self._searcher.fail(trial.trial_id, describe_cause(error))


def check_objective_figures(search: Search, manifest: Manifest) -> None:
    """Check the inner validation rows for the classes needed by the objective.

    Raises:
        DataError: if a fold has no benign or no malignant validation image.
    """
    for fold in search.budget.folds:
        rows = select_rows(manifest, fold, "validation", normals=search.space.base.data.normals)
        counts = [count_rows(manifest, rows, label) for label in range(NORMAL)]
        if not all(counts) and search.objective.figures & {"auc", "f1"}:
            raise DataError(
                f"The objective {search.objective.text} needs benign and malignant images, but "
                f"fold {fold} validates on {counts[0]} and {counts[1]}. Use the objective dice, or "
                "another fold."
            )


def _trial_resources(search: Search, cpus: float) -> dict[str, float]:
    train = search.space.base.train
    if search.budget.circle or train.num_workers > 1:
        return dict(_MINIMAL_RESOURCES)
    return {"CPU": cpus} | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})


def _hold_dataset(search: Search) -> list[ray.ObjectRef[Any]] | None:
    """Put the data set into the object store, once for the trials of all nodes."""
    return trainer.load_if_resident(search.asked.data, search.manifest(), search.space.base)


def _start_early_stopper(search: Search) -> Any:
    node_id = ray.get_runtime_context().get_node_id()
    # On the driver's node: the study may be a journal file on the driver's disk.
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(studies.EarlyStopper)
    return actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
    ).remote(search.storage, search.asked.study, search.rule)
