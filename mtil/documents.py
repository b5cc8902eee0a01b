"""Reads JSON and YAML files within bounds, and validates their values.

Files come from other versions, other programs and damaged disks. Size, nesting and the length of
numbers are bounded before Python objects are built, so that a small file cannot take unbounded
memory. Every error is one sentence that names the file, the key and a shortened value.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, NoReturn, Protocol, TypeVar

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from mtil.errors import DataError, MtilError, TooLargeError

MAX_DEPTH = 32
"""Levels of arrays and objects inside each other; mtil's own files have fewer than ten."""
MAX_DIGITS = 40
"""Digits of an integer."""
MIB = 2**20
MAX_YAML_BYTES = 2**16
"""A full configuration has 3 KiB; the YAML parser needs about 20 s for a MiB."""

_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
"""Escapes that may stand for half a surrogate pair, or for NUL."""
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?)"
)
"""Numbers that YAML 1.1 takes for text, such as `1e-3` and `-.5`."""
_LONGEST_SHOWN = 60

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A sha256 in lower-case hex, as mtil writes fingerprints and digests."""
Value = TypeVar("Value")


class _Store(Protocol):
    def read(self, name: str, *, max_bytes: int | None = None) -> bytes: ...


class _Problem(ValueError):  # noqa: N818
    """What is wrong with a document, as the predicate of a sentence about the file."""


@dataclass(frozen=True)
class Document:
    """A file to read: its name in errors, what to do if the file is wrong, and its bounds."""

    source: str
    """Path or URI, which begins every message."""
    remedy: str
    """Ends every message: what to do, such as `prepare the data again`."""
    error: type[MtilError] = DataError
    max_bytes: int = MIB
    finite: bool = True
    """Whether NaN and infinities are refused."""

    def read(self, store: _Store, name: str) -> bytes:
        """Read at most `max_bytes` bytes.

        Raises:
            NotFoundError: if there is no such object.
            `error`: if it is longer.
        """
        try:
            return store.read(name, max_bytes=self.max_bytes)
        except TooLargeError:
            self.refuse(f"must have at most {self.max_bytes} bytes, but has more")

    def json(self, data: bytes) -> Any:
        """Parse JSON.

        Raises:
            `error`: if the bytes are not UTF-8 JSON, are longer than `max_bytes`, nest deeper than
                `MAX_DEPTH`, repeat a key, or hold a number or a text that no mtil file can hold.
        """
        try:
            return self._parsed(data)
        except _Problem as problem:
            self.refuse(str(problem))

    def object(self, data: bytes) -> dict[str, Any]:
        """Parse JSON whose top level is an object. See `json`."""
        values = self.json(data)
        if not isinstance(values, dict):
            self.refuse(f"must be a JSON object, but is {shown(values)}")
        return values

    def lines(self, data: bytes) -> list[dict[str, Any]]:
        """Parse JSON Lines: one object a line. See `json`."""
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
        """Parse YAML without aliases. See `json`; the longest text is `MAX_YAML_BYTES`."""
        try:
            return _load_yaml(self._text(data, min(self.max_bytes, MAX_YAML_BYTES)))
        except _Problem as problem:
            self.refuse(str(problem))
        except yaml.YAMLError as error:
            self.refuse(f"must be YAML, but is not: {_yaml_reason(error)}")
        except (ValueError, OverflowError, RecursionError):
            self.refuse("must be YAML, but holds a value that cannot be read")

    def validate(self, adapter: "TypeAdapter[Value]", values: Any) -> Value:
        """Return parsed values as a validated type: no text or truth value passes for a number.

        Raises:
            `error`: naming the first key that is missing, unknown or wrong, and its value.
        """
        try:
            text = json.dumps(values)
        except (TypeError, ValueError, RecursionError):  # of values that another reader made
            self.refuse("must hold plain values alone, but holds something else")
        try:
            return adapter.validate_json(text, strict=True)
        except ValidationError as error:
            self.refuse(complaint(error))

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error with a predicate of the file, such as `must be JSON, but is not`."""
        raise self.error(f"{self.source} {problem}; {self.remedy}.") from None

    def check_size(self, size: int) -> None:
        """Refuse a file that is longer than `max_bytes`."""
        if size > self.max_bytes:
            self.refuse(_too_long(self.max_bytes, size))

    def _text(self, data: bytes | str, max_bytes: int) -> str:
        if len(data) > max_bytes:
            raise _Problem(_too_long(max_bytes, len(data)))
        if isinstance(data, str):
            return data.removeprefix("\ufeff")
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise _Problem(f"must be UTF-8 text, but byte {error.start} is not") from None

    def _parsed(self, data: bytes) -> Any:
        text = self._text(data, self.max_bytes)
        _check_depth(data)
        try:
            values = json.loads(
                text,
                object_pairs_hook=_object,
                parse_int=_int,
                parse_float=_float(self.finite),
                parse_constant=_constant(self.finite),
            )
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise _Problem(f"must be JSON, but is not at {where}") from None
        if _SUSPECT.search(text):
            _check_texts(values)
        return values


def complaint(error: ValidationError) -> str:
    """Return the first error of a validation as a predicate: the key, the rule and the value."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, MtilError):  # a check of several keys together
        return f"is wrong: {str(cause).rstrip('.')}"
    key = ".".join(shortened(str(part)) for part in first["loc"]) or "the top level"
    rule = _rule(first["type"], first["msg"])
    got = "" if first["type"] == "missing" else f", but got {shown(first['input'])}"
    return f"is wrong at `{key}`: {rule}{got}"


def shown(value: object) -> str:
    """Return a value as a message shows it: a scalar shortened, a container by its kind."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, str):
        return repr(shortened(value))
    if isinstance(value, int) and value.bit_length() > 128:
        return "an integer of many digits"
    return shortened(repr(value))


def shortened(text: str) -> str:
    """Return the beginning of a text, with an ellipsis if it has more."""
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


def _rule(kind: str, message: str) -> str:
    if kind == "missing":
        return "it is missing"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return message[:1].lower() + message[1:].rstrip(".")


def _too_long(most: int, size: int) -> str:
    return f"must have at most {most} bytes, but has {size}"


def _check_depth(data: bytes) -> None:
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    if max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > MAX_DEPTH:
        raise _Problem(f"must nest at most {MAX_DEPTH} levels deep, but nests deeper")


def _check_texts(values: Any) -> None:
    """Refuse NUL and lone surrogates, which neither paths nor UTF-8 can hold."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str) and (
            "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)
        ):
            raise _Problem(f"must hold text without NUL and surrogates, but holds {shown(value)}")


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _Problem(f"must have each key once, but has `{_repeated(pairs)}` twice")
    return values


def _repeated(pairs: Iterable[tuple[str, Any]]) -> str:
    counts = Counter(key for key, _ in pairs)
    return next(shortened(key) for key, count in counts.items() if count > 1)


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise _Problem(
            f"must hold integers of at most {MAX_DIGITS} digits, but one has {len(text)}"
        )
    return int(text)


def _float(finite: bool) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise _Problem(f"must hold finite numbers, but holds {shortened(text)}")
        return value

    return parse


def _constant(finite: bool) -> Callable[[str], float]:
    def parse(text: str) -> float:
        if finite:
            raise _Problem(f"must hold finite numbers, but holds {text}")
        return float(text)

    return parse


class _Loader(yaml.SafeLoader):
    """Plain values of YAML 1.1, with the numbers of YAML 1.2."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a node that is no alias and nests at most `MAX_DEPTH` levels deep."""
        if self.check_event(yaml.AliasEvent):
            raise _Problem("must have no YAML aliases, but has one; write the values out")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Problem(f"must nest at most {MAX_DEPTH} levels deep, but nests deeper")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping whose keys are texts, each there once."""
        pairs = [(self.construct_object(key, deep=True), None) for key, _ in node.value]
        for key, _ in pairs:
            if not isinstance(key, str):
                raise _Problem(f"must have texts as keys, but has {shown(key)}")
        _object(pairs)
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Construct an integer of at most `MAX_DIGITS` digits."""
        value: int = super().construct_yaml_int(node)
        if abs(value) >= 10**MAX_DIGITS:
            raise _Problem(f"must hold integers of at most {MAX_DIGITS} digits, but one has more")
        return value

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Construct a finite number."""
        value: float = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _Problem(f"must hold finite numbers, but holds {shortened(node.value)}")
        return value


_PREFIX = "tag:yaml.org,2002:"
_Loader.yaml_implicit_resolvers = {
    letter: [(tag, rule) for tag, rule in rules if tag != f"{_PREFIX}timestamp"]
    for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_PREFIX}float", _NUMBER, list("-+.0123456789"))
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
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    return f"{shortened(str(problem))}{where}"
