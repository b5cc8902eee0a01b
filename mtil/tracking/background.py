"""Start followers with a command, and wait for the followers at the end of the command."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from mtil.tracking.targets import Target

_LAST_UPDATE_S = 120.0
"""Time for the last update, with models and report, after the end of the run."""
_INTERRUPTED_S = 5.0
"""Time for the last update after an interrupt or an error."""


@contextlib.contextmanager
def follow_in_background(
    module: str, uri: str, targets: Sequence[Target], warn: Callable[[str], None]
) -> Iterator[None]:
    """Follow a run or a search during the block, in a process per tracker.

    Args:
        module: module whose arguments are the URI and a target.
        uri: the run or the search.
        targets: trackers.
        warn: called for each follower that is not ready in time.
    """
    followers = [
        # A separate session: Ctrl-C must not end a follower before the last update.
        subprocess.Popen(
            [sys.executable, "-m", module, uri, str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        for target in targets
    ]
    limit_s = _INTERRUPTED_S
    try:
        yield
        limit_s = _LAST_UPDATE_S
    finally:
        for follower in followers:
            assert follower.stdin is not None
            follower.stdin.close()
        deadline = time.monotonic() + limit_s
        for follower, target in zip(followers, targets, strict=True):
            try:
                follower.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                follower.kill()
                follower.wait()
                warn(f"{target} is not up to date; the command `track` catches up.")
