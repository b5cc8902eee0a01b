"""Read cluster files within limits: a small file must not use all memory or take for ever."""

import math
import stat
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.errors import UsageError

MAX_CLUSTER_FILE_BYTES = 1 << 20
"""Largest file in bytes. Kubernetes stores no larger object; mtil's files have at most 8 KiB."""
_MAX_DEPTH = 64
_MAX_NODES = 50_000
"""Most values in all documents of a file, with aliases expanded."""
_MAX_NUMBER = 2**63

# The C parser is several times as fast, but PyYAML may be built without it.
_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError)
"""Errors of PyYAML for values such as `!!timestamp x`, beside YAMLError and ValueError."""


def read_yaml_file(path: Path) -> list[Any]:
    """Return the non-empty documents of a YAML file.

    Raises:
        UsageError: if the file is not a regular file, cannot be read, is larger than `MAX_BYTES`,
            or is not valid for `documents`.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UsageError(f"A cluster file must be a regular file, but {path} is not.")
        # One byte more than the limit shows a larger file, without reading all of it.
        with path.open("rb") as file:
            data = file.read(MAX_CLUSTER_FILE_BYTES + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"A cluster file must be readable, but {path} is not: {error}.") from error
    if len(data) > MAX_CLUSTER_FILE_BYTES:
        raise UsageError(f"A cluster file must have at most 1 MiB, but {path} has more.")
    return parse_yaml_documents(text, f"A cluster file must be YAML, but {path} is not")


def parse_yaml_documents(text: str, wrong: str) -> list[Any]:
    """Return the non-empty documents of a YAML text.

    Args:
        text: the text.
        wrong: start of the error message.

    Raises:
        UsageError: if the text is not YAML, has too many levels or expanded aliases, a key that
            is not text, or a value unknown to cluster files.
    """
    try:
        _check_size(text)
        documents = [doc for doc in yaml.load_all(text, _Parser) if doc is not None]
        for document in documents:
            _check_values(document)
    except yaml.YAMLError as error:
        raise UsageError(f"{wrong}: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise UsageError(f"{wrong}: too many nested levels.") from None
    except ValueError as error:
        raise UsageError(f"{wrong}: {_shorten(str(error))}.") from error
    except _MALFORMED as error:
        raise UsageError(f"{wrong}: a value does not fit its tag.") from error
    return documents


def _check_size(text: str) -> None:
    """Check depth and number of values before any object is created.

    Raises:
        ValueError: if the text is nested too deeply, has too many values, or is recursive.
    """
    # Number of values by anchor, for complete collections.
    sizes: dict[str | None, int] = {}
    # Anchors of open collections, each with the number of values before the collection.
    open_: list[tuple[str | None, int]] = []
    total = 0
    for event in yaml.parse(text, _Parser):
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_.pop()
            sizes[anchor] = total - before
        elif isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_):
                raise ValueError(f"*{event.anchor} refers to a collection around itself")
            total += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.NodeEvent):
            open_ += [(event.anchor, total)] * isinstance(event, yaml.CollectionStartEvent)
            total += 1
            sizes[event.anchor] = 1
        if len(open_) > _MAX_DEPTH:
            raise ValueError(f"more than {_MAX_DEPTH} nested levels")
        if total > _MAX_NODES:
            raise ValueError(f"more than {_MAX_NODES} values, with aliases expanded")


def _check_values(document: Any) -> None:
    """Refuse values unknown to cluster files, which would break the rules.

    Raises:
        ValueError: if a value is a set, bytes, an extreme number, or has a control character.
    """
    for key, value in _walk_values(document):
        if isinstance(value, str):
            control = next((c for c in value if _is_control(c)), None)
            if control is not None:
                raise ValueError(f"`{_shorten(key)}` has the character U+{ord(control):04X}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{_shorten(key)}` must be a finite number")
        elif isinstance(value, int | float) and abs(value) >= _MAX_NUMBER:
            raise ValueError(f"`{_shorten(key)}` must be a number below 2^63")
        elif isinstance(value, set | bytes):
            raise ValueError(
                f"`{_shorten(key)}` must be plain YAML, but is a {type(value).__name__}"
            )


def _walk_values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for name, value in node.items():
            if not isinstance(name, str):
                raise ValueError(f"the key {_shorten(repr(name))} must be text; put it in quotes")
            yield key, name
            yield from _walk_values(value, f"{key}.{name}" if key else name)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _walk_values(value, f"{key}[{index}]")
    else:
        yield key, node


def _is_control(character: str) -> bool:
    """Return whether a character is a control character or a surrogate, except whitespace."""
    return character not in "\n\r\t" and unicodedata.category(character) in ("Cc", "Cs")


def _shorten(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= 120 else plain[:119] + "…"
