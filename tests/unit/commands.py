"""Run commands in the test process or in a new process."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mtil.cli import main

Fails = Callable[..., str]
"""Runs a command with an expected exit code, and returns the error sentence."""


def outcome(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Run a command with `--json` and return the printed object."""
    assert main([*map(str, arguments), "--json"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    printed: dict[str, Any] = json.loads(out)
    return printed


def process(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run Python in a new process."""
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, **options
    )
