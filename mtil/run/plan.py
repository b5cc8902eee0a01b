"""What a circle run has to do: its actions, and what each needs. Pure values only.

A run trains each fold's model in rounds, and the maps of one round are read in the next. Where
the maps come from (`circle.maps`) decides which actions there are:

    in_sample   the model maps its own training rows
    cross_fit   an inner model a part, trained without that part, maps the part's rows
    recycle     none are kept: the network is fed its own output within a training step
"""

from collections.abc import Iterable
from dataclasses import field
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from mtil.config import STRICT, CircleConfig, Whole
from mtil.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class Train:
    """Train a fold's model of a round, or the inner one that leaves a part out."""

    round: Whole
    fold: Whole
    part: Whole | None = None
    kind: Literal["train"] = field(default="train", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"training of {_place(self)}"


@dataclass(frozen=True, config=STRICT)
class WriteMaps:
    """Write the maps of a fold's training rows, or of one part of them."""

    round: Whole
    fold: Whole
    part: Whole | None = None
    kind: Literal["write_maps"] = field(default="write_maps", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"maps of {_place(self)}"


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """Score a fold's test rows, every pass."""

    round: Whole
    fold: Whole
    kind: Literal["evaluate"] = field(default="evaluate", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"evaluation of {_place(self)}"


@dataclass(frozen=True, config=STRICT)
class Summarise:
    """Put the figures of a round's folds together."""

    round: Whole
    kind: Literal["summarise"] = field(default="summarise", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"summary of round {self.round}"


_MAX_ACTIONS = 100_000
"""Of a plan, which every reader of the ledger holds in memory."""

Action = Annotated[Train | WriteMaps | Evaluate | Summarise, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Plan:
    """What a circle run has to do; decided when it begins."""

    circle: CircleConfig
    folds: tuple[Whole, ...]
    """The folds whose models are trained, ascending."""

    def __post_init__(self) -> None:
        if not self.folds or list(self.folds) != sorted(set(self.folds)):
            raise ConfigError(f"The folds must be ascending, but got {list(self.folds)[:10]}.")
        a_fold = 2 + 2 * (self.circle.num_parts if self._cross_fit else 1)
        most = self.circle.num_rounds * (len(self.folds) * a_fold + 1)
        if most > _MAX_ACTIONS:
            raise ConfigError(
                f"A circle run must have at most {_MAX_ACTIONS} actions, but its rounds, folds and "
                f"parts make {most}; lower `circle.num_rounds`."
            )

    @classmethod
    def of(cls, circle: CircleConfig, folds: Iterable[int]) -> "Plan":
        """Plan the rounds of some folds, in whatever order they are named.

        Raises:
            ConfigError: if there are none.
        """
        chosen = tuple(sorted(set(folds)))
        if not chosen:
            raise ConfigError("A circle run must have a fold, but got none; name some by --folds.")
        return cls(circle=circle, folds=chosen)

    @property
    def parts(self) -> tuple[int | None, ...]:
        """The parts that a fold's training rows are mapped in; `None` is all of them at once."""
        return tuple(range(self.circle.num_parts)) if self._cross_fit else (None,)

    @property
    def last_round(self) -> int:
        """The round whose models nobody reads maps of."""
        return self.circle.num_rounds - 1

    @property
    def _cross_fit(self) -> bool:
        return self.circle.maps == "cross_fit"


def starts_from(plan: Plan, action: Train) -> Train | None:
    """Return the training whose weights this one starts with, if not from scratch."""
    if action.round == 0 or not plan.circle.warm_start:
        return None
    return Train(action.round - 1, action.fold, action.part)


def reads_maps_of(plan: Plan, action: Action) -> tuple[WriteMaps, ...]:
    """Return the writers of the maps that an action's images come with, in the order of parts.

    A training reads the maps of its own rows; a writer gives its model the maps of the round
    before; test images never come with one.
    """
    if plan.circle.maps == "recycle" or action.round == 0:
        return ()
    if isinstance(action, Train):
        parts = plan.parts if action.part is None else _others(plan, action.part)
    elif isinstance(action, WriteMaps):
        parts = (action.part,)
    else:
        return ()
    return tuple(WriteMaps(action.round - 1, action.fold, part) for part in parts)


def models_of(plan: Plan, action: Action) -> tuple[Train, ...]:
    """Return the trainings whose models an action runs, the oldest first.

    A training of a chain runs those before it: its own model takes the last pass after theirs.
    """
    if isinstance(action, Train) and plan.circle.test == "chain":
        return tuple(Train(number, action.fold, action.part) for number in range(action.round))
    if isinstance(action, WriteMaps):
        return (Train(action.round, action.fold, action.part),)
    if isinstance(action, Evaluate):
        first = 0 if plan.circle.test == "chain" else action.round
        return tuple(Train(number, action.fold) for number in range(first, action.round + 1))
    return ()


def needs(plan: Plan, action: Action) -> tuple[Action, ...]:
    """Return what must be done before an action may run.

    For a summary each evaluation must be done or out of reach, and at least one be done.
    """
    if isinstance(action, Summarise):
        return tuple(Evaluate(action.round, fold) for fold in plan.folds)
    before = models_of(plan, action)
    if isinstance(action, Train) and action.round > 0:
        former = Train(action.round - 1, action.fold, action.part)
        waits = plan.circle.maps == "recycle" or plan.circle.warm_start
        before += (former,) * (waits and former not in before)
    return (*before, *reads_maps_of(plan, action))


def trained_on(plan: Plan, action: Action) -> frozenset[int | None]:
    """Return the parts of the fold's training rows that an action's weights have ever seen.

    That is what its own model, the ones it runs, and all that they were started from were trained
    on. A part of `None` is all rows.
    """
    seen: set[int | None] = set()
    own = (action,) if isinstance(action, Train) else ()
    for model in own + models_of(plan, action):
        ancestor: Train | None = model
        while ancestor is not None:
            part = ancestor.part
            seen.update(plan.parts if part is None else _others(plan, part))
            ancestor = starts_from(plan, ancestor)
    return frozenset(seen)


def actions(plan: Plan) -> tuple[Action, ...]:
    """Return all actions of a plan, each after what it needs."""
    return tuple(graph(plan))


@lru_cache(maxsize=8)
def graph(plan: Plan) -> dict[Action, tuple[Action, ...]]:
    """Return what each action needs, in an order in which all can run; not to be changed."""
    listed: list[Action] = []
    keeps_maps = plan.circle.maps != "recycle"
    for number in range(plan.circle.num_rounds):
        for fold in plan.folds:
            mapped = plan.parts if keeps_maps and number < plan.last_round else ()
            inner = [part for part in mapped if part is not None]
            listed += [Train(number, fold), *(Train(number, fold, part) for part in inner)]
            listed += [WriteMaps(number, fold, part) for part in mapped]
            listed.append(Evaluate(number, fold))
        listed.append(Summarise(number))
    return {action: needs(plan, action) for action in listed}


def _place(action: Train | WriteMaps | Evaluate) -> str:
    part = None if isinstance(action, Evaluate) else action.part
    return f"round {action.round}, fold {action.fold}" + ("" if part is None else f", part {part}")


def _others(plan: Plan, part: int) -> tuple[int | None, ...]:
    return tuple(other for other in plan.parts if other != part)
