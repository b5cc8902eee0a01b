"""`python -m tune`."""

import sys

from mtil.process import supervisor

if __name__ == "__main__":
    supervisor.watch("mtil-tune")  # before the imports, which take longer

    from tune.cli import main

    sys.exit(main())
