"""The command line. Nothing heavy is imported before a command runs."""

from mtil.cli.main import main

__all__ = ["main"]
