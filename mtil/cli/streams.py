"""Safe text on stdout and stderr: escapes, JSON in any encoding, and failed writes."""

import io
import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from mtil.process.logs import replace_non_finite

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(11, 32), *range(127, 160))}
"""Control characters except tab and line feed: a terminal would execute them."""
_ESCAPES[0x2028], _ESCAPES[0x2029] = "\\u2028", "\\u2029"
_ESCAPES_IN_LINE = _ESCAPES | {ord("\n"): "\\n"}


P = TypeVar("P", bound=ArgumentParser)


def escape_controls(text: str, *, in_line: bool = True) -> str:
    r"""Replace control characters by escapes such as `\x1b`.

    Args:
        text: any text; a file name may hold control characters.
        in_line: also escape line feeds.
    """
    return text.translate(_ESCAPES_IN_LINE if in_line else _ESCAPES)


def format_json(values: Mapping[str, Any], encoding: str | None) -> str:
    """Return a one-line JSON object for an encoding (default UTF-8). NaN and infinity are null."""
    values = replace_non_finite(values)
    text = json.dumps(values, ensure_ascii=False)
    try:
        text.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(values)
    return text


def guard_output(
    answer: Callable[[P, Sequence[str] | None], int],
) -> Callable[[P, Sequence[str] | None], int]:
    """Wrap the function of a command line: check its arguments and the writes to its output.

    The wrapper returns 2 for an argument outside UTF-8. A failed write to stdout or stderr makes
    a successful command return 1.
    """

    @wraps(answer)
    def run(parser: P, arguments: Sequence[str] | None) -> int:
        _escape_unencodable()
        for word in sys.argv[1:] if arguments is None else arguments:
            if not _is_text(word):
                _complain(
                    f"{parser.prog}: Every argument must be text in UTF-8, but got {word!r}; "
                    f"{_suggest_fix(word)}."
                )
                return 2
        streams = [_Watched(sys.stdout), _Watched(sys.stderr)]
        try:
            code = answer(parser, arguments)
        except (SystemExit, OSError):
            # argparse raises SystemExit(0) after `--help`, also when nothing could be written.
            if _check_writes(streams, parser.prog):
                raise
            return 1
        else:
            return code if _check_writes(streams, parser.prog) else code or 1
        finally:
            for stream in streams:
                stream.leave()

    return run


class _Watched:
    """Wrapper of a stream that records the last `OSError` of a write or flush.

    argparse swallows write errors, and an unbuffered stream does not report an error again at
    exit. Without a record, such a command would end with code 0.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        stream.write, stream.flush = self._recording(stream.write), self._recording(stream.flush)

    def leave(self) -> None:
        """Restore the stream's own methods."""
        del self.stream.write, self.stream.flush

    def check(self) -> OSError | None:
        """Flush the stream and return the recorded error. After an error, discard later output."""
        with suppress(OSError):
            self.stream.flush()
        if self.error is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return self.error

    def _recording(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError as error:
                self.error = error
                raise

        return call


def _escape_unencodable() -> None:
    """Make stdout and stderr escape characters outside their encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # A shell can start a process without stdout or stderr (`>&-`): Python sets None.
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _check_writes(streams: Sequence[_Watched], program: str) -> bool:
    """Return whether all writes succeeded. If not, print the first error to stderr.

    A broken pipe is silent: the reader, such as `head`, left on purpose.
    """
    errors = [error for stream in streams if (error := stream.check()) is not None]
    for error in errors[:1]:
        if not isinstance(error, BrokenPipeError):
            _complain(f"{program}: The output cannot be written: {error.strerror}.")
    return not errors


def _complain(sentence: str) -> None:
    # If stderr fails as well, the exit code still reports the failure.
    with suppress(OSError):
        print(sentence, file=sys.stderr)  # noqa: T201


def _suggest_fix(word: str) -> str:
    """Return a fix for an argument outside UTF-8: rename the file or change the locale."""
    try:
        os.fsencode(word).decode()
    except UnicodeError:
        return "rename the file or folder"
    return "this locale cannot name it, so set PYTHONUTF8=1"


def _is_text(word: str) -> bool:
    """Return whether an argument is valid text, not bytes of another encoding."""
    # Python decodes foreign bytes in sys.argv to lone surrogates, which UTF-8 cannot encode.
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
