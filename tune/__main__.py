"""`python -m tune`."""

import sys

from tune.cli import main

if __name__ == "__main__":
    sys.exit(main())
