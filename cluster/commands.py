"""Parse shell commands of cluster files: variables set, and `ray start` commands."""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_COMMENT = re.compile(r"(?m)(?:^|(?<=\s))#.*$")
_SUBSTITUTION = re.compile(r"\$\([^()]*\)")
_SEPARATORS = ";&|()\n"
_SEPARATOR_SET = frozenset(_SEPARATORS)


@dataclass(frozen=True)
class RayStart:
    """A `ray start` command: options and environment variables. The last value of a name counts."""

    options: dict[str, str]
    """Values by option, such as `--port`; an empty string for an option without a value."""
    variables: dict[str, str] = field(default_factory=dict)


def split_statements(command: str) -> Iterator[list[str]]:
    """Yield the words of each statement, without quotes and comments."""
    # Remove comments here: shlex would treat a `#` inside a word as a comment too.
    text = _COMMENT.sub("", command.replace("\\\n", " "))
    while (plain := _SUBSTITUTION.sub("$OUTPUT", text)) != text:
        text = plain
    lexer = shlex.shlex(text, posix=True, punctuation_chars=_SEPARATORS)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t\r", True, ""
    try:
        words = list(lexer)
    # A quote is not closed, as in a here-document.
    except ValueError:
        words = text.split()
    statement: list[str] = []
    for word in words:
        if _SEPARATOR_SET.issuperset(word):
            if statement:
                yield statement
            statement = []
        else:
            statement.append(word)
    if statement:
        yield statement


def find_ray_starts(command: str, given: Mapping[str, str] | None = None) -> Iterator[RayStart]:
    """Yield every `ray start` in a command or script.

    Args:
        command: shell command.
        given: variables set before the command.
    """
    variables = dict(given or {})
    for words in split_statements(command):
        position = _find_ray_start(words)
        prefix = words if position is None else words[:position]
        matches = [_ASSIGNMENT.fullmatch(word) for word in prefix]
        assigned = {match[1]: match[2] for match in matches if match}
        # Assignments before a command hold for the command only; plain ones and exports stay.
        is_lasting = words[0] == "export" or all(matches)
        if position is not None:
            yield RayStart(_parse_options(words[position + 2 :]), variables | assigned)
        if is_lasting:
            variables |= assigned
        if words[0] == "unset":
            variables = {name: v for name, v in variables.items() if name not in words}


def _find_ray_start(words: list[str]) -> int | None:
    for index, word in enumerate(words[:-1]):
        if PurePosixPath(word).name == "ray" and words[index + 1] == "start":
            return index
    return None


def _parse_options(words: list[str]) -> dict[str, str]:
    options = {}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        if word.startswith("--"):
            name, sign, value = word.partition("=")
            options[name] = value if sign or following.startswith("-") else following
    return options
