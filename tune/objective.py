"""What a search maximises: figures of the inner validation rows, never of the test fold. No Ray."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtil.errors import ConfigError, DataError
from mtil.metrics import kept_epoch

FIGURES = ("dice", "auc", "f1")
"""What a training says of its inner validation rows."""

_TERM = re.compile(r"(?:(?P<weight>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?(?P<name>\w+)")


@dataclass(frozen=True)
class Objective:
    """One or two goals, each a weighted sum of figures; more is better."""

    goals: tuple[tuple[tuple[str, float], ...], ...]
    """For each goal its figures and their weights."""
    text: str
    """As it was asked for."""

    @property
    def names(self) -> list[str]:
        """Return what each goal is called."""
        return [part.strip() for part in self.text.split(",")]

    @property
    def figures(self) -> set[str]:
        """Return the figures that it needs."""
        return {name for goal in self.goals for name, _ in goal}

    def values(self, figures: Mapping[str, float]) -> list[float]:
        """Return what a training's figures are worth, goal by goal.

        Raises:
            DataError: if a figure is missing, since the validation rows do not define it.
        """
        missing = sorted(self.figures - figures.keys())
        if missing:
            raise DataError(
                f"The objective {self.text} needs `{missing[0]}`, but the inner validation rows "
                "do not define it, as they have one class only; ask for another --objective."
            )
        return [sum(weight * figures[name] for name, weight in goal) for goal in self.goals]

    def mean(self, trainings: Sequence[Mapping[str, float]]) -> list[float]:
        """Return the mean over trainings, goal by goal."""
        values = np.mean([self.values(figures) for figures in trainings], axis=0)
        return [float(value) for value in values]


def parse(text: str) -> Objective:
    """Read `dice`, a sum such as `0.7*dice + 0.3*auc`, or two of these with a comma between.

    Raises:
        ConfigError: if it is something else.
    """
    goals = tuple(_goal(part, text) for part in text.split(","))
    if len(goals) > 2:
        raise ConfigError(f"`--objective` can have two goals at most, but got {text!r}.")
    if len(goals) == 2 and goals[0] == goals[1]:
        raise ConfigError(f"The two goals of `--objective` must differ, but got {text!r}.")
    return Objective(goals, text)


def _goal(part: str, text: str) -> tuple[tuple[str, float], ...]:
    terms: dict[str, float] = {}
    for term in part.split("+"):
        match = _TERM.fullmatch(term.strip())
        name = match["name"] if match else ""
        if match is None or name not in FIGURES or name in terms:
            raise ConfigError(
                f"`--objective` must be of {', '.join(FIGURES)}, such as dice, 0.7*dice+0.3*auc or "
                f"dice,auc, but got {text!r}."
            )
        terms[name] = float(match["weight"] or 1)
    if not any(terms.values()):
        raise ConfigError(f"`--objective` must weigh something, but got {text!r}.")
    return tuple(terms.items())


def kept(history: Sequence[Mapping[str, Any]], tolerance: float) -> dict[str, float]:
    """Return the figures of the epoch that a training would keep if it ended now.

    Args:
        history: its epochs.
        tolerance: the configuration's `train.score_tolerance`.
    """
    scores = [float(record["validation_score"]) for record in history]
    best = history[kept_epoch(scores, tolerance)]
    names = (*FIGURES, "score")
    found = {name: best.get(f"validation_{name}") for name in names}
    return {name: float(value) for name, value in found.items() if value is not None}


def running(
    objective: Objective,
    finished: Sequence[Mapping[str, float]],
    history: Sequence[Mapping[str, Any]],
    tolerance: float,
) -> float:
    """Return what a trial is worth so far: the mean over its trainings, the last one under way."""
    return objective.mean([*finished, kept(history, tolerance)])[0]
