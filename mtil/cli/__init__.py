"""Command line of `mtil`. Heavy libraries are imported only when a command runs."""

from mtil.cli.main import main

__all__ = ["main"]
