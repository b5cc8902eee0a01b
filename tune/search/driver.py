"""The search: Ray Tune runs the trials that Optuna suggests, and the study remembers.

The study is the one truth. Tune's own records are thrown away: after any death the Tuner is built
anew, and takes up the trials that the study says were running. Only the searcher, in the driver,
asks and tells the study; only the judge, an actor on the driver's node, writes epochs into it.
Trials never touch it, so that a journal file on the driver's disk serves a whole cluster.
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
from mtil.data.dataset.selection import NORMAL, select, total
from mtil.distributed.runtime import cluster
from mtil.distributed.training import trainer
from mtil.errors import ConfigError, DataError, RunError, UserError
from mtil.process import supervisor
from mtil.run.relay import Guarded
from tune import study as studies
from tune.record import Search
from tune.search import session
from tune.search.room import copies, room, threads
from tune.search.trial import NUMBER, TOLD, Means, Outcome, Work, cause_of, trainable, work

Listener = Callable[[dict[str, Any]], None]

_MAX_LOSSES = 2
"""How often a trial that lost its process or machine begins again."""
_HOPELESS = 5
"""So many failures before anything is completed end a search."""
_LIGHT = {"memory": 1024.0}
"""What a trial reserves whose workers reserve the rest: Tune wants something."""

_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def run(
    search: Search,
    num_trials: int,
    listen: Listener,
    *,
    max_concurrent: int | None = None,
    keep_models: bool = False,
    does: Work = work,
) -> None:
    """Go on until the study has so many trials that are completed or were stopped early.

    Args:
        search: the search.
        num_trials: how many there are to be in the end, with those that there are already.
        listen: told `{"kind": "begun", …}` once, and `{"kind": "trial", …}` of each that ends.
        max_concurrent: trials at a time; by default as many as the cluster has room for.
        keep_models: whether the trials' models are kept, not their histories alone.
        does: what a trial does.

    Raises:
        UserError: if the data set or the resources are not as they must be.
        RunError: if another driver is at this search, or too many trials failed.
    """
    with session.alone(search.store):
        studies.mend(search.storage)
        searcher = StudySearch(search, num_trials, Guarded(listen))
        if searcher.missing:
            _run(search, searcher, max_concurrent, keep_models, does)
    searcher.raise_for_failures()


def _run(
    search: Search,
    searcher: "StudySearch",
    max_concurrent: int | None,
    keep_models: bool,
    does: Work,
) -> None:
    config = search.space.base
    nodes, wanted = cluster.nodes(), min(max_concurrent or searcher.missing, searcher.missing)
    if search.budget.circle:
        resources: Any = ray.cluster_resources  # untyped
        store_bytes = resources()["object_store_memory"]
        wanted = min(wanted, copies(store_bytes, search.manifest()))
    concurrent, cpus = room(nodes, config, wanted)
    searcher.begin(concurrent)
    means = Means(
        held=_held(search) if does is work else None,
        judge=_judge(search) if len(search.objective.goals) == 1 else None,
        cpus=cpus,
        num_threads=threads(nodes, config, concurrent),
        keep_models=keep_models,
    )
    try:
        _fit(search, searcher, concurrent, means, does)
    finally:
        if means.judge is not None:
            ray.kill(means.judge)  # what Tune keeps of the trials would keep it


def _fit(
    search: Search,
    searcher: "StudySearch",
    concurrent: int,
    means: Means,
    does: Work,
) -> None:
    config = search.space.base
    with _environment(config), tempfile.TemporaryDirectory(prefix="mtil-tune-") as scratch:
        supervisor.remove_at_end(Path(scratch))
        ray_tune.Tuner(
            ray_tune.with_resources(
                ray_tune.with_parameters(trainable, uri=search.uri, means=means, work=does),
                ray_tune.PlacementGroupFactory([_resources(search, means.cpus)]),
            ),
            tune_config=ray_tune.TuneConfig(
                search_alg=searcher,
                num_samples=-1,
                max_concurrent_trials=concurrent,
                trial_dirname_creator=lambda trial: str(trial.trial_id),
            ),
            run_config=ray_tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                failure_config=ray_tune.FailureConfig(max_failures=_MAX_LOSSES),
                stop=Stop(searcher),
                callbacks=[Failures(searcher)],
            ),
        ).fit()


@contextmanager
def _environment(config: Config) -> Iterator[None]:
    """Give trials the memory settings of a training's workers, as Tune has no option for that."""
    os.environ.update(_TUNE_ENVIRONMENT)
    before = dict(DEFAULT_ENV_VARS)
    if not config.train.gpus_per_worker:
        DEFAULT_ENV_VARS.update(trainer.CPU_MEMORY)
    try:
        yield
    finally:
        DEFAULT_ENV_VARS.clear()
        DEFAULT_ENV_VARS.update(before)


class StudySearch(OptunaSearch):
    """Optuna's suggestions to Ray Tune, from a study that outlives both."""

    def __init__(self, search: Search, num_trials: int, listen: Listener) -> None:
        self._search, self._asked, self._listen = search, num_trials, listen
        self._failed: list[str] = []
        self.mistake: UserError | None = None
        """The user's mistake that ends the search: other trials would make it, too."""
        names = search.objective.names
        one = len(names) == 1
        with studies.quiet():
            super().__init__(
                space=search.space.suggest,
                metric=names[0] if one else names,
                mode="max" if one else ["max", "max"],
                sampler=self._new_sampler(0),
                study_name=search.asked.study,
                storage=studies.open_storage(search.storage),
            )
            self.study = cast(optuna.Study, self._ot_study)
            if not self._trials():
                self.study.set_metric_names(names)
        self._orphans = [one.number for one in self._trials(TrialState.RUNNING)]
        if not self._trials():
            default = search.space.default()
            if default is not None:
                self.study.enqueue_trial(default)

    @property
    def missing(self) -> int:
        """How many trials are still to come to an end."""
        return max(0, self._asked - self._ended())

    def begin(self, concurrent: int) -> None:
        """Tell the listener what there is to do."""
        self._listen(
            {
                "kind": "begun",
                "asked": self._asked,
                "ended": self._ended(),
                "taken_up": list(self._orphans),
                "concurrent": concurrent,
            }
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next trial's point and number: first those that a driver left running."""
        if self.mistake is not None:
            return cast(dict[str, Any], Searcher.FINISHED)
        if self._orphans:
            number = self._orphans.pop(0)
            frozen = self.study.get_trials(deepcopy=False)[number]
            trial = optuna.trial.Trial(self.study, frozen._trial_id)
        else:
            running = len(self._trials(TrialState.RUNNING))
            if not self.missing or self._is_hopeless():
                return None if running else cast(dict[str, Any], Searcher.FINISHED)
            if running >= self.missing:
                return None  # one of these may fail, and is then replaced
            self.study.sampler = self._new_sampler(len(self._trials()))
            with studies.quiet():
                trial = self.study.ask()
        self._ot_trials[trial_id] = trial
        with studies.quiet():
            point = cast(dict[str, Any], super().suggest(trial_id))
        return point | {NUMBER: trial.number}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: the judge has heard of each epoch."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell the study what a trial has come to; `fail` does it for one that died."""
        if result is not None and TOLD in result:
            self._tell(trial_id, json.loads(result[TOLD]))

    def fail(self, trial_id: str, cause: str) -> None:
        """Tell the study of a trial whose process died again and again."""
        self._tell(trial_id, {"cause": cause})

    def raise_for_failures(self) -> None:
        """Raise if failures have kept the search from what was asked.

        Raises:
            UserError: if it was a user's mistake.
            RunError: with their number and the last cause.
        """
        if self.mistake is not None:
            raise self.mistake
        if self.missing and self._failed:
            raise RunError(
                f"{len(self._failed)} trials failed, and {self.missing} of {self._asked} are "
                f"missing; the last: {self._failed[-1]}"
            )

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study is saved already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the study is read from its own storage."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave nothing of this in Tune's own records, which nobody reads."""
        return {}

    def _tell(self, trial_id: str, outcome: Outcome) -> None:
        trial = self._ot_trials.pop(trial_id)
        if self._is_of_all(outcome):
            kind = getattr(errors, outcome["mistake"], UserError)
            self.mistake = self.mistake or kind(outcome["cause"])
            return  # the trial stays as it is, and goes on in the next command
        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        cause = outcome.get("cause")
        values = None
        if cause is None and studies.STOPPED not in frozen.user_attrs:
            values, cause = self._worth(outcome)
        for name in (studies.FIGURES, studies.SECONDS):
            if name in outcome:
                trial.set_user_attr(name, outcome[name])
        if cause is not None:
            trial.set_user_attr(studies.CAUSE, cause)
            self.study.tell(trial, state=TrialState.FAIL)
            self._failed.append(cause)
            self._write_trace(trial.number, outcome.get("trace"))
        elif values is None:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, values)
        told = studies.told(self.study.get_trials(deepcopy=False)[trial.number])
        self._listen({"kind": "trial", "trial": told, "ended": self._ended(), "asked": self._asked})

    def _is_of_all(self, outcome: Outcome) -> bool:
        """Say whether a trial has failed by a user's mistake that the others make, too.

        A configuration may be that of the trial alone, once another has come to its end.
        """
        kind = outcome.get("mistake")
        return kind is not None and not (kind == ConfigError.__name__ and self._ended())

    def _worth(self, outcome: Outcome) -> tuple[list[float], str | None]:
        """Return what a trial is worth, and why it is worth nothing if so."""
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

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _ended(self) -> int:
        return len(self._trials(TrialState.COMPLETE, TrialState.PRUNED))

    def _is_hopeless(self) -> bool:
        failed = len(self._failed)
        return failed >= max(_HOPELESS, self._asked) or (failed >= _HOPELESS and not self._ended())


class Stop(ray_tune.Stopper):
    """Ends the search, with what runs, at a user's mistake."""

    def __init__(self, searcher: StudySearch) -> None:
        self._searcher = searcher

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Let each trial come to its own end."""
        return False

    def stop_all(self) -> bool:
        """Say whether all trials are to end."""
        return self._searcher.mistake is not None


class Failures(ray_tune.Callback):
    """Tells the searcher why trials died, which Tune does not, and frees what they held."""

    def __init__(self, searcher: StudySearch) -> None:
        self._searcher = searcher

    def on_trial_recover(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """Free what a dead trial's workers held."""
        cluster.free_orphans()

    def on_trial_error(
        self, iteration: int, trials: Sequence[Any], trial: Any, **info: Any
    ) -> None:
        """Tell the study the cause."""
        cluster.free_orphans()
        error = trial.get_pickled_error() or RunError(str(trial.get_error()))
        self._searcher.fail(trial.trial_id, cause_of(error))


def check_figures(search: Search, manifest: Manifest) -> None:
    """Make sure that the inner validation rows define what is asked for.

    Raises:
        DataError: naming the fold whose rows do not.
    """
    for fold in search.budget.folds:
        rows = select(manifest, fold, "validation", normals=search.space.base.data.normals)
        counts = [total(manifest, rows, label) for label in range(NORMAL)]
        if not all(counts) and search.objective.figures & {"auc", "f1"}:
            raise DataError(
                f"The objective {search.objective.text} needs benign and malignant images, but "
                f"fold {fold} validates on {counts[0]} and {counts[1]}; ask for dice, or for "
                "another fold."
            )


def _resources(search: Search, cpus: float) -> dict[str, float]:
    train = search.space.base.train
    if search.budget.circle or train.num_workers > 1:
        return dict(_LIGHT)
    return {"CPU": cpus} | ({"GPU": train.gpus_per_worker} if train.gpus_per_worker else {})


def _held(search: Search) -> list[ray.ObjectRef[Any]] | None:
    """Put the data set into the object store once, for the trials of all nodes."""
    return trainer.hold_if_resident(search.asked.data, search.manifest(), search.space.base)


def _judge(search: Search) -> Any:
    here = ray.get_runtime_context().get_node_id()
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(studies.Judge)
    return actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
    ).remote(search.storage, search.asked.study, search.rule)
