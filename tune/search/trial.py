"""One trial: the trainings of a point of the space, and the resulting figures."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune as ray_tune

from mtil.circle.inputs import find_prior_maps
from mtil.distributed.prediction.map_writing import write_maps
from mtil.distributed.runtime import failures
from mtil.distributed.training import trainer
from mtil.distributed.training.job import FoldJob
from mtil.errors import OutOfMemoryError
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import CirclePlan, Train, WriteMaps, list_actions
from tune.objective import SearchObjective, compute_running_value
from tune.record import Search
from tune.space import KeyValue

NUMBER_KEY, OUTCOME_KEY = "trial", "outcome"
"""Keys of the trial number in Tune's configuration, and of the outcome in Tune's result."""

_OUT_OF_MEMORY_TEXTS = ("out of memory", "outofmemory", "can't allocate memory", "low on memory")


@dataclass(frozen=True)
class TrialContext:
    """Resources and settings shared by all trials of a search."""

    held: list[ray.ObjectRef[Any]] | None = None
    """Tables of the data set in the object store, or None for a streamed data set."""
    early_stopper: Any = None
    """`Judge` actor, which receives epochs and decides on early stopping; None with two goals."""
    cpus: float = 1.0
    """CPUs reserved by each worker of a trial."""
    num_threads: int | None = None
    """CPU threads of each worker."""
    keep_models: bool = False


TrialOutcome = dict[str, Any]
"""Outcome of a trial: `figures` and `seconds` of the trainings, or the `cause` of a failure.

A failure by a user's mistake also has the name of the error class in `mistake`."""

TrialFunction = Callable[[str, int, Mapping[str, KeyValue], TrialContext], TrialOutcome]
"""Function of search URI, trial number, point and shared settings that runs a trial."""


@dataclass(frozen=True)
class StoppingCallback:
    """Callback after each epoch of a training: asks the `Judge` whether to go on."""

    early_stopper: Any
    number: int
    objective: SearchObjective
    finished: tuple[Mapping[str, float], ...]
    """Figures of the finished trainings of the round."""
    before: int
    """Epochs of all previous trainings of the trial."""
    tolerance: float
    """The trial's `train.score_tolerance`."""

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Report the value of the trial so far. Return whether to go on."""
        value = compute_running_value(self.objective, self.finished, history, self.tolerance)
        decision = self.early_stopper.record.remote(self.number, self.before + len(history), value)
        return bool(ray.get(decision))


def run_in_tune(config: dict[str, Any], uri: str, means: TrialContext, work: TrialFunction) -> None:
    """Run a trial inside Ray Tune and report the outcome.

    A lost process or machine raises: Tune then starts the trial again. Any further error becomes
    the outcome of the trial.
    """
    point = dict(config)
    number = point.pop(NUMBER_KEY)
    try:
        outcome = work(uri, number, point, means)
    except Exception as error:  # any error is an outcome of the trial
        if failures.is_loss(error):
            raise
        outcome = {"cause": describe_cause(error), "trace": traceback.format_exc()}
        if (mistaken := failures.find_user_error(error)) is not None:
            outcome["mistake"] = type(mistaken).__name__
    ray_tune.report({OUTCOME_KEY: json.dumps(outcome)})


def run_trial(
    uri: str, number: int, point: Mapping[str, KeyValue], means: TrialContext
) -> TrialOutcome:
    """Run the trainings of a trial, in this process for a single worker."""
    search = Search.open(uri)
    if search.budget.circle or search.space.base.train.num_workers > 1:
        # Outside the placement group of the trial, which has no room for the workers.
        remote_train: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(
            _train
        )
        with failures.unwrap_errors():
            outcome: TrialOutcome = ray.get(remote_train.remote(uri, number, point, means))
        return outcome
    return _train(uri, number, point, means)


def describe_cause(error: BaseException) -> str:
    """Return the cause of a trial's failure in one sentence."""
    known_cause = failures.find_mtil_error(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last_line = lines[-1] if lines else type(error).__name__
    text = str(known_cause or last_line)
    full_text = f"{type(error).__name__} {error}".lower()
    if isinstance(known_cause, OutOfMemoryError):
        return text
    if isinstance(error, MemoryError) or any(word in full_text for word in _OUT_OF_MEMORY_TEXTS):
        return f"It does not fit in memory: {text}"
    if isinstance(error, ray.exceptions.RayActorError):
        return f"The process died, possibly for lack of memory: {text}"
    return text if known_cause else f"{type(error).__name__}: {text}"


def _train(
    uri: str, number: int, point: Mapping[str, KeyValue], means: TrialContext
) -> TrialOutcome:
    search = Search.open(uri)
    run = search.open_trial_run(number, point)
    trial_actions = _list_actions(run, search)
    last_round = max(action.round for action in trial_actions)
    results = {
        training: run.result(training)
        for training in (Train(last_round, fold) for fold in search.budget.folds)
    }
    # If the driver died after the last training, all results exist although the study lists the
    # trial as running.
    if None in results.values():
        results.update(_run_actions(run, search, number, means, trial_actions))
    last_results = [
        result
        for training, result in results.items()
        if result is not None and training.round == last_round
    ]
    all_results = [
        run.result(training) for training in trial_actions if isinstance(training, Train)
    ]
    if not means.keep_models:
        _delete_models(run, trial_actions)
    return {
        "figures": [result.metrics for result in last_results],
        "best_epochs": [result.best_epoch for result in last_results],
        "seconds": round(sum(result.seconds for result in all_results if result is not None), 3),
    }


def _list_actions(run: Run, search: Search) -> list[Train | WriteMaps]:
    """Return the actions of a trial, in order. No action reads the test fold."""
    if not search.budget.circle:
        return [Train(0, fold) for fold in search.budget.folds]
    plan = CirclePlan.of(run.config.circle, search.budget.folds)
    return [action for action in list_actions(plan) if isinstance(action, Train | WriteMaps)]


def _delete_models(run: Run, trial_actions: Sequence[Train | WriteMaps]) -> None:
    """Delete the models and maps of a trial."""
    for action in trial_actions:
        if isinstance(action, WriteMaps):
            for name in run.store.names(run.map_folder(action)):
                run.store.delete(name)
            continue
        result = run.result(action)
        if result is not None:
            run.store.delete(run.model_name(action, result))


def _run_actions(
    run: Run,
    search: Search,
    number: int,
    means: TrialContext,
    trial_actions: Sequence[Train | WriteMaps],
) -> Mapping[Train, FoldResult]:
    """Run trainings and maps of a trial until all are done or the rule stops the trial."""
    done: dict[Train, FoldResult] = {}
    for action in trial_actions:
        if means.early_stopper is not None and ray.get(
            means.early_stopper.has_stopped.remote(number)
        ):
            break
        if isinstance(action, WriteMaps):
            write_maps(run, action)
            continue
        asks = None
        if means.early_stopper is not None and action.part is None:
            asks = StoppingCallback(
                means.early_stopper,
                number,
                search.objective,
                tuple(
                    done[training].metrics for training in done if training.round == action.round
                ),
                run.config.train.num_epochs * len(done),
                run.config.train.score_tolerance,
            )
        result = _train_fold(run, search, action, means, asks)
        if action.part is None:
            done[action] = result
    return done


def _train_fold(
    run: Run, search: Search, training: Train, means: TrialContext, asks: StoppingCallback | None
) -> FoldResult:
    manifest = run.manifest()
    priors = find_prior_maps(run, manifest, training)
    tables = means.held
    # A training with prior maps holds a separate copy of the data set, with the maps of the rows.
    if priors is not None and run.result(training) is None:
        tables = trainer.load_if_resident(run.data_uri, manifest, run.config, priors)
    job = FoldJob(run.uri, run.data_uri, training, tables, priors, asks, means.num_threads)
    if search.budget.circle or run.config.train.num_workers > 1:
        return trainer.run_training_job(run, job, means.cpus, lambda line: None)
    return trainer.train_in_process(run, job)
