"""Jobs through `python -m cluster submit`, on a small real Ray with token authentication."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import requests

from cluster.files import ROOT
from tests.waiting import PATIENCE_S, until, until_gone

TOKEN = "a-token-of-this-test-alone-0123456789"
PORT_OPTIONS = (
    "--port", "--dashboard-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port",
    "--metrics-export-port", "--ray-client-server-port", "--node-manager-port",
    "--object-manager-port", "--runtime-env-agent-port",
)  # fmt: skip

Submit = Callable[..., "subprocess.Popen[str]"]


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Environment of the test cluster: a token, and no address of an existing cluster."""
    unset = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    values = {name: value for name, value in os.environ.items() if name not in unset}
    return values | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """The ports of a head, by option."""
    return dict(zip(PORT_OPTIONS, _free_ports(len(PORT_OPTIONS)), strict=True))


@pytest.fixture(scope="module")
def address(environment: dict[str, str], ports: dict[str, int]) -> Iterator[str]:
    """URL of the dashboard of a head with 1 CPU."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))  # Ray's sockets need short paths
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block"]
    command += [f"{name}={port}" for name, port in ports.items()]
    command += ["--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats"]
    command += ["--include-dashboard=true"]
    given = environment | {"RAY_TMPDIR": str(folder)}
    log = folder / "start.log"
    with log.open("w") as sink:
        head = subprocess.Popen(command, env=given, stdout=sink, stderr=sink)
        try:
            url = f"http://127.0.0.1:{ports['--dashboard-port']}"
            until(lambda: _jobs(url) is not None or head.poll() is not None)
            assert head.poll() is None, log.read_text()
            yield url
        finally:
            processes = psutil.Process(head.pid).children(recursive=True)
            for process in [psutil.Process(head.pid), *processes]:
                process.kill()
            head.wait()
            until_gone(processes)
            shutil.rmtree(folder, ignore_errors=True)


def _jobs(url: str) -> list[dict[str, Any]] | None:
    """Return the cluster's records of jobs, readable with the token; None without an answer."""
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.get(f"{url}/api/jobs/", headers=headers, timeout=10)
    except requests.ConnectionError:
        return None
    if not answer.ok:
        return None
    jobs: list[dict[str, Any]] = answer.json()
    return jobs


@pytest.fixture
def submit(address: str, environment: dict[str, str]) -> Submit:
    """Start `python -m cluster submit` with arguments and extra environment variables."""

    def start(*words: str | Path, **variables: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "cluster", "submit"]
        given = environment | variables
        if "--address" not in words:
            command += ["--address", address]
            given["RAY_ADDRESS"] = "127.0.0.1:9"  # a wrong cluster, which must not be asked
        return subprocess.Popen(
            [*command, *map(str, words)],
            cwd=ROOT,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_restore_sigint,
        )

    return start


def _restore_sigint() -> None:
    """Restore the default handler: background commands of a shell ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


PROGRAM = """
import os, sys
import helper
for number in range(3):
    print(number, helper.WORD, os.environ["GREETING"], flush=True)
print("last", file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("WORD = 'from the folder'\n")
    (tmp_path / "run.py").write_text(PROGRAM)
    (tmp_path / ".rayignore").write_text("stays/\n")
    (tmp_path / "stays").mkdir()
    return tmp_path


def test_a_job_has_the_folder_and_the_named_variables_and_gives_its_exit_code(
    submit: Submit, address: str, folder: Path
) -> None:
    words = ("--working-dir", folder, "--env", "GREETING", "--", "python", "run.py")
    job = submit(*words, GREETING="hello", AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI")
    out, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 3, err
    lines = [n for n in out.splitlines() if "from the folder" in n or n == "last"]
    assert lines == [*(f"{n} from the folder hello" for n in range(3)), "last"]

    (name,) = re.findall(r"^job (\S+)$", err, re.MULTILINE)
    (kept,) = [kept for kept in _jobs(address) or [] if kept["submission_id"] == name]
    assert kept["entrypoint"] == "python run.py"
    assert kept["runtime_env"]["env_vars"] == {"GREETING": "hello"}
    assert "wJalrXUtnFEMI" not in str(kept)


GAUGES = """
import time
import ray
from mtil.distributed.runtime.gauges import COORDINATOR_GAUGES, TRAINING_GAUGES, Gauges

ray.init()
training = Gauges(TRAINING_GAUGES, run="s3://bucket/run", round=1, fold=0, part=None)
coordinator = Gauges(COORDINATOR_GAUGES, run="s3://bucket/run")
while True:
    training.set(**{name.removeprefix("mtil_"): 0.5 for name in TRAINING_GAUGES})
    coordinator.set(**{name.removeprefix("mtil_"): 2 for name in COORDINATOR_GAUGES})
    time.sleep(1)
"""


def test_prometheus_is_told_what_the_dashboard_shows(
    submit: Submit, address: str, ports: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "gauges.py").write_text(GAUGES)
    job = submit("--working-dir", tmp_path, "--", sys.executable, "gauges.py")
    url = f"http://127.0.0.1:{ports['--metrics-export-port']}/metrics"
    text = ""

    def is_exported() -> bool:
        nonlocal text
        text = requests.get(url, timeout=PATIENCE_S).text
        return "ray_mtil_round{" in text

    try:
        until(is_exported, job)
    finally:
        name = next(one["submission_id"] for one in _jobs(address) or []
                    if one["entrypoint"].endswith("gauges.py"))  # fmt: skip
        submit("--stop", name).communicate(timeout=PATIENCE_S)
        job.communicate(timeout=PATIENCE_S)
    labels = dict(re.findall(r"^ray_(mtil_\w+){([^}]*)}", text, re.MULTILINE))
    dashboard = (ROOT / "cluster" / "grafana.json").read_text()
    assert labels.keys() == set(re.findall(r"ray_(mtil_\w+)", dashboard))
    for tag in ('run="s3://bucket/run"', 'round="1"', 'fold="0"'):
        assert tag in labels["mtil_loss"]


def test_ctrl_c_leaves_the_job_which_can_be_attached_to_and_stopped(
    submit: Submit, address: str, folder: Path
) -> None:
    loop = "import time\nfor n in range(10**6): print('tick', n, flush=True); time.sleep(0.2)"
    (folder / "loop.py").write_text(loop)
    job = submit("--working-dir", folder, "--", "python", "loop.py")
    assert job.stdout is not None
    while "tick 1" not in (line := job.stdout.readline()):
        assert line, job.communicate()[1]
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 130
    assert "The job goes on" in err
    assert "Traceback" not in err
    (name,) = re.findall(r"^job (\S+)$", err, re.MULTILINE)
    states = {kept["submission_id"]: kept["status"] for kept in _jobs(address) or []}
    assert states[name] == "RUNNING"

    again = submit("--attach", name)
    assert again.stdout is not None
    while "tick 3" not in (line := again.stdout.readline()):
        assert line, again.communicate()[1]
    stopped = submit("--stop", name)
    _, err = stopped.communicate(timeout=PATIENCE_S)
    assert stopped.returncode == 0, err
    again.communicate(timeout=PATIENCE_S)
    assert again.returncode not in (0, None)
    states = {kept["submission_id"]: kept["status"] for kept in _jobs(address) or []}
    assert states[name] == "STOPPED"


class Proxy:
    """Forwards connections to a port. After a cut, connections are refused until `mend`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lines: list[socket.socket] = []
        self.port = _free_ports(1)[0]
        self._listener = self._listen()

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._lines += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def cut(self) -> None:
        """End all connections, and refuse new connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self._lines:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()
        self._lines = []

    def mend(self) -> None:
        """Accept connections again."""
        self._listener = self._listen()


LOOP = """
import itertools, time
from pathlib import Path
for n in itertools.count():
    print("tick", n, flush=True)
    if Path({over!r}).exists():
        break
    time.sleep(0.2)
"""


def test_a_job_is_followed_over_an_outage(
    submit: Submit, ports: dict[str, int], folder: Path
) -> None:
    over = folder / "over"
    (folder / "loop.py").write_text(LOOP.format(over=str(over)))
    proxy = Proxy(ports["--dashboard-port"])
    url = f"http://127.0.0.1:{proxy.port}"
    job = submit("--address", url, "--working-dir", folder, "--", "python", "loop.py")
    assert job.stdout is not None
    assert job.stderr is not None
    out = _read_until(job.stdout, "tick 5")
    proxy.cut()
    err = _read_until(job.stderr, "the cluster does not answer; trying again")
    proxy.mend()
    last = int(out.split()[-1])
    out += _read_until(job.stdout, f"tick {last + 3}")
    over.touch()
    out += job.stdout.read()  # `communicate` skips buffered text
    err += job.stderr.read()
    proxy.cut()
    assert job.wait(PATIENCE_S) == 0, err
    ticks = re.findall(r"^tick (\d+)$", out, re.MULTILINE)
    assert ticks == [str(n) for n in range(len(ticks))]
    assert err.count("the cluster does not answer; trying again") == 1


def _read_until(stream: IO[str], word: str) -> str:
    """Read a stream up to a line with a word. Return the text."""
    text = ""
    while word not in text:
        line = stream.readline()
        assert line, f"the stream has ended without {word!r}: {text}"
        text += line
    return text


def test_a_job_that_was_killed_has_the_code_of_its_signal(submit: Submit, folder: Path) -> None:
    job = submit("--working-dir", folder, "--", "bash", "-c", "kill -9 $$")
    _, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == 137, err


@pytest.mark.parametrize(
    ("words", "variables", "code", "message"),
    [
        (("--", "true"), {"RAY_AUTH_TOKEN": "another-token-0123456789"}, 2, "requires a token"),
        (("--address", "http://127.0.0.1:9", "--", "true"), {}, 1, "A cluster must answer at"),
        (("--attach", "raysubmit_none"), {}, 2, "--attach must name a job of the cluster"),
        (("--stop", "raysubmit_none"), {}, 2, "--stop must name a job of the cluster"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    submit: Submit, words: tuple[str, ...], variables: dict[str, str], code: int, message: str
) -> None:
    job = submit(*words, **variables)
    _, err = job.communicate(timeout=PATIENCE_S)
    assert job.returncode == code, err
    (line,) = [line for line in err.splitlines() if line.startswith("cluster: ")]
    assert message in line
    assert "Traceback" not in err
