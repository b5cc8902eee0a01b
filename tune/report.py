"""A search as one page that needs no network: Optuna's own plots, and what they are of."""

import html
from collections.abc import Callable, Iterator
from typing import Any

import plotly.io
from optuna import visualization as plots
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from tune import study as studies
from tune.record import Search
from tune.space import overrides

_MOST_CONTOURS = 4
"""Keys whose pairs are drawn: the most important ones."""


def page(search: Search, study: Study) -> str:
    """Return the page of a search's study.

    Raises:
        DataError: if no trial is completed.
    """
    best = studies.best(study)
    parts = [_head(search, study, best)]
    scripts: bool | str = True  # the first plot brings the library along
    for title, figure in _figures(search, study, best):
        plot = plotly.io.to_html(figure, full_html=False, include_plotlyjs=scripts)
        parts.append(f"<h2>{html.escape(title)}</h2>\n{plot}")
        scripts = False
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(search.asked.study)}</title>"
        "<style>body{font-family:sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;"
        "border-bottom:1px solid #ddd;vertical-align:top}</style></head>\n"
        f"<body>\n{body}\n</body></html>\n"
    )


def _head(search: Search, study: Study, best: list[studies.Told]) -> str:
    counts = ", ".join(f"{number} {state}" for state, number in studies.counts(study).items())
    rows = "\n".join(
        f"<tr><td>{trial.number}</td>"
        + "".join(f"<td>{value:.4f}</td>" for value in trial.values or [])
        + f"<td>{html.escape(_typed(trial))}</td></tr>"
        for trial in best[:10]
    )
    goals = "".join(f"<th>{html.escape(name)}</th>" for name in search.objective.names)
    failed = "\n".join(
        f"<li>trial {trial.number}: {html.escape(trial.cause)}</li>"
        for trial in studies.trials(study)
        if trial.cause is not None
    )
    return (
        f"<h1>Search {html.escape(search.asked.study)}</h1>\n<p>{html.escape(counts)}. Figures are "
        "those of inner validation rows. No model has been judged by its own fold's test rows, but "
        "inner validation rows of one searched fold are test rows of another.</p>\n"
        f"<table><tr><th>trial</th>{goals}<th>overrides</th></tr>\n{rows}\n</table>\n"
        + (f"<h2>Failed</h2>\n<ul>{failed}</ul>" if failed else "")
    )


def _typed(trial: studies.Told) -> str:
    return " ".join(f"--{key} {value}" for key, value in overrides(trial.point).items())


def _figures(search: Search, study: Study, best: list[studies.Told]) -> Iterator[tuple[str, Any]]:
    names = search.objective.names
    shares = studies.importances(study, names)
    with studies.quiet():
        if len(names) == 2:
            yield "Pareto front", plots.plot_pareto_front(study, target_names=names)
        else:
            yield "Epochs", plots.plot_intermediate_values(study)
        for index, name in enumerate(names):
            target = _goal(index)
            yield (
                f"History: {name}",
                plots.plot_optimization_history(study, target=target, target_name=name),
            )
            keys = list(shares.get(name) or best[0].point)
            if name in shares:
                importances = plots.plot_param_importances(
                    study, target=studies.worse(index), target_name=name
                )
                yield f"Importances: {name}", importances
            yield (
                f"Slices: {name}",
                plots.plot_slice(study, params=keys, target=target, target_name=name),
            )
            most = _everywhere(study, keys)[:_MOST_CONTOURS]
            if len(most) > 1:
                yield (
                    f"Contours: {name}",
                    plots.plot_contour(study, params=most, target=target, target_name=name),
                )


def _goal(index: int) -> Callable[[FrozenTrial], float]:
    return lambda trial: float(trial.values[index])


def _everywhere(study: Study, keys: list[str]) -> list[str]:
    """Return the keys that at least two completed trials have, with different values."""
    completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return [
        key
        for key in keys
        if len({trial.params[key] for trial in completed if key in trial.params}) > 1
    ]
