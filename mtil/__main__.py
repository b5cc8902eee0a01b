"""Run `python -m mtil`."""

import sys

from mtil.process import supervisor

if __name__ == "__main__":
    # The supervisor starts first: the imports take longer, and a signal can arrive meanwhile.
    supervisor.supervise_command("mtil")

    from mtil.cli import main

    sys.exit(main())
