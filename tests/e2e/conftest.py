"""Fixtures for whole commands in separate processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]

# Warnings of Ray about Ray's own code and about sockets left to the garbage collector.
_RAY_WARNINGS = ("DeprecationWarning", "FutureWarning", "ResourceWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in item.path.parts:
            item.add_marker(pytest.mark.e2e)
            for kind in _RAY_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}"))


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Environment of commands: no existing cluster, fast health checks, no metrics."""
    values = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return values | {
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }


@pytest.fixture(scope="session")
def mtil(environment: dict[str, str]) -> Command:
    """Run `mtil` with arguments. Return the exit code, stdout and stderr."""

    def run(
        *arguments: str | Path, timeout_s: float = 600, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "mtil", *map(str, arguments)],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def images(mtil: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 90 phantoms."""
    out = tmp_path_factory.mktemp("images") / "phantoms"
    assert mtil("phantom", out, "--num-images", "90", "--seed", "3").returncode == 0
    return out


@pytest.fixture(scope="session")
def data(mtil: Command, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms as a data set of three folds."""
    to = tmp_path_factory.mktemp("data") / "set"
    done = mtil(
        "prepare", images, "--layout", "busi", "--to", to, "--image-size", "64", "--num-folds", "3"
    )
    assert done.returncode == 0, done.stderr
    return to
