"""Search space: configuration keys, their possible values, and conditions between keys.

The space is define-by-run: a key is suggested only where the key has an effect, given the values
chosen before. Every name is a dotted configuration key, and every value is written as on a command
line. A trial is therefore a list of overrides. Imports no Ray.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from mtil.config import Config, apply_overrides, config_to_dict
from mtil.documents import flatten_keys, format_value, shorten_text
from mtil.errors import ConfigError

KeyValue = bool | int | float | str
"""A value of a key. Lists are stored as command-line text, such as `[32, 16]`."""


class SuggestingTrial(Protocol):
    """Methods of an Optuna trial used by a space."""

    def suggest_categorical(self, name: str, choices: Sequence[KeyValue]) -> Any:
        """Choose one of several values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Choose a number in a range, both ends included."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Choose an integer in a range, both ends included."""


@dataclass(frozen=True)
class ChoiceDomain:
    """Domain of several listed values."""

    values: tuple[KeyValue, ...]

    def suggest(self, trial: SuggestingTrial, key: str) -> KeyValue:
        """Suggest one of the values."""
        value: KeyValue = trial.suggest_categorical(key, self.values)
        return value

    def holds(self, value: Any) -> bool:
        """Return whether a value belongs to the domain."""
        return any(_is_same(known, value) for known in self.values)

    def narrowed(self, key: str, wanted: Any) -> "ChoiceDomain":
        """Return a domain with only the wanted values.

        Raises:
            ConfigError: if a wanted value is not in the domain, or the list is empty.
        """
        values = (
            [_as_typed(item) for item in wanted]
            if isinstance(wanted, list)
            else [_as_typed(wanted)]
        )
        # A list can also be a single value, such as the levels [32, 16].
        if isinstance(wanted, list) and self.holds(_as_typed(wanted)):
            values = [_as_typed(wanted)]
        if not values:
            raise ConfigError(f"`{key}` must have at least one value, but got an empty list.")
        for value in values:
            if not self.holds(value):
                raise ConfigError(
                    f"`{key}` can be narrowed to some of {_join_values(self.values)}, but got "
                    f"{format_value(value)}."
                )
        return ChoiceDomain(
            tuple(known for known in self.values if any(_is_same(known, v) for v in values))
        )


@dataclass(frozen=True)
class RangeDomain:
    """Domain of numbers between two ends, both included."""

    low: float
    high: float
    log: bool = False

    def suggest(self, trial: SuggestingTrial, key: str) -> KeyValue:
        """Suggest a number."""
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        """Return whether a value lies in the range."""
        return _is_number(value) and self.low <= value <= self.high

    def narrowed(self, key: str, wanted: Any) -> "RangeDomain":
        """Return a narrower range: a list of two numbers, or one number as both ends.

        Raises:
            ConfigError: if the wanted range is empty or exceeds the domain.
        """
        low, high = _parse_ends(key, wanted)
        self._check_ends(key, low, high)
        return RangeDomain(float(low), float(high), self.log)

    def _check_ends(self, key: str, low: float, high: float) -> None:
        if not (self.low <= low and high <= self.high):
            raise ConfigError(
                f"`{key}` can be narrowed to a range within {self.low:g} to {self.high:g}, but got "
                f"{low:g} to {high:g}."
            )


@dataclass(frozen=True)
class IntegerDomain:
    """Domain of integers between two ends, both included."""

    low: int
    high: int

    def suggest(self, trial: SuggestingTrial, key: str) -> KeyValue:
        """Suggest an integer."""
        return trial.suggest_int(key, self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Return whether a value is an integer in the range."""
        return isinstance(value, int) and RangeDomain(self.low, self.high).holds(value)

    def narrowed(self, key: str, wanted: Any) -> "IntegerDomain":
        """Return a narrower range: a list of two integers, or one integer as both ends.

        Raises:
            ConfigError: if the wanted range is empty, exceeds the domain or has a fraction.
        """
        low, high = _parse_ends(key, wanted)
        RangeDomain(self.low, self.high)._check_ends(key, low, high)
        if low != int(low) or high != int(high):
            raise ConfigError(f"`{key}` must be a whole number, but got {format_value(wanted)}.")
        return IntegerDomain(int(low), int(high))


Domain = ChoiceDomain | RangeDomain | IntegerDomain


@dataclass(frozen=True)
class Dimension:
    """A configuration key to search, with its domain and conditions."""

    key: str
    domain: Domain
    when: Mapping[str, tuple[KeyValue, ...]] = field(default_factory=dict)
    """Conditions for an effect: keys with the required values. All conditions must hold."""


_ATTENTION_KINDS = ("self", "cross", "both")
_YES_OR_NO = ChoiceDomain((True, False))
_CHAIN_MAPS = ChoiceDomain(("in_sample", "cross_fit"))
"""Sources of maps for a chain test, which reads the maps of earlier rounds."""
_NO_BASELINE: Mapping[str, tuple[KeyValue, ...]] = {"model.baseline": (False,)}
"""The baseline lacks attention, aggregation and prior."""
_WITH_ATTENTION: Mapping[str, tuple[KeyValue, ...]] = {
    **_NO_BASELINE,
    "model.attention.kind": _ATTENTION_KINDS,
}

SUBSPACES: Mapping[str, tuple[Dimension, ...]] = {
    "attention": (
        Dimension("model.attention.kind", ChoiceDomain(("none", *_ATTENTION_KINDS)), _NO_BASELINE),
        Dimension(
            "model.attention.form", ChoiceDomain(("location", "semantic", "both")), _WITH_ATTENTION
        ),
        Dimension(
            "model.attention.levels",
            ChoiceDomain(("[32]", "[32, 16]", "[32, 16, 8]")),
            _WITH_ATTENTION,
        ),
        Dimension("model.attention.width", ChoiceDomain((32, 64, 96, 128)), _WITH_ATTENTION),
        Dimension("model.attention.num_heads", ChoiceDomain((2, 4, 8)), _WITH_ATTENTION),
        Dimension(
            "model.attention.direction",
            ChoiceDomain(("both", "seg_to_cls", "cls_to_seg")),
            {**_NO_BASELINE, "model.attention.kind": ("cross", "both")},
        ),
        Dimension(
            "model.attention.fusion",
            ChoiceDomain(("gate", "concat", "sum")),
            {**_NO_BASELINE, "model.attention.kind": ("both",)},
        ),
    ),
    "aggregation": (
        Dimension(
            "model.aggregation.kind", ChoiceDomain(("fab", "se", "eca", "concat")), _NO_BASELINE
        ),
        Dimension(
            "model.aggregation.reduction",
            ChoiceDomain((4, 8, 16)),
            {**_NO_BASELINE, "model.aggregation.kind": ("fab", "se")},
        ),
    ),
    "prior": (
        Dimension("model.prior.stem", _YES_OR_NO, _NO_BASELINE),
        Dimension("model.prior.aggregation", _YES_OR_NO, _NO_BASELINE),
        Dimension(
            "model.prior.attention",
            _YES_OR_NO,
            {**_WITH_ATTENTION, "model.attention.form": ("location", "both")},
        ),
        Dimension("model.prior.dropout", RangeDomain(0.0, 0.6), _NO_BASELINE),
        Dimension("model.prior.roughen", RangeDomain(0.0, 0.8), _NO_BASELINE),
    ),
    "circle": (
        Dimension("circle.maps", ChoiceDomain(("in_sample", "cross_fit", "recycle", "corrupted"))),
        Dimension("circle.num_passes", IntegerDomain(1, 4), {"circle.test": ("passes",)}),
    ),
    "loss": (
        Dimension("loss.weighting", ChoiceDomain(("fixed", "uncertainty"))),
        Dimension(
            "loss.segmentation", RangeDomain(0.5, 2.0, log=True), {"loss.weighting": ("fixed",)}
        ),
        Dimension(
            "loss.classification", RangeDomain(0.05, 2.0, log=True), {"loss.weighting": ("fixed",)}
        ),
        Dimension("loss.dice", RangeDomain(0.2, 0.8)),
        Dimension("loss.boundary", RangeDomain(0.0, 1.0)),
        Dimension("loss.deep_supervision", RangeDomain(0.0, 0.8)),
        Dimension("loss.classification_kind", ChoiceDomain(("cross_entropy", "focal"))),
        Dimension(
            "loss.focal_gamma", RangeDomain(0.5, 4.0), {"loss.classification_kind": ("focal",)}
        ),
    ),
    "optimiser": (
        Dimension("train.learning_rate", RangeDomain(1e-4, 5e-3, log=True)),
        Dimension("train.encoder_learning_rate", RangeDomain(3e-5, 1e-3, log=True)),
        Dimension("train.weight_decay", RangeDomain(1e-4, 1e-1, log=True)),
        Dimension("train.ema_decay", ChoiceDomain((0.0, 0.9, 0.97, 0.99, 0.997))),
    ),
    "augment": (
        Dimension("augment.rotation", RangeDomain(0.0, 40.0)),
        Dimension("augment.scale", RangeDomain(0.0, 0.3)),
        Dimension("augment.translation", RangeDomain(0.0, 0.15)),
        Dimension("augment.brightness", RangeDomain(0.0, 0.3)),
        Dimension("augment.contrast", RangeDomain(0.0, 0.4)),
        Dimension("augment.gamma", RangeDomain(0.0, 0.4)),
        Dimension("augment.speckle", RangeDomain(0.0, 0.3)),
    ),
}
"""Dimensions by subspace name. A key precedes the keys with a condition on it."""

CIRCLE_SUBSPACES = ("prior", "circle")
"""Subspaces with an effect only where a trial is a whole circle."""


@dataclass(frozen=True)
class SearchSpace:
    """Dimensions to search, and the configuration with the other keys."""

    dimensions: tuple[Dimension, ...]
    base: Config
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Overrides of the base configuration, from keys narrowed to a single value."""

    def suggest(self, trial: SuggestingTrial) -> dict[str, KeyValue]:
        """Suggest values for all dimensions with an effect, in order."""
        values = flatten_config(self.base)
        chosen: dict[str, KeyValue] = {}
        for dimension in self.dimensions:
            if _has_effect(dimension, values):
                value = dimension.domain.suggest(trial, dimension.key)
                chosen[dimension.key] = values[dimension.key] = value
        return chosen

    def has_variation(self) -> bool:
        """Return whether any dimension can have an effect."""
        domains = {dimension.key: dimension.domain for dimension in self.dimensions}
        values = flatten_config(self.base)

        def is_possible(key: str, allowed: Sequence[KeyValue]) -> bool:
            domain = domains.get(key)
            return any(
                domain.holds(value) if domain else _is_same(value, values[key]) for value in allowed
            )

        return any(
            all(is_possible(key, allowed) for key, allowed in dimension.when.items())
            for dimension in self.dimensions
        )

    def default(self) -> dict[str, KeyValue] | None:
        """Return the point of the base configuration, or None if the space lacks the point."""
        values = flatten_config(self.base)
        point = {
            dimension.key: values[dimension.key]
            for dimension in self.dimensions
            if _has_effect(dimension, values)
        }
        is_inside = all(
            dimension.domain.holds(point[dimension.key])
            for dimension in self.dimensions
            if dimension.key in point
        )
        return point if is_inside else None


def make_space(
    base: Config, names: Sequence[str], narrowing: Mapping[str, Any] | None = None
) -> SearchSpace:
    """Return the space of several subspaces.

    Args:
        base: configuration with the values of all other keys.
        names: names of subspaces.
        narrowing: values by dotted key or in nested groups: a list of choices, the two ends of a
            range, or a single value to fix the key.

    Raises:
        ConfigError: if a name or a key is unknown, or narrowing leaves nothing to choose.
    """
    for name in names:
        if name not in SUBSPACES:
            raise ConfigError(
                f"`--space` must name some of {', '.join(SUBSPACES)}, but got {name!r}."
            )
    dimensions = {dimension.key: dimension for name in names for dimension in SUBSPACES[name]}
    if base.circle.test == "chain" and "circle.maps" in dimensions:
        dimensions["circle.maps"] = Dimension("circle.maps", _CHAIN_MAPS)
    fixed: dict[str, str] = {}
    for key, wanted in flatten_keys(narrowing or {}).items():
        key = key.replace("-", "_")
        if key not in dimensions:
            raise ConfigError(
                f"`{shorten_text(key)}` is not in the "
                f"space{_key_hint(key, list(dimensions), names)}."
            )
        domain = dimensions[key].domain.narrowed(key, wanted)
        # A single value is no dimension: the base configuration gets the value.
        if value := _only_value(domain):
            fixed[key] = format_override(value[0])
            del dimensions[key]
        else:
            dimensions[key] = Dimension(key, domain, dimensions[key].when)
    space = SearchSpace(tuple(dimensions.values()), apply_overrides(base, fixed), fixed)
    if not space.has_variation():
        raise ConfigError(
            "The search space has nothing to vary: every key is fixed, or has no effect in this "
            "configuration. Change --space or --narrow."
        )
    return space


def to_overrides(point: Mapping[str, KeyValue]) -> dict[str, str]:
    """Return a point as command-line overrides: text by dotted key."""
    return {key: format_override(value) for key, value in point.items()}


def format_override(value: KeyValue) -> str:
    """Return a value as written on a command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def flatten_config(config: Config) -> dict[str, Any]:
    """Return the values of a configuration by dotted key, with lists as text."""
    return {key: _as_typed(value) for key, value in flatten_keys(config_to_dict(config)).items()}


def _has_effect(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    return all(values[key] in allowed for key, allowed in dimension.when.items())


def _only_value(domain: Domain) -> tuple[KeyValue, ...]:
    """Return the single value of a domain in a tuple; empty for several values."""
    if isinstance(domain, ChoiceDomain):
        return domain.values if len(domain.values) == 1 else ()
    return (domain.low,) if domain.low == domain.high else ()


def _as_typed(value: Any) -> Any:
    return str(list(value)) if isinstance(value, list | tuple) else value


def _parse_ends(key: str, wanted: Any) -> tuple[float, float]:
    ends = [
        _parse_number(end) for end in (wanted if isinstance(wanted, list) else [wanted, wanted])
    ]
    if len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise ConfigError(
            f"`{key}` must be a number or the two ends of a range, but got {format_value(wanted)}."
        )
    if ends[0] > ends[1]:
        raise ConfigError(f"The range of `{key}` is empty: {ends[0]} to {ends[1]}.")
    return ends[0], ends[1]


def _parse_number(value: Any) -> Any:
    """Convert text to a float where possible."""
    # YAML 1.1 reads numbers such as 1e-4 as text.
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _is_same(value: KeyValue, candidate: Any) -> bool:
    """Return whether values are equal; 0 equals 0.0, but not False."""
    return value == candidate and isinstance(value, bool) == isinstance(candidate, bool)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # `isfinite` raises for integers too large for a float.
    return isinstance(value, int) or math.isfinite(value)


def _key_hint(key: str, known: Sequence[str], names: Sequence[str]) -> str:
    for name, dimensions in SUBSPACES.items():
        if name not in names and key in (dimension.key for dimension in dimensions):
            return f"; the key belongs to `{name}`, which --space does not name"
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean `{close[0]}`" if close else f", which has {', '.join(known)}"


def _join_values(values: Sequence[KeyValue]) -> str:
    return ", ".join(format_override(value) for value in values)
