"""`python -m mtil`."""

import sys

from mtil.cli import main

if __name__ == "__main__":
    sys.exit(main())
