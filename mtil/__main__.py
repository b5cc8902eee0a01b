"""`python -m mtil`."""

import sys

from mtil.process import supervisor

if __name__ == "__main__":
    supervisor.watch("mtil")  # before the imports, which take longer

    from mtil.cli import main

    sys.exit(main())
