"""Commands, given in this process or in one of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mtil.cli import main

Fails = Callable[..., str]
"""Runs a command that fails with an exit code, and returns its one sentence."""


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run a command with `--json` and return the one object that it prints."""
    assert main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    printed: dict[str, Any] = json.loads(out)
    return printed


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process of its own."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )
