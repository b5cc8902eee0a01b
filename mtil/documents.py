"""Read JSON and YAML files within limits, and validate their values.

Files come from different versions, foreign programs and damaged disks. Size, nesting and length of
numbers are limited before Python objects are built: a small file cannot fill the memory. An error
message names the file, the key and a shortened value.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from mtil.errors import DataError, MtilError, TooLargeError

MAX_DEPTH = 32
"""Maximum nesting of arrays and objects; files of mtil have fewer than ten levels."""
MAX_DIGITS = 40
"""Maximum digits of an integer."""
MIB = 2**20
MAX_YAML_BYTES = 2**16
"""Maximum size of YAML. A full configuration has 3 KiB; the parser needs about 20 s for a MiB."""

# Possessive quantifiers (`++`, `*+`) never backtrack, so a broken string costs linear time.
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SUSPECT_ESCAPES = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""Escapes of NUL or of a possible half surrogate pair."""
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)"
)
"""Numbers treated as text by YAML 1.1, such as `1e-3` and `-.5`."""
_MAX_SHOWN = 60
"""Characters of a value in an error message."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hex, the form of fingerprints and digests."""
Value = TypeVar("Value")


class _Store(Protocol):
    def read(self, name: str, *, max_bytes: int | None = None) -> bytes: ...


class _Problem(ValueError):  # noqa: N818
    """A problem of a document: the predicate of a sentence about the file."""


@dataclass(frozen=True)
class Document:
    """Description of a file to read: name and remedy for error messages, and limits."""

    source: str
    """Path or URI; begins every message."""
    remedy: str
    """Advice at the end of every message, such as `prepare the data again`."""
    error: type[MtilError] = DataError
    """Class of raised errors."""
    max_bytes: int = MIB
    finite: bool = True
    """Refuse NaN and infinities."""

    def read(self, store: _Store, name: str) -> bytes:
        """Read an object of at most `max_bytes` bytes.

        Raises:
            NotFoundError: if the object does not exist.
            `error`: if the object is longer than `max_bytes`.
        """
        try:
            return store.read(name, max_bytes=self.max_bytes)
        except TooLargeError:
            self.refuse(f"must have at most {self.max_bytes} bytes, but has more")

    def json(self, data: bytes) -> Any:
        """Parse JSON.

        Raises:
            `error`: if the bytes are not UTF-8 JSON, are longer than `max_bytes`, nest deeper than
                `MAX_DEPTH`, repeat a key, or hold an integer above `MAX_DIGITS` digits, a
                non-finite number (with `finite`), NUL or a lone surrogate.
        """
        try:
            return self._parse_json(data)
        except _Problem as problem:
            self.refuse(str(problem))

    def object(self, data: bytes) -> dict[str, Any]:
        """Parse JSON with an object at the top level. See `json`."""
        values = self.json(data)
        if not isinstance(values, dict):
            self.refuse(f"must be a JSON object, but is {format_value(values)}")
        return values

    def lines(self, data: bytes) -> list[dict[str, Any]]:
        """Parse JSON Lines, an object per line. See `json`."""
        self.check_size(len(data))
        lines = data.splitlines()
        return [
            Document(
                f"Line {number} of {self.source}",
                self.remedy,
                self.error,
                self.max_bytes,
                self.finite,
            ).object(line)
            for number, line in enumerate(lines, start=1)
        ]

    def yaml(self, data: bytes | str) -> Any:
        """Parse YAML without aliases, of at most `MAX_YAML_BYTES` bytes. See `json`."""
        try:
            return _load_yaml(self._decode(data, min(self.max_bytes, MAX_YAML_BYTES)))
        except _Problem as problem:
            self.refuse(str(problem))
        except yaml.YAMLError as error:
            self.refuse(f"must be YAML, but is not: {_yaml_reason(error)}")
        except (ValueError, OverflowError, RecursionError):
            self.refuse("must be YAML, but holds a value that cannot be read")

    def validate(self, adapter: "TypeAdapter[Value]", values: Any) -> Value:
        """Validate parsed values strictly: a text or a boolean is no number.

        Raises:
            `error`: if a key is missing, unknown or wrong; names the first such key and the value.
        """
        # Validation goes through JSON: strict types then still accept lists for tuples and objects
        # for dataclasses.
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError):
            # Only values from outside this module, such as a checkpoint's, can be unfit for JSON.
            self.refuse("must hold plain values only")
        try:
            return adapter.validate_json(text, strict=True)
        except ValidationError as error:
            self.refuse(describe_validation_error(error))

    def refuse(self, problem: str) -> NoReturn:
        """Raise `error` with a predicate of the file, such as `must be JSON, but is not`."""
        raise self.error(f"{self.source} {problem}; {self.remedy}.") from None

    def check_size(self, size: int) -> None:
        """Raise `error` for a file longer than `max_bytes`."""
        if size > self.max_bytes:
            self.refuse(_too_long(self.max_bytes, size))

    def _decode(self, data: bytes | str, max_bytes: int) -> str:
        """Return the text without a byte order mark."""
        if len(data) > max_bytes:
            raise _Problem(_too_long(max_bytes, len(data)))
        if isinstance(data, str):
            return data.removeprefix("\ufeff")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Problem(f"must be UTF-8 text, but byte {error.start} is not") from None

    def _parse_json(self, data: bytes) -> Any:
        text = self._decode(data, self.max_bytes)
        # Before parsing, because deep nesting exhausts the parser's recursion.
        _check_depth(data)
        try:
            values = json.loads(
                text,
                object_pairs_hook=_build_object,
                parse_int=_parse_int,
                parse_float=_float_parser(self.finite),
                parse_constant=_constant_parser(self.finite),
            )
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise _Problem(f"must be JSON, but is not at {where}") from None
        # Walking all values is slow; only an escape can produce NUL or a surrogate.
        if _SUSPECT_ESCAPES.search(text):
            _check_texts(values)
        return values


def describe_validation_error(error: ValidationError) -> str:
    """Return the first error of a validation as a predicate: key, rule and value."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    # A check of several keys, such as `__post_init__`, has its own message.
    if isinstance(cause, MtilError):
        return f"is wrong: {str(cause).rstrip('.')}"
    key = ".".join(shorten_text(str(part)) for part in first["loc"]) or "the top level"
    rule = _rule(first["type"], first["msg"])
    got = "" if first["type"] == "missing" else f", but got {format_value(first['input'])}"
    return f"is wrong at `{key}`: {rule}{got}"


def format_value(value: object) -> str:
    """Format a value for a message: a shortened scalar, or the kind of a container."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, str):
        return repr(shorten_text(value))
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of many digits"
    return shorten_text(repr(value))


def shorten_text(text: str) -> str:
    """Cut a text to 60 characters, with an ellipsis if cut."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def flatten_keys(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted key, such as `train.num_epochs`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _rule(kind: str, message: str) -> str:
    """Return pydantic's message as the continuation of a sentence."""
    if kind == "missing":
        return "it is missing"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:].rstrip(".")


def _too_long(max_bytes: int, size: int) -> str:
    return f"must have at most {max_bytes} bytes, but has {size}"


def _check_depth(data: bytes) -> None:
    """Raise `_Problem` for nesting above `MAX_DEPTH`, without parsing."""
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise _Problem(f"must nest at most {MAX_DEPTH} levels deep, but nests deeper")


def _check_texts(values: Any) -> None:
    """Raise `_Problem` for texts with NUL (invalid in paths) or lone surrogates (no UTF-8)."""
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.keys()
            pending += value.values()
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and (
            "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)
        ):
            raise _Problem(
                f"must hold text without NUL and surrogates, but holds {format_value(value)}"
            )


def _build_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    # JSON parsers keep the last of two equal keys: the file would be read with a value missing.
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Problem(f"must not repeat a key, but has `{_repeated_key(pairs)}` twice")
    return values


def _repeated_key(pairs: Iterable[tuple[str, Any]]) -> str:
    counts = Counter(key for key, _ in pairs)
    return next(shorten_text(key) for key, count in counts.items() if count > 1)


def _parse_int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Problem(f"must hold integers of at most {MAX_DIGITS} digits, but has {len(text)}")
    return int(text)


def _float_parser(finite: bool) -> Callable[[str], float]:
    """Return a parser of JSON numbers that refuses an overflow to infinity if `finite`."""

    def parse(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise _Problem(f"must hold finite numbers, but holds {shorten_text(text)}")
        return value

    return parse


def _constant_parser(finite: bool) -> Callable[[str], float]:
    """Return a parser of `NaN`, `Infinity` and `-Infinity` that refuses all if `finite`."""

    def parse(text: str) -> float:
        if finite:
            raise _Problem(f"must hold finite numbers, but holds {text}")
        return float(text)

    return parse


class _Loader(yaml.SafeLoader):
    """Loader of plain YAML 1.1 values with the numbers of YAML 1.2."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node. Raise `_Problem` for an alias or nesting above `MAX_DEPTH`."""
        # Aliases of aliases let a few lines expand to gigabytes ("billion laughs").
        if self.check_event(yaml.AliasEvent):
            raise _Problem("must have no YAML aliases; write the values out")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Problem(f"must nest at most {MAX_DEPTH} levels deep, but nests deeper")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping of distinct text keys."""
        pairs = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
        for key, _ in pairs:
            if not isinstance(key, str):
                raise _Problem(f"must have texts as keys, but has {format_value(key)}")
        _build_object(pairs)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Construct an integer of at most `MAX_DIGITS` digits."""
        value: int = super().construct_yaml_int(node)
        if abs(value) >= 10**MAX_DIGITS:
            raise _Problem(f"must hold integers of at most {MAX_DIGITS} digits, but has more")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Construct a finite number."""
        value: float = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _Problem(f"must hold finite numbers, but holds {shorten_text(node.value)}")
        return value


_PREFIX = "tag:yaml.org,2002:"
# Without the resolver of timestamps, `2024-01-01` stays a text: JSON has no dates.
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, rule) for tag, rule in rules if tag != f"{_PREFIX}timestamp"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_PREFIX}float", _NUMBER, list("-+.0123456789"))
# Only constructors of JSON's types remain; sets, binary data and dates are refused.
_Loader.yaml_constructors = {
    tag: rule
    for tag, rule in yaml.SafeLoader.yaml_constructors.items()
    if tag in {None, *(f"{_PREFIX}{kind}" for kind in ("null", "bool", "str", "seq", "map"))}
}
_Loader.add_constructor(f"{_PREFIX}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_PREFIX}float", _Loader.construct_yaml_float)


def _load_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        values = loader.get_single_data()
    finally:
        loader.dispose()
    _check_texts(values)
    return values


def _yaml_reason(error: yaml.YAMLError) -> str:
    """Return the parser's reason with line and column."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    return f"{shorten_text(str(problem))}{where}"
