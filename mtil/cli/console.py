"""What a person sees: a progress bar on a terminal, plain lines elsewhere, JSON when asked."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_S = 10.0
"""Between two lines of progress where there is no terminal."""


class Output:
    """Progress and lines go to stderr with `--json`, which leaves stdout to the one object."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.console = Console(stderr=as_json, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a line for a person."""
        self.console.print(text, markup=False)

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the command's one JSON object, if it was asked for."""
        if self._as_json:
            sys.stdout.write(json.dumps(values, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, numbers to the right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)

    @contextmanager
    def progress(self) -> Iterator["Bar"]:
        """Show a bar while the block runs, where there is a terminal."""
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            yield Bar(bar, None if self.console.is_terminal else self.line)


class Bar:
    """One line of progress that changes what it counts; elsewhere a line now and then."""

    def __init__(self, progress: Progress, say: Callable[[str], None] | None) -> None:
        self._progress, self._say = progress, say
        self._task = progress.add_task("", total=None)
        self._said, self._said_s = "", time.monotonic()

    def show(self, text: str, done: int, of: int) -> None:
        """Say how much is done of what."""
        self._progress.update(self._task, description=text, completed=done, total=of)
        line = f"{text} {done}/{of}"
        due = line != self._said and time.monotonic() - self._said_s >= LINE_S
        if self._say is not None and due:
            self._said, self._said_s = line, time.monotonic()
            self._say(line)
