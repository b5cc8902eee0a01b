"""Robust output: escape unencodable characters, and exit quietly if the reader has left."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

Main = Callable[..., int]


def with_safe_output(main: Main) -> Main:
    """Escape characters that stdout and stderr cannot encode. Return 1 if writing fails."""

    @wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        streams = [
            _WatchedStream(stream) for stream in (sys.stdout, sys.stderr) if stream is not None
        ]
        try:
            code = main(arguments)
        # argparse raises SystemExit, such as after `--help`.
        except (SystemExit, OSError):
            if _check_streams(streams):
                raise
            return 1
        else:
            return code if _check_streams(streams) else code or 1
        finally:
            for stream in streams:
                stream.restore()

    return run


class _WatchedStream:
    """Records the last error of writing to a stream."""

    # The caller may suppress the error, as argparse does. On an unbuffered stream, a later flush
    # does not raise the error again.

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.error: OSError | None = None
        stream.write, stream.flush = self._record(stream.write), self._record(stream.flush)

    def restore(self) -> None:
        """Restore the stream's own methods."""
        del self.stream.write, self.stream.flush

    def check(self) -> OSError | None:
        """Flush the stream and return its error, if any. After an error, discard later output."""
        with suppress(OSError):
            self.stream.flush()
        if self.error is not None:
            # Python flushes once more at exit and would print an error then.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        return self.error

    def _record(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            try:
                return method(*arguments)
            except OSError as error:
                self.error = error
                raise

        return call


def _check_streams(streams: Sequence[_WatchedStream]) -> bool:
    """Return whether all output was written. Print the first error, if any, to stderr."""
    # A reader such as `head` closes the pipe on purpose, so a broken pipe is not reported.
    errors = [error for stream in streams if (error := stream.check()) is not None]
    for error in errors[:1]:
        if not isinstance(error, BrokenPipeError):
            # If stderr fails too, the exit code still tells of the error.
            with suppress(OSError):
                sentence = f"cluster: The output cannot be written: {error.strerror}."
                print(sentence, file=sys.stderr)  # noqa: T201
    return not errors
