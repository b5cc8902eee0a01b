"""Entry point of `python -m tune`."""

import sys

from mtil.process import supervisor

if __name__ == "__main__":
    # Before the import below, which takes longer: the supervisor must already watch by then.
    supervisor.supervise_command("mtil-tune")

    from tune.cli import main

    sys.exit(main())
