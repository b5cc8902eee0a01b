"""A spot machine's termination notice reaches Ray with the deadline."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from ray.scripts.scripts import cli

from cluster import spot_notice
from tests.waiting import PATIENCE_S, until


class Metadata:
    """AWS's metadata service, version 2, on loopback."""

    def __init__(self) -> None:
        self.life_cycle = "spot"
        self.action: str | None = None
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                assert int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 0
                self.answer("the-token" if self.path == "/latest/api/token" else None)

            def do_GET(self) -> None:
                if self.headers["X-aws-ec2-metadata-token"] != "the-token":
                    self.send_error(401)
                    return
                outer.asked += 1
                values = {"instance-life-cycle": outer.life_cycle}
                values |= {"spot/instance-action": outer.action} if outer.action else {}
                self.answer(values.get(self.path.removeprefix("/latest/meta-data/")))

            def answer(self, text: str | None) -> None:
                self.send_response(404 if text is None else 200)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, *_: object) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def goes_in(self, seconds: float) -> None:
        when = datetime.fromtimestamp(time.time() + seconds, UTC)
        self.action = json.dumps({"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"})


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def ray_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `ray` that records the arguments and fails on the first call."""
    calls = tmp_path / "calls"
    program = tmp_path / "bin" / "ray"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\nfor word; do printf '%s\\n' \"$word\"; done > {calls}.$$\n"
        f"[ -e {calls} ] && exit 0\nmv {calls}.$$ {calls}\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return calls


def test_a_notice_is_handed_on_until_ray_has_it(metadata: Metadata, ray_calls: Path) -> None:
    watching = threading.Thread(
        target=spot_notice.watch_spot_notice,
        args=(metadata.url,),
        kwargs={"poll_s": 0.05},
        daemon=True,
    )
    watching.start()
    until(lambda: metadata.asked >= 6)  # three polls without a notice
    assert not ray_calls.exists()
    begin = time.time()
    metadata.goes_in(1000)
    watching.join(PATIENCE_S)
    assert not watching.is_alive()
    left = 1000 - (time.time() - begin)
    calls = sorted(ray_calls.parent.glob("calls*"))
    assert len(calls) == 2  # the first call failed
    words = ray_calls.read_text().splitlines()
    assert words[:3] == ["drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    assert left - 2 <= int(words[-1]) <= 1000  # notice and deadline in whole seconds
    command = cli.commands["drain-node"]  # Ray accepts the arguments
    context = command.make_context("drain-node", words[1:])
    assert context.params["deadline_remaining_seconds"] == int(words[-1])


def test_a_machine_on_demand_is_not_watched(metadata: Metadata, ray_calls: Path) -> None:
    metadata.life_cycle = "on-demand"
    metadata.goes_in(120)
    spot_notice.watch_spot_notice(metadata.url)
    assert not ray_calls.exists()


def test_only_one_watches(metadata: Metadata, ray_calls: Path, tmp_path: Path) -> None:
    """Every `ray up` starts the program again."""
    given = os.environ | {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": metadata.url,
        "TMPDIR": str(tmp_path),
    }
    command = [sys.executable, spot_notice.__file__]
    with subprocess.Popen(command, env=given) as first:
        try:
            until(lambda: metadata.asked, first)
            assert subprocess.run(command, env=given, check=False).returncode == 0
            assert first.poll() is None
        finally:
            first.kill()


def test_a_service_that_does_not_answer_is_asked_again(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def sleep(_: float) -> None:
        raise Enough

    monkeypatch.setattr(time, "sleep", sleep)
    with pytest.raises(Enough):
        spot_notice.watch_spot_notice("http://127.0.0.1:9")
    assert "the metadata service does not answer" in capsys.readouterr().out
