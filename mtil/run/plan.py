"""The plan of a circle run: the actions and the prerequisites of an action. Pure values only.

A run trains the model of a fold in rounds. A round reads the maps of the previous round. The
source of the maps (`circle.maps`) determines the actions:

    in_sample   the model maps the rows of its training
    cross_fit   an inner model for every part, trained without the part, maps the rows of the part
    recycle     no stored maps: the network reads its own output within a training step
    corrupted   no stored maps: the network reads reference masks with random errors
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import field
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from mtil.config import STRICT, CircleConfig, NonNegativeInt
from mtil.errors import ConfigError


@dataclass(frozen=True, config=STRICT)
class Train:
    """Train the main model of a fold in a round, or the inner model without one part."""

    round: NonNegativeInt
    fold: NonNegativeInt
    part: NonNegativeInt | None = None
    kind: Literal["train"] = field(default="train", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"training of {_describe(self)}"


@dataclass(frozen=True, config=STRICT)
class WriteMaps:
    """Write the maps of a fold's training rows, or of the rows of one part."""

    round: NonNegativeInt
    fold: NonNegativeInt
    part: NonNegativeInt | None = None
    kind: Literal["write_maps"] = field(default="write_maps", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"maps of {_describe(self)}"


@dataclass(frozen=True, config=STRICT)
class Evaluate:
    """Score the test rows of a fold, for every pass."""

    round: NonNegativeInt
    fold: NonNegativeInt
    kind: Literal["evaluate"] = field(default="evaluate", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"evaluation of {_describe(self)}"


@dataclass(frozen=True, config=STRICT)
class Summarise:
    """Combine the figures of all folds of a round."""

    round: NonNegativeInt
    kind: Literal["summarise"] = field(default="summarise", kw_only=True, repr=False)

    def __str__(self) -> str:
        return f"summary of round {self.round}"


_MAX_ACTIONS = 100_000
"""Upper bound on a plan; every reader of the ledger holds the plan in memory."""

Action = Annotated[Train | WriteMaps | Evaluate | Summarise, Field(discriminator="kind")]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CirclePlan:
    """The configuration and folds of a circle run; fixed when the run begins."""

    circle: CircleConfig
    folds: tuple[NonNegativeInt, ...]
    """The folds to train, ascending and without duplicates."""

    def __post_init__(self) -> None:
        if not self.folds or list(self.folds) != sorted(set(self.folds)):
            raise ConfigError(f"The folds must be ascending, but got {list(self.folds)[:10]}.")
        # An upper bound: a fold has a main training and an evaluation; a part adds a training and
        # map writing.
        actions_per_fold = 2 + 2 * (self.circle.num_parts if self._cross_fit else 1)
        max_num_actions = self.circle.num_rounds * (len(self.folds) * actions_per_fold + 1)
        if max_num_actions > _MAX_ACTIONS:
            raise ConfigError(
                f"A circle run must have at most {_MAX_ACTIONS} actions, but its rounds, folds and "
                f"parts make {max_num_actions}; lower `circle.num_rounds`."
            )

    @classmethod
    def of(cls, circle: CircleConfig, folds: Iterable[int]) -> "CirclePlan":
        """Plan the rounds of the folds, given in any order.

        Raises:
            ConfigError: if `folds` is empty.
        """
        unique_folds = tuple(sorted(set(folds)))
        if not unique_folds:
            raise ConfigError(
                "A circle run must have a fold, but got none; name folds with --folds."
            )
        return cls(circle=circle, folds=unique_folds)

    @property
    def parts(self) -> tuple[int | None, ...]:
        """The parts mapped separately; `(None,)` if all training rows are mapped at once."""
        return tuple(range(self.circle.num_parts)) if self._cross_fit else (None,)

    @property
    def last_round(self) -> int:
        """The last round, which writes no maps."""
        return self.circle.num_rounds - 1

    @property
    def _cross_fit(self) -> bool:
        return self.circle.maps == "cross_fit"


def max_parallel_trainings(plan: CirclePlan) -> int:
    """Return the largest number of trainings in a round, which may run side by side."""
    trainings = Counter(action.round for action in list_actions(plan) if isinstance(action, Train))
    return max(trainings.values())


def find_warm_start(plan: CirclePlan, action: Train) -> Train | None:
    """Return the training that provides the initial weights; None without a warm start."""
    if action.round == 0 or not plan.circle.warm_start:
        return None
    return Train(action.round - 1, action.fold, action.part)


def find_map_writers(plan: CirclePlan, action: Action) -> tuple[WriteMaps, ...]:
    """Return the actions that write the maps read by `action`, ordered by part.

    A training reads the maps of its rows. A map writer reads the maps of the previous round.
    An evaluation reads no maps: test images never have a stored map.
    """
    if not plan.circle.stores_maps or action.round == 0:
        return ()
    if isinstance(action, Train):
        parts = plan.parts if action.part is None else _other_parts(plan, action.part)
    elif isinstance(action, WriteMaps):
        parts = (action.part,)
    else:
        return ()
    return tuple(WriteMaps(action.round - 1, action.fold, part) for part in parts)


def find_models_used(plan: CirclePlan, action: Action) -> tuple[Train, ...]:
    """Return the trainings that provide the models run by an action, oldest round first."""
    # In a chain, the models of earlier rounds do the first passes over the validation images; the
    # model in training does the last pass.
    if isinstance(action, Train) and plan.circle.test == "chain":
        return tuple(
            Train(round_index, action.fold, action.part) for round_index in range(action.round)
        )
    if isinstance(action, WriteMaps):
        return (Train(action.round, action.fold, action.part),)
    if isinstance(action, Evaluate):
        first_round = 0 if plan.circle.test == "chain" else action.round
        return tuple(
            Train(round_index, action.fold) for round_index in range(first_round, action.round + 1)
        )
    return ()


def find_prerequisites(plan: CirclePlan, action: Action) -> tuple[Action, ...]:
    """Return the prerequisites of an action.

    A summary runs once every evaluation is finished or can no longer finish, and at least one is
    finished. All other actions need every prerequisite finished.
    """
    if isinstance(action, Summarise):
        return tuple(Evaluate(action.round, fold) for fold in plan.folds)
    prerequisites = find_models_used(plan, action)
    if isinstance(action, Train) and action.round > 0:
        previous = Train(action.round - 1, action.fold, action.part)
        needs_previous = not plan.circle.stores_maps or plan.circle.warm_start
        # In a chain, `find_models_used` may hold the training of the previous round already.
        prerequisites += (previous,) * (needs_previous and previous not in prerequisites)
    return (*prerequisites, *find_map_writers(plan, action))


def list_actions(plan: CirclePlan) -> tuple[Action, ...]:
    """Return all actions of a plan in topological order: prerequisites first."""
    return tuple(build_action_graph(plan))


@lru_cache(maxsize=8)
def build_action_graph(plan: CirclePlan) -> dict[Action, tuple[Action, ...]]:
    """Return the prerequisites of all actions, in topological order. Must not be modified."""
    # Cached: the coordinator asks for the graph with every decision.
    actions_in_order: list[Action] = []
    for round_index in range(plan.circle.num_rounds):
        for fold in plan.folds:
            mapped_parts = (
                plan.parts if plan.circle.stores_maps and round_index < plan.last_round else ()
            )
            inner_parts = [part for part in mapped_parts if part is not None]
            actions_in_order += [
                Train(round_index, fold),
                *(Train(round_index, fold, part) for part in inner_parts),
            ]
            actions_in_order += [WriteMaps(round_index, fold, part) for part in mapped_parts]
            actions_in_order.append(Evaluate(round_index, fold))
        actions_in_order.append(Summarise(round_index))
    return {action: find_prerequisites(plan, action) for action in actions_in_order}


def _describe(action: Train | WriteMaps | Evaluate) -> str:
    part = None if isinstance(action, Evaluate) else action.part
    return f"round {action.round}, fold {action.fold}" + ("" if part is None else f", part {part}")


def _other_parts(plan: CirclePlan, part: int) -> tuple[int | None, ...]:
    return tuple(candidate for candidate in plan.parts if candidate != part)
