"""Terminal output: a progress bar on a terminal, plain lines elsewhere, JSON on request."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mtil.cli.streams import escape_controls, format_json

PROGRESS_LINE_S = 10.0
"""Minimum seconds between two progress lines without a terminal."""


class CommandOutput:
    """Printer of a command. With `--json`, stdout has the JSON object only; lines go to stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self.console = _Console(
            stderr=as_json, highlight=False, soft_wrap=True, markup=False, emoji=False
        )
        self._live: Live | None = None
        self._parts: list[RenderableType] | None = None

    def line(self, text: str) -> None:
        """Print a line of text."""
        self._show(self._shown(text, in_line=False))

    def result(self, values: Mapping[str, Any]) -> None:
        """Print the command's JSON object if `--json` was given."""
        if self._as_json:
            sys.stdout.write(format_json(values, sys.stdout.encoding) + "\n")
            sys.stdout.flush()

    def table(self, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table. The first column is aligned left, all other columns right."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, name in enumerate(head):
            table.add_column(
                self._shown(name), justify="right" if index else "left", overflow="fold"
            )
        for row in rows:
            table.add_row(*map(self._shown, row))
        self._show(table)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Let each `frame` of the block replace the frame before, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, auto_refresh=False, vertical_overflow="visible") as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Collect the lines and tables of the block; within `live`, show them together."""
        if self._live is None:
            yield
            return
        self._parts = []
        try:
            yield
            self._live.update(Group(*self._parts), refresh=True)
        finally:
            self._parts = None

    def _show(self, part: RenderableType) -> None:
        if self._parts is None:
            self.console.print(part)
        else:
            # As text: rich would read markup and emoji codes in a plain string of a group.
            self._parts.append(Text(part) if isinstance(part, str) else part)

    def _shown(self, text: str, *, in_line: bool = True) -> str:
        """Escape control characters and characters outside the console's encoding."""
        encoding = self.console.encoding
        return (
            escape_controls(text, in_line=in_line)
            .encode(encoding, "backslashreplace")
            .decode(encoding)
        )

    @contextmanager
    def progress(self) -> Iterator["ProgressBar"]:
        """Yield a progress bar for the block. Without a terminal the bar prints lines."""
        bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        with bar:
            yield ProgressBar(bar, None if self.console.is_terminal else self.line, self._shown)


class _Console(Console):
    """Rich console that raises `BrokenPipeError`; rich's own would exit the process."""

    def on_broken_pipe(self) -> None:
        """Re-raise the current error; rich calls this method inside its handler."""
        raise


class ProgressBar:
    """Progress bar on a terminal; elsewhere a line at most every `PROGRESS_LINE_S` seconds."""

    def __init__(
        self,
        progress: Progress,
        print_line: Callable[[str], None] | None,
        shown: Callable[[str], str] = escape_controls,
    ) -> None:
        self._progress, self._print_line, self._shown = progress, print_line, shown
        self._task = progress.add_task("", total=None, speed="")
        self._last_line, self._last_s = "", time.monotonic()
        self._starts: dict[str, tuple[int, float]] = {}
        """Units done at the first call with a text, and its time."""

    def show(self, text: str, done: int, total: int, unit: str = "") -> None:
        """Show `done` of `total` units of the work named by `text`, with speed and time left.

        The speed is the mean since the first call with this text.
        """
        now_s = time.monotonic()
        first, start_s = self._starts.get(text, (done, now_s))
        if done <= first:
            first, start_s = self._starts[text] = done, now_s
        per_second = (done - first) / max(now_s - start_s, 1e-9)
        speed = f"{_format_speed(per_second)} {unit}/s".replace(" /", "/") if done > first else ""
        self._progress.update(
            self._task, description=self._shown(text), completed=done, total=total, speed=speed
        )
        counts = f"{text} {done}/{total}"
        is_due = counts != self._last_line and now_s - self._last_s >= PROGRESS_LINE_S
        if self._print_line is not None and is_due:
            self._last_line, self._last_s = counts, now_s
            left = format_time_left((total - done) / per_second) if speed else ""
            self._print_line(", ".join(filter(None, (counts, speed, left and f"{left} left"))))


def _format_speed(per_second: float) -> str:
    return f"{per_second:.{0 if per_second >= 100 else 1 if per_second >= 1 else 2}f}"


def format_time_left(seconds: float | None) -> str:
    """Return a time to wait, rounded up: seconds, from two minutes on minutes, then hours."""
    if seconds is None:
        return ""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{math.ceil(minutes / 60)} h"
