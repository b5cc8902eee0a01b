"""Charts of a search."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mtil.report.charts.theme import colour
from mtil.report.elements import Chart

MAX_KEYS = 12
"""Keys with a chart of their own, by importance."""
_MAX_PAIR_KEYS = 3
"""Keys whose pairs get a chart, by importance."""


def list_completed(study: Study) -> list[FrozenTrial]:
    """Return the completed trials, ordered by number."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def list_varied_keys(trials: Sequence[FrozenTrial], keys: Sequence[str]) -> list[str]:
    """Return the keys with at least two different values among trials."""
    return [key for key in keys if len({str(t.params[key]) for t in trials if key in t.params}) > 1]


def draw_history(trials: Sequence[FrozenTrial], goal: int, name: str) -> Chart:
    """Return the goal of every trial, and the best so far."""
    rows, best = [], float("-inf")
    for trial in trials:
        best = max(best, trial.values[goal])
        rows.append({"trial": trial.number, "value": trial.values[goal], "best": best})
    x = {"field": "trial", "type": "quantitative", "title": "trial", "axis": {"tickMinStep": 1}}
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 220,
        "layer": [
            {
                "mark": {"type": "line", "interpolate": "step-after", "color": colour(1)},
                "encoding": {"x": x, "y": _goal("best", name)},
            },
            {
                "mark": {"type": "point", "filled": True, "color": colour(0)},
                "encoding": {"x": x, "y": _goal("value", name)},
            },
        ],
    }
    description = f"Points: {name} of each completed trial. Line: the best so far."
    return Chart(name=f"history-{goal}", title=f"History: {name}", description=description,
                 spec=spec)  # fmt: skip


def draw_importances(shares: Mapping[str, float], goal: int, name: str) -> Chart:
    """Return the importance of the keys as bars."""
    rows = [{"key": key, "share": share} for key, share in list(shares.items())[:MAX_KEYS]]
    spec = {
        "data": {"values": rows},
        "width": 240,
        "height": {"step": 20},
        "padding": {"left": 8 + max(map(len, shares)), "top": 5, "right": 8, "bottom": 5},
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "share", "type": "quantitative", "title": "share",
                  "axis": {"format": "%"}},
            "y": {"field": "key", "type": "nominal", "sort": None, "title": None,
                  "axis": {"labelLimit": 240}},
        },
    }  # fmt: skip
    return Chart(
        name=f"importances-{goal}",
        title=f"Importance: {name}",
        description=f"Share of each key in the differences of {name} between trials (PED-ANOVA).",
        spec=spec,
    )


def draw_slices(
    trials: Sequence[FrozenTrial], keys: Sequence[str], goal: int, name: str
) -> list[Chart]:
    """Return the goal against each key."""
    charts = []
    for number, key in enumerate(keys[:MAX_KEYS]):
        rows = [
            {"key": _plain(trial.params[key]), "value": trial.values[goal]}
            for trial in trials
            if key in trial.params
        ]
        spec = {
            "data": {"values": rows},
            "width": 220,
            "height": 160,
            "mark": {"type": "point", "filled": True, "opacity": 0.7},
            "encoding": {
                "x": {"field": "key", "title": key, **_scale(trials, key)},
                "y": _goal("value", name),
            },
        }
        charts.append(
            Chart(
                name=f"slice-{goal}-{number}",
                title=key,
                description=f"{name} of each completed trial against {key}.",
                spec=spec,
            )
        )
    return charts


def draw_pairs(
    trials: Sequence[FrozenTrial], keys: Sequence[str], goal: int, name: str
) -> list[Chart]:
    """Return the trials by pairs of keys, coloured by the goal."""
    charts = []
    for number, (first, second) in enumerate(combinations(keys[:_MAX_PAIR_KEYS], 2)):
        rows = [
            {
                "x": _plain(trial.params[first]),
                "y": _plain(trial.params[second]),
                "value": trial.values[goal],
            }
            for trial in trials
            if first in trial.params and second in trial.params
        ]
        spec = {
            "data": {"values": rows},
            "width": 240,
            "height": 200,
            "mark": {"type": "point", "filled": True, "size": 60},
            "encoding": {
                "x": {"field": "x", "title": first, **_scale(trials, first)},
                "y": {"field": "y", "title": second, **_scale(trials, second)},
                "color": {
                    "field": "value",
                    "type": "quantitative",
                    "title": name,
                    "scale": {"scheme": "viridis", "zero": False},
                },
            },
        }
        charts.append(
            Chart(
                name=f"pair-{goal}-{number}",
                title=f"{first} and {second}",
                description=f"A point per completed trial; the colour is {name}.",
                spec=spec,
            )
        )
    return charts


def draw_front(trials: Sequence[FrozenTrial], best: Sequence[int], names: Sequence[str]) -> Chart:
    """Return the trials by two goals, with the trials of the Pareto front marked."""
    rows = [
        {
            "x": trial.values[0],
            "y": trial.values[1],
            "kind": "Pareto front" if trial.number in best else "other trials",
        }
        for trial in trials
    ]
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 260,
        "mark": {"type": "point", "filled": True, "size": 50},
        "encoding": {
            "x": {**_goal("x", names[0]), "title": names[0]},
            "y": _goal("y", names[1]),
            "color": {
                "field": "kind",
                "type": "nominal",
                "title": None,
                "sort": ["Pareto front", "other trials"],
            },
        },
    }
    return Chart(
        name="front",
        title="Pareto front",
        description=f"{names[0]} and {names[1]} of each completed trial.",
        spec=spec,
    )


def draw_epochs(study: Study, name: str) -> Chart | None:
    """Return the reported values of all trials by epoch; None without a value."""
    rows: list[dict[str, Any]] = [
        {"epoch": epoch, "value": value, "trial": trial.number}
        for trial in study.get_trials(deepcopy=False)
        for epoch, value in trial.intermediate_values.items()
    ]
    if not rows:
        return None
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 220,
        "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.6},
        "encoding": {
            "x": {"field": "epoch", "type": "quantitative", "axis": {"tickMinStep": 1}},
            "y": _goal("value", name),
            "detail": {"field": "trial"},
        },
    }
    description = f"{name} on inner validation by epoch, a line per trial."
    return Chart(name="epochs", title="Epochs", description=description, spec=spec)


def _goal(field: str, name: str) -> dict[str, Any]:
    return {"field": field, "type": "quantitative", "title": name, "scale": {"zero": False}}


def _scale(trials: Sequence[FrozenTrial], key: str) -> dict[str, Any]:
    """Return type and scale of a key's axis: as the search drew it."""
    distribution = next(trial.distributions[key] for trial in trials if key in trial.params)
    if not hasattr(distribution, "low"):
        return {"type": "nominal"}
    kind = "log" if getattr(distribution, "log", False) else "linear"
    return {"type": "quantitative", "scale": {"type": kind, "zero": False}}


def _plain(value: Any) -> Any:
    """Return a value of a key as a number or a text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else str(value)
