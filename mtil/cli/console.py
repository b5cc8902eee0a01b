"""What a person sees: a progress bar on a terminal, plain lines elsewhere, JSON when asked."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mtil.cli.streams import as_json, shown

LINE_S = 10.0
"""Between two lines of progress where there is no terminal."""


class Output:
    """Progress and lines go to stderr with `--json`, which leaves stdout to the one object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.console = _Console(
            stderr=as_json, highlight=False, soft_wrap=True, markup=False, emoji=False
        )

    def line(self, text: str) -> None:
        """Print a line for a person."""
        self.console.print(self._shown(text, in_line=False))

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the command's one JSON object, if it was asked for."""
        if self._as_json:
            sys.stdout.write(as_json(values, sys.stdout.encoding) + "\n")
            sys.stdout.flush()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, numbers to the right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(head):
            table.add_column(
                self._shown(name), justify="right" if index else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*map(self._shown, row))
        self.console.print(table)

    def _shown(self, text: str, *, in_line: bool = True) -> str:
        """Return text as the console can show it, with escapes for what it cannot."""
        encoding = self.console.encoding
        return shown(text, in_line=in_line).encode(encoding, "backslashreplace").decode(encoding)

    @contextmanager
    def progress(self) -> Iterator["Bar"]:
        """Show a bar while the block runs, where there is a terminal."""
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            yield Bar(bar, None if self.console.is_terminal else self.line, self._shown)


class _Console(Console):
    """Rich's, which raises where nobody reads the output, and does not end the process."""

    def on_broken_pipe(self) -> None:
        """Let the error pass."""
        raise  # within the handler of it


class Bar:
    """One line of progress that changes what it counts; elsewhere a line now and then."""

    def __init__(
        self,
        progress: Progress,
        say: Callable[[str], None] | None,
        shown: Callable[[str], str] = shown,
    ) -> None:
        self._progress, self._say, self._shown = progress, say, shown
        self._task = progress.add_task("", total=None)
        self._said, self._said_s = "", time.monotonic()

    def show(self, text: str, done: int, of: int) -> None:
        """Say how much is done of what."""
        self._progress.update(self._task, description=self._shown(text), completed=done, total=of)
        line = f"{text} {done}/{of}"
        due = line != self._said and time.monotonic() - self._said_s >= LINE_S
        if self._say is not None and due:
            self._said, self._said_s = line, time.monotonic()
            self._say(line)
