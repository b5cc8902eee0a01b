"""HTML page of a search: Optuna's plots and a table, without network access."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import plotly.io
from optuna import visualization as plots
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune import study as studies
from tune.record import Search
from tune.space import to_overrides

_MAX_CONTOUR_KEYS = 4
"""Number of keys with contour plots of all pairs, by importance."""


def render_report(search: Search, study: Study) -> str:
    """Return the HTML page of a study.

    Raises:
        DataError: if no trial is completed.
    """
    best = studies.select_best(study)
    parts = [_render_head(search, study, best)]
    # Only the first plot embeds the plotting library.
    include_library: bool | str = True
    for title, figure in _make_plots(search, study, best):
        plot = plotly.io.to_html(figure, full_html=False, include_plotlyjs=include_library)
        parts.append(f"<h2>{html.escape(title)}</h2>\n{plot}")
        include_library = False
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(search.asked.study)}</title>"
        "<style>body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;"
        "border-bottom:1px solid #ddd;vertical-align:top}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _render_head(search: Search, study: Study, best: list[studies.TrialRecord]) -> str:
    counts = ", ".join(f"{number} {state}" for state, number in studies.count_trials(study).items())
    rows = "\n".join(
        f"<tr><td>{trial.number}</td>"
        + "".join(f"<td>{value:.4f}</td>" for value in trial.values or [])
        + f"<td>{html.escape(_command_line(trial))}</td></tr>"
        for trial in best[:10]
    )
    goals = "".join(f"<th>{html.escape(name)}</th>" for name in search.objective.names)
    failed = "\n".join(
        f"<li>trial {trial.number}: {html.escape(trial.cause)}</li>"
        for trial in studies.list_trials(study)
        if trial.cause is not None
    )
    return (
        f"<h1>Search {html.escape(search.asked.study)}</h1>\n<p>{html.escape(counts)}. Figures are "
        "from inner validation rows. No model was validated on the test rows of its own fold, but "
        "inner validation rows of one searched fold are test rows of other folds.</p>\n"
        f"<table><tr><th>trial</th>{goals}<th>overrides</th></tr>\n{rows}\n</table>\n"
        + (f"<h2>Failed</h2>\n<ul>{failed}</ul>" if failed else "")
    )


def _command_line(trial: studies.TrialRecord) -> str:
    return " ".join(f"--{key} {value}" for key, value in to_overrides(trial.point).items())


def _make_plots(
    search: Search, study: Study, best: list[studies.TrialRecord]
) -> Iterator[tuple[str, Any]]:
    names = search.objective.names
    importances_by_goal = studies.compute_importances(study, names)
    with studies.suppress_library_warnings():
        if len(names) == 2:
            yield "Pareto front", plots.plot_pareto_front(study, target_names=names)
        else:
            yield "Epochs", plots.plot_intermediate_values(study)
        for index, name in enumerate(names):
            target = _goal_getter(index)
            yield (
                f"History: {name}",
                plots.plot_optimization_history(study, target=target, target_name=name),
            )
            # By importance, or in the order of the space where no importance is known.
            keys = list(importances_by_goal.get(name) or best[0].point)
            if name in importances_by_goal:
                importances = plots.plot_param_importances(
                    study, target=studies.negate_goal(index), target_name=name
                )
                yield f"Importances: {name}", importances
            yield (
                f"Slices: {name}",
                plots.plot_slice(study, params=keys, target=target, target_name=name),
            )
            contour_keys = _varied_keys(study, keys)[:_MAX_CONTOUR_KEYS]
            if len(contour_keys) > 1:
                yield (
                    f"Contours: {name}",
                    plots.plot_contour(study, params=contour_keys, target=target, target_name=name),
                )


def _goal_getter(index: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: float(trial.values[index])


def _varied_keys(study: Study, keys: list[str]) -> list[str]:
    """Return the keys with at least two different values among completed trials."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        key
        for key in keys
        if len({trial.params[key] for trial in completed if key in trial.params}) > 1
    ]
