"""Shell commands of a cluster file, read as far as rules need: what is set, and what is started."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_SUBSTITUTION = re.compile(r"\$\([^()]*\)")
_SEPARATORS = ";&|()\n"
_WIDE = frozenset(_SEPARATORS)


@dataclass(frozen=True)
class Start:
    """One `ray start`: its options, and the variables that it runs with; the last word counts."""

    options: dict[str, str]
    """By name, such as `--port`; an option without a value has an empty one."""
    variables: dict[str, str] = field(default_factory=dict)


def statements(command: str) -> Iterator[list[str]]:
    """Yield the words of each statement, without quotes and comments."""
    text = _COMMENT.sub("", command.replace("\\\n", " "))
    while (plain := _SUBSTITUTION.sub("$OUTPUT", text)) != text:
        text = plain
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    try:
        words = list(lexer)
    except ValueError:  # a quote that is not closed, as in a here-document
        words = text.split()
    statement: list[str] = []
    for word in words:
        if _WIDE.issuperset(word):
            if statement:
                yield statement
            statement = []
        else:
            statement.append(word)
    if statement:
        yield statement


def ray_starts(command: str, given: Mapping[str, str] | None = None) -> Iterator[Start]:
    """Yield every `ray start` of a command, which may be a script.

    Args:
        command: for a shell.
        given: variables that are set before it.
    """
    variables = dict(given or {})
    for words in statements(command):
        at = _ray_start(words)
        before = words if at is None else words[:at]
        found = [_ASSIGNMENT.fullmatch(word) for word in before]
        here = {match[1]: match[2] for match in found if match}
        stays = words[0] == "export" or all(found)
        if at is not None:
            yield Start(_options(words[at + 2 :]), variables | here)
        if stays:
            variables |= here
        if words[0] == "unset":
            variables = {name: v for name, v in variables.items() if name not in words}


def _ray_start(words: list[str]) -> int | None:
    for at, word in enumerate(words[:-1]):
        if PurePosixPath(word).name == "ray" and words[at + 1] == "start":
            return at
    return None


def _options(words: list[str]) -> dict[str, str]:
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            options[name] = value if sign or following.startswith("-") else following
    return options
