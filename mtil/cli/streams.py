"""stdout and stderr that take every letter, and what happens when nobody takes the output."""

import io
import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from mtil.logs import finite

_UNSHOWN = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Control characters but tab and line feed: a terminal would obey them."""
_UNSHOWN[0x2028], _UNSHOWN[0x2029] = "\\u2028", "\\u2029"
_IN_LINE = _UNSHOWN | {ord("\n"): "\\n"}


P = TypeVar("P", bound=ArgumentParser)


def shown(text: str, *, in_line: bool = True) -> str:
    r"""Return text as a person can be shown it: control characters become escapes such as `\x1b`.

    Args:
        text: which may hold the name of a file.
        in_line: whether line feeds are escaped, too.
    """
    return text.translate(_IN_LINE if in_line else _UNSHOWN)


def as_json(values: Mapping[str, Any], encoding: str | None) -> str:
    """Return a JSON object in one line that an encoding can hold; what is no number is null."""
    values = finite(values)
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(values)
    return text


def written(
    answer: Callable[[P, Sequence[str] | None], int],
) -> Callable[[P, Sequence[str] | None], int]:
    """Let a command print whatever there is to print, and end it where nobody takes the output."""

    @wraps(answer)
    def run(parser: P, arguments: Sequence[str] | None) -> int:
        _open()
        for word in sys.argv[1:] if arguments is None else arguments:
            if not _is_text(word):
                _complain(
                    f"{parser.prog}: Every argument must be text in UTF-8, but got {word!r}; "
                    "rename the file or folder."
                )
                return 2
        try:
            code = answer(parser, arguments)
            _flush()
        except SystemExit:  # as after `--help`
            if _has_taken_all(parser.prog):
                raise
            return 1
        except OSError:
            if _has_taken_all(parser.prog):
                raise
            return 1
        return code

    return run


def _open() -> None:
    """Escape the letters that stdout and stderr cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _has_taken_all(program: str) -> bool:
    """Say whether the streams have taken what was printed; if not, say why, and print no more.

    What could not be written stays in a stream's buffer, so that the error comes again. Nobody is
    told where a reader such as `head` has left.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            if not isinstance(error, BrokenPipeError):
                _complain(f"{program}: The output cannot be written: {error.strerror}.")
            return False
    return True


def _complain(sentence: str) -> None:
    with suppress(OSError):  # the exit code says it, too
        print(sentence, file=sys.stderr)  # noqa: T201


def _is_text(word: str) -> bool:
    """Say whether a word is what a person could type, and no bytes of another encoding."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
