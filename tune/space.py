"""What a search varies: configuration keys, the values that each may take, and when it matters.

Define-by-run: a dimension is asked for only where it has an effect, given what was chosen before
it. Every name is a dotted configuration key and every value what a person would type behind it,
so that a trial is a list of overrides and nothing else. No Ray.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtil.config import Config, to_dict, with_overrides
from mtil.documents import shortened, shown
from mtil.errors import ConfigError

Value = bool | int | float | str
"""A value of a dimension; lists are kept as they are typed, such as `[32, 16]`."""


class Suggests(Protocol):
    """The part of an Optuna trial that a space needs."""

    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Any:
        """Choose one of several values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number of a range."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose a whole number of a range."""


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Value, ...]

    def suggest(self, trial: Suggests, key: str) -> Value:
        """Ask for one of the values."""
        value: Value = trial.suggest_categorical(key, self.values)
        return value

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of them."""
        return any(_same(one, value) for one in self.values)

    def narrowed(self, key: str, wanted: Any) -> "Choice":
        """Return some of the values only; all of `wanted` must be among them."""
        values = [_typed(one) for one in wanted] if isinstance(wanted, list) else [_typed(wanted)]
        if isinstance(wanted, list) and self.holds(_typed(wanted)):
            values = [_typed(wanted)]  # the list is itself a value, such as the levels 32 and 16
        if not values:
            raise ConfigError(f"`{key}` must be left a value to search, but got an empty list.")
        for value in values:
            if not self.holds(value):
                raise ConfigError(
                    f"`{key}` can be narrowed to some of {_listed(self.values)}, but got "
                    f"{shown(value)}."
                )
        return Choice(tuple(one for one in self.values if any(_same(one, v) for v in values)))


@dataclass(frozen=True)
class Range:
    """A number between two others, both included."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: Suggests, key: str) -> Value:
        """Ask for a number."""
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Say whether a value lies in the range."""
        return _is_number(value) and self.low <= value <= self.high

    def narrowed(self, key: str, wanted: Any) -> "Range":
        """Return a narrower range: two numbers, or one that is both."""
        low, high = _ends(key, wanted)
        self._check(key, low, high)
        return Range(float(low), float(high), self.log)

    def _check(self, key: str, low: float, high: float) -> None:
        if not (self.low <= low and high <= self.high):
            raise ConfigError(
                f"`{key}` can be narrowed to a range within {self.low:g} to {self.high:g}, but got "
                f"{low:g} to {high:g}."
            )


@dataclass(frozen=True)
class Whole:
    """A whole number between two others, both included."""

    low: int
    high: int

    def suggest(self, trial: Suggests, key: str) -> Value:
        """Ask for a whole number."""
        return trial.suggest_int(key, self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Say whether a value lies in the range."""
        return isinstance(value, int) and Range(self.low, self.high).holds(value)

    def narrowed(self, key: str, wanted: Any) -> "Whole":
        """Return a narrower range: two whole numbers, or one that is both."""
        low, high = _ends(key, wanted)
        Range(self.low, self.high)._check(key, low, high)
        if low != int(low) or high != int(high):
            raise ConfigError(f"`{key}` must be a whole number, but got {shown(wanted)}.")
        return Whole(int(low), int(high))


Domain = Choice | Range | Whole


@dataclass(frozen=True)
class Dimension:
    """A configuration key that is varied."""

    key: str
    domain: Domain
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Keys and the values of theirs with which this one has an effect; all must hold."""


_ON = ("self", "cross", "both")
_YES_OR_NO = Choice((True, False))
_CHAINED_MAPS = Choice(("in_sample", "cross_fit"))
"""Where maps may come from if the test is a chain: a model's own output is none of it."""
_WHOLE: Mapping[str, tuple[Value, ...]] = {"model.baseline": (False,)}
"""With the baseline all that it lacks is switched off."""
_ATTENDS: Mapping[str, tuple[Value, ...]] = {**_WHOLE, "model.attention.kind": _ON}

SUBSPACES: Mapping[str, tuple[Dimension, ...]] = {
    "attention": (
        Dimension("model.attention.kind", Choice(("none", *_ON)), _WHOLE),
        Dimension("model.attention.form", Choice(("location", "semantic", "both")), _ATTENDS),
        Dimension("model.attention.levels", Choice(("[32]", "[32, 16]", "[32, 16, 8]")), _ATTENDS),
        Dimension("model.attention.width", Choice((32, 64, 96, 128)), _ATTENDS),
        Dimension("model.attention.num_heads", Choice((2, 4, 8)), _ATTENDS),
        Dimension(
            "model.attention.direction",
            Choice(("both", "seg_to_cls", "cls_to_seg")),
            {**_WHOLE, "model.attention.kind": ("cross", "both")},
        ),
        Dimension(
            "model.attention.fusion",
            Choice(("gate", "concat", "sum")),
            {**_WHOLE, "model.attention.kind": ("both",)},
        ),
    ),
    "aggregation": (
        Dimension("model.aggregation.kind", Choice(("fab", "se", "eca", "concat")), _WHOLE),
        Dimension(
            "model.aggregation.reduction",
            Choice((4, 8, 16)),
            {**_WHOLE, "model.aggregation.kind": ("fab", "se")},
        ),
    ),
    "prior": (
        Dimension("model.prior.stem", _YES_OR_NO, _WHOLE),
        Dimension("model.prior.aggregation", _YES_OR_NO, _WHOLE),
        Dimension(
            "model.prior.attention",
            _YES_OR_NO,
            {**_ATTENDS, "model.attention.form": ("location", "both")},
        ),
        Dimension("model.prior.dropout", Range(0.0, 0.6), _WHOLE),
        Dimension("model.prior.roughen", Range(0.0, 0.8), _WHOLE),
    ),
    "circle": (
        Dimension("circle.maps", Choice(("in_sample", "cross_fit", "recycle"))),
        Dimension("circle.num_passes", Whole(1, 4), {"circle.test": ("passes",)}),
    ),
    "loss": (
        Dimension("loss.weighting", Choice(("fixed", "uncertainty"))),
        Dimension("loss.segmentation", Range(0.5, 2.0, log=True), {"loss.weighting": ("fixed",)}),
        Dimension(
            "loss.classification", Range(0.05, 2.0, log=True), {"loss.weighting": ("fixed",)}
        ),
        Dimension("loss.dice", Range(0.2, 0.8)),
        Dimension("loss.boundary", Range(0.0, 1.0)),
        Dimension("loss.deep_supervision", Range(0.0, 0.8)),
        Dimension("loss.classification_kind", Choice(("cross_entropy", "focal"))),
        Dimension("loss.focal_gamma", Range(0.5, 4.0), {"loss.classification_kind": ("focal",)}),
    ),
    "optimiser": (
        Dimension("train.learning_rate", Range(1e-4, 5e-3, log=True)),
        Dimension("train.encoder_learning_rate", Range(3e-5, 1e-3, log=True)),
        Dimension("train.weight_decay", Range(1e-4, 1e-1, log=True)),
        Dimension("train.ema_decay", Choice((0.0, 0.9, 0.97, 0.99, 0.997))),
    ),
    "augment": (
        Dimension("augment.rotation", Range(0.0, 40.0)),
        Dimension("augment.scale", Range(0.0, 0.3)),
        Dimension("augment.translation", Range(0.0, 0.15)),
        Dimension("augment.brightness", Range(0.0, 0.3)),
        Dimension("augment.contrast", Range(0.0, 0.4)),
        Dimension("augment.gamma", Range(0.0, 0.4)),
        Dimension("augment.speckle", Range(0.0, 0.3)),
    ),
}
"""What can be searched, by name. A key that others depend on comes before them."""

OF_ROUNDS = ("prior", "circle")
"""Subspaces that matter only where a trial is a whole circle."""


@dataclass(frozen=True)
class Space:
    """Dimensions, and the configuration whose other keys stay as they are."""

    dimensions: tuple[Dimension, ...]
    base: Config
    fixed: Mapping[str, str] = field(default_factory=dict)
    """What narrowing has fixed in the base configuration."""

    def suggest(self, trial: Suggests) -> dict[str, Value]:
        """Ask a trial for the values of the dimensions that matter, one after the other."""
        values = flat(self.base)
        chosen: dict[str, Value] = {}
        for dimension in self.dimensions:
            if _matters(dimension, values):
                value = dimension.domain.suggest(trial, dimension.key)
                chosen[dimension.key] = values[dimension.key] = value
        return chosen

    def varies(self) -> bool:
        """Say whether any dimension can ever matter."""
        domains = {one.key: one.domain for one in self.dimensions}
        values = flat(self.base)

        def can_be(key: str, allowed: Sequence[Value]) -> bool:
            domain = domains.get(key)
            return any(domain.holds(one) if domain else _same(one, values[key]) for one in allowed)

        return any(
            all(can_be(key, allowed) for key, allowed in one.when.items())
            for one in self.dimensions
        )

    def default(self) -> dict[str, Value] | None:
        """Return the base configuration's own point, or None if the space does not hold it."""
        values = flat(self.base)
        point = {
            dimension.key: values[dimension.key]
            for dimension in self.dimensions
            if _matters(dimension, values)
        }
        held = all(one.domain.holds(point[one.key]) for one in self.dimensions if one.key in point)
        return point if held else None


def make(base: Config, names: Sequence[str], narrowing: Mapping[str, Any] | None = None) -> Space:
    """Return the space of some subspaces.

    Args:
        base: the configuration that the rest is taken from.
        names: of subspaces.
        narrowing: values by dotted key or in nested groups: a list of some choices, the two ends
            of a range, or one value that fixes the key.

    Raises:
        ConfigError: if a name or a key is unknown, or a key is left nothing to choose from.
    """
    for name in names:
        if name not in SUBSPACES:
            raise ConfigError(
                f"`--space` must name some of {', '.join(SUBSPACES)}, but got {name!r}."
            )
    dimensions = {one.key: one for name in names for one in SUBSPACES[name]}
    if base.circle.test == "chain" and "circle.maps" in dimensions:
        dimensions["circle.maps"] = Dimension("circle.maps", _CHAINED_MAPS)
    fixed: dict[str, str] = {}
    for key, wanted in _leaves(narrowing or {}).items():
        key = key.replace("-", "_")
        if key not in dimensions:
            raise ConfigError(
                f"`{shortened(key)}` is not in the space{_hint(key, list(dimensions), names)}."
            )
        domain = dimensions[key].domain.narrowed(key, wanted)
        if value := _only(domain):
            fixed[key] = as_text(value[0])
            del dimensions[key]
        else:
            dimensions[key] = Dimension(key, domain, dimensions[key].when)
    space = Space(tuple(dimensions.values()), with_overrides(base, fixed), fixed)
    if not space.varies():
        raise ConfigError(
            "A search must have something to vary, but every key is fixed, or has no effect with "
            "what the configuration fixes."
        )
    return space


def overrides(point: Mapping[str, Value]) -> dict[str, str]:
    """Return a point as what `--KEY VALUE` would be on a command line."""
    return {key: as_text(value) for key, value in point.items()}


def as_text(value: Value) -> str:
    """Return a value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def flat(config: Config) -> dict[str, Any]:
    """Return a configuration's values by dotted key, lists as they are typed."""
    return {key: _typed(value) for key, value in _leaves(to_dict(config)).items()}


def _matters(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    return all(values[key] in allowed for key, allowed in dimension.when.items())


def _only(domain: Domain) -> tuple[Value, ...]:
    """Return the one value that a domain has left, if it has only one."""
    if isinstance(domain, Choice):
        return domain.values if len(domain.values) == 1 else ()
    return (domain.low,) if domain.low == domain.high else ()


def _typed(value: Any) -> Any:
    return str(list(value)) if isinstance(value, list | tuple) else value


def _ends(key: str, wanted: Any) -> tuple[float, float]:
    ends = [_number(end) for end in (wanted if isinstance(wanted, list) else [wanted, wanted])]
    if len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise ConfigError(
            f"`{key}` must be a number or the two ends of a range, but got {shown(wanted)}."
        )
    if ends[0] > ends[1]:
        raise ConfigError(f"`{key}` must not have an empty range, but got {ends[0]} to {ends[1]}.")
    return ends[0], ends[1]


def _number(value: Any) -> Any:
    """Return what YAML 1.1 reads as text, such as 1e-4, as the number that it is."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _same(one: Value, other: Any) -> bool:
    """Say whether values are equal; 0 is 0.0, but not false."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)  # large integers overflow a float


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _hint(key: str, known: Sequence[str], names: Sequence[str]) -> str:
    for name, dimensions in SUBSPACES.items():
        if name not in names and key in (one.key for one in dimensions):
            return f"; it belongs to `{name}`, which --space does not name"
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean `{close[0]}`" if close else f", which has {', '.join(known)}"


def _listed(values: Sequence[Value]) -> str:
    return ", ".join(as_text(value) for value in values)
