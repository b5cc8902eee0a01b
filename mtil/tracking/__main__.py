"""Follow a run until standard input ends: `python -m mtil.tracking URI TARGET`."""

import sys

from mtil.tracking.follower import follow_until_closed
from mtil.tracking.runs import RunFollower
from mtil.tracking.targets import parse_target

if __name__ == "__main__":
    follow_until_closed(RunFollower(sys.argv[1]).read, parse_target(sys.argv[2]), name="mtil")
