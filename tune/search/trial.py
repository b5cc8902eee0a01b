"""What a trial does: the trainings of one point of the space, and what they come to."""

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import tune as ray_tune

from mtil.circle.inputs import prior_maps
from mtil.distributed.prediction.map_writing import write_maps
from mtil.distributed.runtime import failures
from mtil.distributed.training import trainer
from mtil.distributed.training.job import FoldJob
from mtil.run.folder import FoldResult, Run
from mtil.run.plan import Plan, Train, WriteMaps, actions
from tune.objective import Objective, running
from tune.record import Search
from tune.space import Value

NUMBER, TOLD = "trial", "told"
"""The trial's number in what it is given, and its outcome in what it reports."""

_OUT_OF_MEMORY = ("out of memory", "outofmemory", "can't allocate memory", "low on memory")


@dataclass(frozen=True)
class Means:
    """What all trials of a search share."""

    held: list[ray.ObjectRef[Any]] | None = None
    """The data set's tables in the object store, or None where it is streamed."""
    judge: Any = None
    """The actor that hears of epochs and says whether to go on, if there is one."""
    cpus: float = 1.0
    """CPUs that each worker of a trial reserves."""
    num_threads: int | None = None
    """CPU threads of each worker."""
    keep_models: bool = False


Outcome = dict[str, Any]
"""What is told of a trial: `figures` of its trainings and `seconds`, or the `cause` of its end.

With `mistake`, the name of an error, the cause is a user's mistake."""

Work = Callable[[str, int, Mapping[str, Value], Means], Outcome]
"""Does the trial of a number and a point, of the search at a URI."""


@dataclass(frozen=True)
class Asks:
    """Asks the judge after each epoch of a training whether it is worth going on."""

    judge: Any
    number: int
    objective: Objective
    finished: tuple[Mapping[str, float], ...]
    """The figures of the trainings of the same round that have ended."""
    before: int
    """Epochs that the trial's trainings had before this one."""
    tolerance: float
    """The trial's `train.score_tolerance`."""

    def __call__(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Tell what the trial is worth so far, and return whether to go on."""
        value = running(self.objective, self.finished, history, self.tolerance)
        answer = self.judge.hear.remote(self.number, self.before + len(history), value)
        return bool(ray.get(answer))


def trainable(config: dict[str, Any], uri: str, means: Means, work: Work) -> None:
    """Do a trial within Ray Tune, and report its outcome.

    What was lost with a process or a machine is raised, so that the trial begins again.
    """
    point = dict(config)
    number = point.pop(NUMBER)
    try:
        outcome = work(uri, number, point, means)
    except Exception as error:  # whatever it was, it is the trial's outcome
        if failures.is_loss(error):
            raise
        outcome = {"cause": cause_of(error), "trace": traceback.format_exc()}
        if (mistaken := failures.mistake(error)) is not None:
            outcome["mistake"] = type(mistaken).__name__
    ray_tune.report({TOLD: json.dumps(outcome)})


def work(uri: str, number: int, point: Mapping[str, Value], means: Means) -> Outcome:
    """Do the trainings of a trial, in this process if they have one worker."""
    search = Search.open(uri)
    if search.budget.circle or search.space.base.train.num_workers > 1:
        # Outside of the trial's own placement group, which is too small for what this starts.
        apart: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="DEFAULT")(_train)
        with failures.unwrapped():
            outcome: Outcome = ray.get(apart.remote(uri, number, point, means))
        return outcome
    return _train(uri, number, point, means)


def cause_of(error: BaseException) -> str:
    """Say in a sentence why a trial failed."""
    ours = failures.cause(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    text = str(ours or last)
    everything = f"{type(error).__name__} {error}".lower()
    if isinstance(error, MemoryError) or any(word in everything for word in _OUT_OF_MEMORY):
        return f"It does not fit in memory: {text}"
    if isinstance(error, ray.exceptions.RayActorError):
        return f"Its process died, as from want of memory: {text}"
    return text if ours else f"{type(error).__name__}: {text}"


def _train(uri: str, number: int, point: Mapping[str, Value], means: Means) -> Outcome:
    search = Search.open(uri)
    run = search.trial_run(number, point)
    todo = _todo(run, search)
    last = max(action.round for action in todo)
    found = {of: run.result(of) for of in (Train(last, fold) for fold in search.budget.folds)}
    if None in found.values():
        found.update(_trainings(run, search, number, means, todo))
    ended = [result for of, result in found.items() if result is not None and of.round == last]
    trainings = [run.result(of) for of in todo if isinstance(of, Train)]
    if not means.keep_models:
        _delete_models(run, todo)
    return {
        "figures": [result.metrics for result in ended],
        "best_epochs": [result.best_epoch for result in ended],
        "seconds": round(sum(result.seconds for result in trainings if result is not None), 3),
    }


def _todo(run: Run, search: Search) -> list[Train | WriteMaps]:
    """Return what a trial does, in order: nothing of it looks at the test fold."""
    if not search.budget.circle:
        return [Train(0, fold) for fold in search.budget.folds]
    plan = Plan.of(run.config.circle, search.budget.folds)
    return [action for action in actions(plan) if isinstance(action, Train | WriteMaps)]


def _delete_models(run: Run, todo: Sequence[Train | WriteMaps]) -> None:
    """Delete the models of a trial's trainings, and the maps that they made."""
    for action in todo:
        if isinstance(action, WriteMaps):
            for name in run.store.names(run.map_folder(action)):
                run.store.delete(name)
            continue
        result = run.result(action)
        if result is not None:
            run.store.delete(run.model_name(action, result))


def _trainings(
    run: Run, search: Search, number: int, means: Means, todo: Sequence[Train | WriteMaps]
) -> Mapping[Train, FoldResult]:
    """Do a trial's trainings until all are done, or the judge has ended it."""
    done: dict[Train, FoldResult] = {}
    for action in todo:
        if means.judge is not None and ray.get(means.judge.has_stopped.remote(number)):
            break
        if isinstance(action, WriteMaps):
            write_maps(run, action)
            continue
        asks = None
        if means.judge is not None and action.part is None:
            asks = Asks(
                means.judge,
                number,
                search.objective,
                tuple(done[of].metrics for of in done if of.round == action.round),
                run.config.train.num_epochs * len(done),
                run.config.train.score_tolerance,
            )
        result = _fold(run, search, action, means, asks)
        if action.part is None:
            done[action] = result
    return done


def _fold(run: Run, search: Search, of: Train, means: Means, asks: Asks | None) -> FoldResult:
    manifest = run.manifest()
    priors = prior_maps(run, manifest, of)
    held = means.held
    if priors is not None and run.result(of) is None:
        held = trainer.hold_if_resident(run.data_uri, manifest, run.config, priors)
    job = FoldJob(run.uri, run.data_uri, of, held, priors, asks, means.num_threads)
    if search.budget.circle or run.config.train.num_workers > 1:
        return trainer.train_job(run, job, means.cpus, lambda line: None)
    return trainer.train_here(run, job)
