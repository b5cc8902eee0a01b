"""Refusals of `mtil circle`: a single sentence, exit code 2, and no half-written file."""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import Any

import pytest

from mtil.circle.ledger import Ledger
from mtil.circle.request import request_circle
from mtil.circle.state import ActionStarted
from mtil.cli import main
from mtil.config import apply_overrides
from mtil.data.dataset.manifest import load_manifest
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.distributed.circle import coordinator, driver
from mtil.errors import RefusedError, StorageError
from mtil.presets import demo
from mtil.run.plan import Train
from mtil.storage import LocalStore, open_store

pytestmark = pytest.mark.usefixtures("local_ray")

OVERRIDES = {"--data.image-size": "64", "--model.encoder.pretrained": "false"}
SKEW_S = 5 * 3600

Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Restore the SIGTERM handler after a command."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def refused(dataset: str, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run `mtil circle` and expect a refusal. Return the sentence on stderr."""

    def run(uri: str, *more: str, data: str = dataset) -> str:
        words = [word for pair in OVERRIDES.items() for word in pair]
        words = ["circle", "--config", "demo", "--data", data, "--run", uri, *words, *more]
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("mtil: ")
        return line.removeprefix("mtil: ")

    return run


@pytest.fixture
def begun(dataset: str, tmp_path: Path) -> LocalStore:
    """The store of a run of fold 0. The coordinator has died during the first training."""
    store = LocalStore(str(tmp_path / "run"))
    names = {key.removeprefix("--"): value for key, value in OVERRIDES.items()}
    driver.begin_circle(request_circle(dataset, store.uri, apply_overrides(demo(), names), (0,)))
    ledger = Ledger.open(store)
    ledger.boot()
    ledger.append(ActionStarted(action=Train(0, 0), attempt=1))
    return store


def contents(store: LocalStore) -> dict[str, bytes]:
    return {name: store.read(name) for name in store.sizes()}


def test_another_configuration_is_refused(refused: Refused, begun: LocalStore) -> None:
    before = contents(begun)
    message = refused(begun.uri, "--train.num-epochs", "7")
    assert message == (
        f"A run must keep its configuration, but {begun.uri} has `train.num_epochs` = "
        f"{demo().train.num_epochs} and 7 was asked for; name another --run."
    )
    assert "Cannot change the folds of a run" in refused(begun.uri, "--folds", "0,1")
    assert contents(begun) == before


def test_another_data_set_is_refused(
    refused: Refused, begun: LocalStore, phantoms: Path, tmp_path: Path
) -> None:
    before = contents(begun)
    other = str(tmp_path / "other")
    prepare([CollectionSource(uri=str(phantoms), layout="busi")], other, Settings(image_size=96))
    theirs = load_manifest(open_store(other)).fingerprint[:12]
    message = refused(begun.uri, data=other)
    assert message.startswith("A run must stay with its data set, but ")
    assert f"{other} has {theirs}…; name another --run." in message
    assert contents(begun) == before


def test_a_gap_in_the_ledger_is_refused(refused: Refused, begun: LocalStore) -> None:
    begun.delete("ledger/000002.json")
    before = contents(begun)
    message = refused(begun.uri)
    assert message.startswith(f"A ledger must have no gap, but event 2 of {begun.uri}/ledger is ")
    assert contents(begun) == before


def test_a_changed_event_is_refused(refused: Refused, begun: LocalStore) -> None:
    name = "ledger/000002.json"
    begun.write(name, begun.read(name).replace(b'"at": "2', b'"at": "3'))
    before = contents(begun)
    message = refused(begun.uri)
    assert message.startswith(f"Event 2 of {begun.uri}/ledger was changed after writing: ")
    assert contents(begun) == before


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--train.num-workers", "4", "--train.cpus-per-worker", "1"), "4 workers with 1 CPUs"),
        (("--train.gpus-per-worker", "64"), "1 workers with 64 GPUs each need 64 GPUs"),
        (("--circle.maps", "cross_fit", "--circle.num-parts", "50"), "into at most"),
    ],
)
def test_what_cannot_be_done_is_refused_before_there_is_a_run(
    refused: Refused, tmp_path: Path, more: tuple[str, ...], why: str
) -> None:
    uri = tmp_path / "run"
    assert why in refused(str(uri), *more)
    assert not uri.exists()


def test_a_folder_that_cannot_be_written_is_refused(refused: Refused) -> None:
    """Not even root can make a folder in /sys."""
    uri = "/sys/mtil-run"
    message = refused(uri)
    assert message.startswith(f"{uri}/ledger-probe/")
    assert " cannot be written: " in message
    assert not Path(uri).exists()


def test_a_storage_that_refuses_for_long_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(coordinator, "time", SimpleNamespace(sleep=waits.append))
    answers: list[Exception] = [StorageError("out of reach")] * 9

    def read() -> None:
        raise answers.pop() if answers else RefusedError("refused")

    with pytest.raises(RefusedError):
        coordinator.retry_storage(read)
    assert not answers  # the storage was tried again after every outage
    assert 60 <= sum(waits[9:]) <= 90


# S3 servers with a fault


class Server(ThreadingHTTPServer):
    """The part of S3 needed for the start of a circle, with a fault."""

    def __init__(self, fault: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.objects: dict[str, bytes] = {}
        self.written: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Answers requests according to the server's fault."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        if self.server.fault == "skewed":
            self._refuse(403, "RequestTimeTooSkewed")
        elif self.path in self.server.objects:
            self._answer(200, self.server.objects[self.path])
        else:
            self._refuse(404, "NoSuchKey")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.fault == "skewed":
            self._refuse(403, "RequestTimeTooSkewed")
        elif self.server.fault == "read-only":
            self._refuse(403, "AccessDenied")
        elif self.server.fault == "unconditional" and "If-None-Match" in self.headers:
            self._refuse(501, "NotImplemented")
        else:
            self.server.objects[self.path] = data
            self.server.written.append(self.path)
            self._answer(200)

    def do_DELETE(self) -> None:
        self.server.objects.pop(self.path, None)
        self._answer(204)

    def date_time_string(self, timestamp: float | None = None) -> str:
        behind = SKEW_S if self.server.fault == "skewed" else 0
        return formatdate((timestamp or time()) - behind, usegmt=True)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>"
        self._answer(status, text.encode())

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def serving(fault: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serve S3 with a fault, and set the server as the endpoint of this process."""
    with Server(fault) as server, monkeypatch.context() as patch:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def on_disk(phantoms: Path, tmp_path: Path) -> str:
    """URI of a data set in a folder. The server with a fault holds no data set."""
    uri = str(tmp_path / "data")
    prepare([CollectionSource(uri=str(phantoms), layout="busi")], uri, Settings(image_size=64))
    return uri


@pytest.mark.parametrize(
    ("fault", "why", "written"),
    [
        (
            "replaces",
            r"only if the name is free .* but s3://b/run replaces the object\. .* new --run\.",
            2,
        ),
        (
            "unconditional",
            r"only if the name is free .* refuses conditional writes: .* failed with NotImpl.*",
            1,
        ),
        ("read-only", r"Access to s3://b/run/ledger-probe/\w+ is refused \(AccessDenied\); .*", 0),
        ("skewed", r"This machine's clock must be within 15 minutes of .* 300 minutes apart .*", 0),
    ],
)
def test_a_bucket_that_cannot_hold_a_run_is_refused(
    refused: Refused,
    on_disk: str,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    why: str,
    written: int,
) -> None:
    with serving(fault, monkeypatch) as server:
        message = refused("s3://b/run", data=on_disk)
        assert re.fullmatch(f".*{why}", message)
        assert server.objects == {}
        assert len(server.written) == written
