"""Ray's core prints on a driver's stdout, which must hold only a command's JSON object."""

import threading
from typing import Any

import pytest
from ray._private import ray_logging
from ray._private.utils import push_error_to_driver
from ray._private.worker import global_worker

from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.usefixtures("local_ray")


def test_what_the_core_tells_is_not_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter drops the first message. The second message comes without the filter."""
    skip = ray_logging.stdout_deduplicator.skip_re
    assert skip is not None
    has_come = threading.Event()

    class Skip:
        def search(self, line: str) -> Any:
            if "kept back" in line:
                has_come.set()
            return skip.search(line)

    monkeypatch.setattr(ray_logging.stdout_deduplicator, "skip_re", Skip())
    push_error_to_driver(global_worker, "kind", "kept back")
    assert has_come.wait(PATIENCE_S)
    monkeypatch.setattr(ray_logging.stdout_deduplicator, "skip_re", None)
    push_error_to_driver(global_worker, "kind", "let through")
    stdout = ""

    def is_let_through() -> bool:
        nonlocal stdout
        stdout += capfd.readouterr().out
        return "let through" in stdout

    until(is_let_through)
    assert "kept back" not in stdout
