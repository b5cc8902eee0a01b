"""Cluster files are read with bounds: a small file must not take all memory, or for ever."""

import math
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UsageError

MAX_BYTES = 1 << 20
"""Kubernetes keeps no larger object; the files of this project have 8 KiB at most."""
_MAX_DEPTH = 64
_MAX_NODES = 50_000
"""Of all documents of a file, with each alias counted as what it stands for."""
_MAX_NUMBER = 2**63

# Written in C and several times as fast, where PyYAML has been built with it.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError)
"""What PyYAML raises, beside its own errors and ValueError, of values such as `!!timestamp x`."""


def read(path: Path) -> list[Any]:
    """Return the documents of a YAML file, those that are empty aside.

    Raises:
        UsageError: if it is no regular file, cannot be read, is larger than `MAX_BYTES`, or as
            `documents` says.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"A cluster file must be a regular file, but {path} is not.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"A cluster file must be readable, but {path} is not: {error}.") from error
    if len(data) > MAX_BYTES:
        raise UsageError(f"A cluster file must have at most 1 MiB, but {path} has more.")
    return documents(text, f"A cluster file must be YAML, but {path} is not")


def documents(text: str, wrong: str) -> list[Any]:
    """Return the documents of a YAML text, those that are empty aside.

    Args:
        text: the text.
        wrong: how the error begins that says what is wrong with it.

    Raises:
        UsageError: if it is not YAML, is nested or repeated by aliases beyond reason, or has a
            key that is no text, or a value that no cluster file needs.
    """
    try:
        _count(text)
        found = [one for one in yaml.load_all(text, _Parser) if one is not None]
        for one in found:
            _look_at(one)
    except yaml.YAMLError as error:
        raise UsageError(f"{wrong}: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UsageError(f"{wrong}: it is nested too deeply.") from None
    except ValueError as error:
        raise UsageError(f"{wrong}: {_short(str(error))}.") from error
    except _MALFORMED as error:
        raise UsageError(f"{wrong}: it has a value that does not fit its tag.") from error
    return found


def _count(text: str) -> None:
    """Refuse what would be large when it is made, before anything is made.

    Raises:
        ValueError: if it is.
    """
    sizes: dict[str | None, int] = {}  # of what has an anchor, once it is complete
    open_: list[tuple[str | None, int]] = []  # anchors of what is not, and the count before each
    total = 0
    for event in yaml.parse(text, _Parser):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"*{event.anchor} is within what it stands for")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            open_ += [(event.anchor, total)] * isinstance(event, yaml.CollectionStartEvent)
            total += 1
            sizes[event.anchor] = 1
        if len(open_) > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
        if total > _MAX_NODES:
            raise ValueError(f"it has more than {_MAX_NODES} values, aliases counted")


def _look_at(document: Any) -> None:
    """Refuse values that no cluster file needs, and that rules would stumble over.

    Raises:
        ValueError: if there is one.
    """
    for key, value in _values(document):
        if isinstance(value, str):
            strange = next((c for c in value if _is_strange(c)), None)
            if strange is not None:
                raise ValueError(f"`{_short(key)}` has the character U+{ord(strange):04X}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{_short(key)}` must be a finite number")
        elif isinstance(value, int | float) and abs(value) >= _MAX_NUMBER:
            raise ValueError(f"`{_short(key)}` must be a number below 2^63")
        elif isinstance(value, set | bytes):
            raise ValueError(f"`{_short(key)}` must be plain YAML, but is a {type(value).__name__}")


def _values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if not isinstance(name, str):
                raise ValueError(f"the key {_short(repr(name))} must be text; put it in quotes")
            yield key, name
            yield from _values(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _values(value, f"{key}[{index}]")
    else:
        yield key, node


def _is_strange(character: str) -> bool:
    """Say whether a character can neither be printed nor be part of a command or a path."""
    return character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cs")


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 120 else plain[:119] + "…"
