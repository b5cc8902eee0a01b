"""The S3 server of `python -m cluster object-store`."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cluster.object_store import find_free_ports
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_the_server_ends_with_the_command(tmp_path: Path, end: signal.Signals) -> None:
    port = find_free_ports(None, "127.0.0.1")[-1]
    command = [sys.executable, "-m", "cluster", "object-store", "--dir", str(tmp_path / "store")]
    restore_sigint = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    with subprocess.Popen(
        [*command, "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=restore_sigint,  # a shell's background commands ignore Ctrl-C
    ) as process:
        assert process.stdout is not None
        while not (line := process.stdout.readline()).startswith("# bucket"):
            assert line, "the command has ended"
        servers = psutil.Process(process.pid).children()
        assert [server.name() for server in servers] == ["weed"]
        process.send_signal(end)
        assert process.wait(PATIENCE_S) == 0
    assert not any(server.is_running() for server in servers)
