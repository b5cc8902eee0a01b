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

from mtil.process.logs import finite

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
                    f"{_way_out(word)}."
                )
                return 2
        streams = [_Watched(sys.stdout), _Watched(sys.stderr)]
        try:
            code = answer(parser, arguments)
        except (SystemExit, OSError):  # the first as after `--help`
            if _have_taken_all(streams, parser.prog):
                raise
            return 1
        else:
            return code if _have_taken_all(streams, parser.prog) else code or 1
        finally:
            for stream in streams:
                stream.leave()

    return run


class _Watched:
    """A stream, and the error by which it was lost, if it was.

    Who prints may keep the error back, as argparse does, and without a buffer it does not come
    again.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        stream.write, stream.flush = self._noting(stream.write), self._noting(stream.flush)

    def leave(self) -> None:
        """Leave the stream as it was."""
        del self.stream.write, self.stream.flush

    def check(self) -> OSError | None:
        """Return the error. After one, the stream writes to nobody."""
        with suppress(OSError):
            self.stream.flush()
        if self.error is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return self.error

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError as error:
                self.error = error
                raise

        return call


def _open() -> None:
    """Escape the letters that stdout and stderr cannot encode."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _have_taken_all(streams: Sequence[_Watched], program: str) -> bool:
    """Say whether the streams have taken what was printed; if not, say why.

    Nobody is told where a reader such as `head` has left.
    """
    errors = [error for stream in streams if (error := stream.check()) is not None]
    for error in errors[:1]:
        if not isinstance(error, BrokenPipeError):
            _complain(f"{program}: The output cannot be written: {error.strerror}.")
    return not errors


def _complain(sentence: str) -> None:
    with suppress(OSError):  # the exit code says it, too
        print(sentence, file=sys.stderr)  # noqa: T201


def _way_out(word: str) -> str:
    try:
        os.fsencode(word).decode()
    except UnicodeError:
        return "rename the file or folder"
    return "this locale cannot name it, so set PYTHONUTF8=1"


def _is_text(word: str) -> bool:
    """Say whether a word is what a person could type, and no bytes of another encoding."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
