"""Setup of all tests: no telemetry, no token in the home folder, no deadlines, real images."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.real import REAL

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# On a busy machine, a test may be slow without being wrong.
settings.register_profile("mtil", deadline=None)
settings.load_profile("mtil")

_ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real collections: `MTIL_DATA`, or shared/data beside the checkout."""
    if not REAL.is_dir():
        pytest.skip("there are no real images here; set MTIL_DATA to their folder")
    return REAL


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip the folder of a tier excluded by `-m "not TIER"`: unit tests import no Ray."""
    tier = collection_path.relative_to(_ROOT / "tests").parts[:1]
    wanted = config.option.markexpr
    return True if tier and f"not {tier[0]}" in wanted else None
