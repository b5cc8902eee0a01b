"""The page of a search: trials, importances and charts, in the form of `mtil report`."""

from optuna.study import Study

from mtil.report.elements import Cell, Chart, Report, Section, Table
from tune import charts
from tune import study as studies
from tune.record import Search
from tune.space import to_overrides

_MAX_TRIALS = 10
"""Best trials in the table."""


def build_report(search: Search, study: Study) -> Report:
    """Return the page of a study.

    Raises:
        DataError: if no trial is completed.
    """
    names = search.objective.names
    best = studies.select_best(study)
    counts = ", ".join(f"{number} {state}" for state, number in studies.count_trials(study).items())
    values = ", ".join(
        f"{name} {value:.4f}" for name, value in zip(names, best[0].values or [], strict=True)
    )
    return Report(
        title=f"Search {search.asked.study}",
        summary=f"Trials: {counts}. Best, trial {best[0].number}: {values}, on inner validation.",
        warnings=(
            "No model was validated on the test rows of its own fold, but inner validation rows of "
            "one searched fold are test rows of other folds. `mtil-tune confirm` compares the "
            "winner with the default on rows that no trial has seen.",
        ),
        headline=None,
        sections=(_make_trials(search, study, best), *_make_goals(search, study, best)),
    )


def _make_trials(search: Search, study: Study, best: list[studies.TrialRecord]) -> Section:
    names = search.objective.names
    rows: list[tuple[Cell, ...]] = [
        (trial.number, *(trial.values or []), _command_line(trial)) for trial in best[:_MAX_TRIALS]
    ]
    tables = [
        Table(
            name="trials",
            title="Best trials" if len(names) == 1 else "Trials of the Pareto front",
            columns=("trial", *names, "overrides"),
            rows=tuple(rows),
        )
    ]
    failed = [trial for trial in studies.list_trials(study) if trial.cause is not None]
    if failed:
        tables.append(
            Table(
                name="failed",
                title="Failed trials",
                columns=("trial", "cause"),
                rows=tuple((trial.number, trial.cause) for trial in failed),
            )
        )
    drawn: list[Chart] = []
    if len(names) == 2:
        numbers = [trial.number for trial in best]
        drawn.append(charts.draw_front(charts.list_completed(study), numbers, names))
    else:
        epochs = charts.draw_epochs(study, names[0])
        drawn += [] if epochs is None else [epochs]
    return Section(name="trials", title="Trials", tables=tuple(tables), charts=tuple(drawn))


def _make_goals(
    search: Search, study: Study, best: list[studies.TrialRecord]
) -> tuple[Section, ...]:
    """Return a section per goal: history, importances, the goal by key and by pairs of keys."""
    names = search.objective.names
    by_goal = studies.compute_importances(study, names)
    trials = charts.list_completed(study)
    sections = []
    for goal, name in enumerate(names):
        # By importance, or in the order of the space where no importance is known.
        keys = charts.list_varied_keys(trials, list(by_goal.get(name) or best[0].point))
        drawn = [charts.draw_history(trials, goal, name)]
        if name in by_goal:
            drawn.append(charts.draw_importances(by_goal[name], goal, name))
        drawn += charts.draw_slices(trials, keys, goal, name)
        drawn += charts.draw_pairs(trials, keys, goal, name)
        sections.append(Section(name=f"goal-{goal}", title=f"Goal: {name}", charts=tuple(drawn)))
    return tuple(sections)


def _command_line(trial: studies.TrialRecord) -> str:
    return " ".join(f"--{key} {value}" for key, value in to_overrides(trial.point).items())
