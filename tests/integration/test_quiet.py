"""What Ray's core tells drivers on stdout, where a command's one JSON object goes."""

import time

import pytest
from ray._private import ray_logging
from ray._private.utils import push_error_to_driver
from ray._private.worker import global_worker

pytestmark = pytest.mark.usefixtures("local_ray")


def test_what_the_core_tells_is_not_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two messages come one after the other; only the second is let through."""
    push_error_to_driver(global_worker, "kind", "kept back")
    time.sleep(1)
    monkeypatch.setattr(ray_logging.stdout_deduplicator, "skip_re", None)
    push_error_to_driver(global_worker, "kind", "let through")
    told, deadline = "", time.monotonic() + 30
    while "let through" not in told:
        assert time.monotonic() < deadline
        time.sleep(0.1)
        told += capfd.readouterr().out
    assert "kept back" not in told
