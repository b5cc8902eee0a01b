"""Output that takes every letter, and ends the command quietly where nobody reads it."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

Main = Callable[..., int]


def written(main: Main) -> Main:
    """Escape what stdout and stderr cannot encode; return 1 where they cannot be written."""

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        streams = [_Watched(one) for one in (sys.stdout, sys.stderr) if one is not None]
        try:
            code = main(arguments)
        except (SystemExit, OSError):  # the first as after `--help`
            if _have_taken_all(streams):
                raise
            return 1
        else:
            return code if _have_taken_all(streams) else code or 1
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


def _have_taken_all(streams: Sequence[_Watched]) -> bool:
    """Say whether the streams have taken what was printed; if not, say why.

    Nobody is told where a reader such as `head` has left.
    """
    errors = [error for stream in streams if (error := stream.check()) is not None]
    for error in errors[:1]:
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):  # the exit code says it, too
                sentence = f"cluster: The output cannot be written: {error.strerror}."
                print(sentence, file=sys.stderr)  # noqa: T201
    return not errors
