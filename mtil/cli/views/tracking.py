"""Bring trackers up to date in the foreground: `mtil track` and `mtil-tune track`."""

import argparse
import time
from collections.abc import Callable, Sequence

from mtil.cli.console import CommandOutput
from mtil.cli.flags import read_targets
from mtil.tracking.follower import POLL_S, Follower
from mtil.tracking.nodes import Node
from mtil.tracking.targets import open_tracker


def update_trackers(
    read: Callable[[bool], Sequence[Node]], options: argparse.Namespace, output: CommandOutput
) -> None:
    """Show a run or a search in the trackers of `--to`, once or until an interrupt.

    Raises:
        TrackingError: if a tracker fails; with `--follow`, a failure is only reported.
    """
    targets = read_targets(options.trackers)
    if options.follow:
        followers = [Follower(read, target, output.line) for target in targets]
        output.line(f"Following {options.run}; Ctrl-C ends the tracking, not the run.")
        while True:
            for follower in followers:
                follower.update()
            time.sleep(POLL_S)
    for target in targets:
        tracker = open_tracker(target)
        tracker.update(read(True), is_last=True)
        tracker.close()
        output.line(f"{options.run} is in {target}.")
    output.result({"run": options.run, "trackers": [str(target) for target in targets]})
