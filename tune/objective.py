"""Objective of a search: figures of inner validation rows, never of test rows. No Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtil.errors import ConfigError, DataError
from mtil.metrics import select_epoch

OBJECTIVE_FIGURES = ("dice", "auc", "f1")
"""Figures of a training on its inner validation rows."""

_TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?(?P<name>\w+)")


@dataclass(frozen=True)
class SearchObjective:
    """One or two goals to maximise, each a weighted sum of figures."""

    goals: tuple[tuple[tuple[str, float], ...], ...]
    """(figure, weight) pairs per goal."""
    text: str
    """The `--objective` as given."""

    @property
    def names(self) -> list[str]:
        """Names of the goals."""
        return [part.strip() for part in self.text.split(",")]

    @property
    def figures(self) -> set[str]:
        """Figures of all goals."""
        return {name for goal in self.goals for name, _ in goal}

    def values(self, figures: Mapping[str, float]) -> list[float]:
        """Return the values of the goals for the figures of a training.

        Raises:
            DataError: if a figure is missing, because the validation rows have a single class.
        """
        missing = sorted(self.figures - figures.keys())
        if missing:
            raise DataError(
                f"The objective {self.text} needs `{missing[0]}`, but the inner validation rows "
                "have a single class, so the figure is undefined. Choose another --objective."
            )
        return [sum(weight * figures[name] for name, weight in goal) for goal in self.goals]

    def mean(self, trainings: Sequence[Mapping[str, float]]) -> list[float]:
        """Return the mean values of the goals over trainings."""
        values = np.mean([self.values(figures) for figures in trainings], axis=0)
        return [float(value) for value in values]


def parse_objective(text: str) -> SearchObjective:
    """Parse `dice`, a sum such as `0.7*dice + 0.3*auc`, or two goals separated by a comma.

    Raises:
        ConfigError: if the text is not an objective.
    """
    goals = tuple(_parse_goal(part, text) for part in text.split(","))
    if len(goals) > 2:
        raise ConfigError(f"`--objective` can have two goals at most, but got {text!r}.")
    if len(goals) == 2 and goals[0] == goals[1]:
        raise ConfigError(f"The two goals of `--objective` must differ, but got {text!r}.")
    return SearchObjective(goals, text)


def _parse_goal(part: str, text: str) -> tuple[tuple[str, float], ...]:
    terms: dict[str, float] = {}
    for term in part.split("+"):
        match = _TERM.fullmatch(term.strip())
        name = match["name"] if match else ""
        if match is None or name not in OBJECTIVE_FIGURES or name in terms:
            raise ConfigError(
                f"`--objective` must be of {', '.join(OBJECTIVE_FIGURES)}, such as dice, "
                "0.7*dice+0.3*auc or "
                f"dice,auc, but got {text!r}."
            )
        terms[name] = float(match["weight"] or 1)
    if not any(terms.values()):
        raise ConfigError(f"`--objective` must have a weight above 0, but got {text!r}.")
    return tuple(terms.items())


def select_epoch_figures(
    history: Sequence[Mapping[str, Any]], tolerance: float
) -> dict[str, float]:
    """Return the figures of the epoch to keep if the training ended now.

    Args:
        history: records of the epochs so far.
        tolerance: `train.score_tolerance` of the configuration.
    """
    scores = [float(record["validation_score"]) for record in history]
    best = history[select_epoch(scores, tolerance)]
    names = (*OBJECTIVE_FIGURES, "score")
    figures = {name: best.get(f"validation_{name}") for name in names}
    return {name: float(value) for name, value in figures.items() if value is not None}


def compute_running_value(
    objective: SearchObjective,
    finished: Sequence[Mapping[str, float]],
    history: Sequence[Mapping[str, Any]],
    tolerance: float,
) -> float:
    """Return the intermediate value of a trial: the first goal's mean over all trainings.

    Args:
        objective: the objective of the search.
        finished: figures of the finished trainings.
        history: records of the current training.
        tolerance: `train.score_tolerance` of the configuration.
    """
    return objective.mean([*finished, select_epoch_figures(history, tolerance)])[0]
