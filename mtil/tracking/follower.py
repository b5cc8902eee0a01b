"""Show a run or a search in a tracker, in a separate process: the follower.

A training never waits for a tracker: the training writes files, and the follower reads the files.
The files are the queue: epochs missed during an outage of the tracker are sent after the outage.
"""

import os
import select
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mtil.errors import MtilError
from mtil.tracking.nodes import Node
from mtil.tracking.targets import Target, Tracker, open_tracker

POLL_S = 5.0
"""Seconds between two looks at the files."""
_NICENESS = 10
"""The follower takes only CPU time left over by trainings."""
_FIRST_RETRY_S, _LAST_RETRY_S = 10.0, 300.0


@dataclass
class Follower:
    """Keeps a tracker up to date, through its outages."""

    read: Callable[[bool], Sequence[Node]]
    """Reads the tree of nodes. The argument is True for the last update."""
    target: Target
    warn: Callable[[str], None]
    """Called once, with the first failure."""
    _tracker: Tracker | None = field(default=None, init=False)
    _has_warned: bool = field(default=False, init=False)
    _retry_s: float = field(default=_FIRST_RETRY_S, init=False)
    _retry_at: float = field(default=0.0, init=False)

    def update(self, *, is_last: bool = False) -> bool:
        """Bring the tracker up to date, unless a retry is not yet due. Return True on success."""
        if not is_last and time.monotonic() < self._retry_at:
            return False
        try:
            nodes = self.read(is_last)
            if nodes:  # a run that is about to start has no nodes
                self._open().update(nodes, is_last=is_last)
        except MtilError as error:
            self._fail(error)
            return False
        self._retry_s, self._retry_at = _FIRST_RETRY_S, 0.0
        return True

    def close(self) -> None:
        """Close the tracker."""
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            try:
                tracker.close()
            except MtilError as error:
                self._fail(error)

    def _open(self) -> Tracker:
        if self._tracker is None:
            self._tracker = open_tracker(self.target)
        return self._tracker

    def _fail(self, error: MtilError) -> None:
        # The content of the tracker is unknown now. A new tracker object reads the content.
        self.close()
        self._retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)
        if not self._has_warned:
            self._has_warned = True
            self.warn(
                f"Tracking in {self.target} fails. The run goes on, and later attempts catch up. "
                f"{error}"
            )


def follow_until_closed(
    read: Callable[[bool], Sequence[Node]], target: Target, *, name: str
) -> None:
    """Follow until standard input ends, which is the end of the parent process.

    Args:
        read: reads the tree of nodes.
        target: the tracker.
        name: name of the command, for messages on stderr.
    """
    os.nice(_NICENESS)

    def warn(text: str) -> None:
        print(f"{name}: {text}", file=sys.stderr, flush=True)  # noqa: T201

    follower = Follower(read, target, warn)
    while not select.select([0], [], [], POLL_S)[0]:
        follower.update()
    follower.update(is_last=True)
    follower.close()
