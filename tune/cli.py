"""`mtil-tune`: the command of the search."""

import sys


def main() -> int:
    """Say that this version has no search, and return the exit code of wrong input."""
    print(  # noqa: T201
        "mtil-tune: this version of mtil has no hyperparameter search yet; train configurations "
        "side by side with `mtil train` and dotted overrides, one --run each.",
        file=sys.stderr,
    )
    return 2
