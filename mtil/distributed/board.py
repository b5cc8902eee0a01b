"""A notice board: training processes put up progress, the command reads it."""

from typing import Any


class Board:
    """An actor that keeps lines in the order in which they came."""

    def __init__(self) -> None:
        self._lines: list[dict[str, Any]] = []

    def post(self, line: dict[str, Any]) -> None:
        """Put up a line. A line of kind `step` replaces the one before it."""
        if self._lines and self._lines[-1]["kind"] == "step":
            self._lines.pop()
        self._lines.append(line)

    def take(self) -> list[dict[str, Any]]:
        """Return and forget the lines."""
        lines, self._lines = self._lines, []
        return lines
