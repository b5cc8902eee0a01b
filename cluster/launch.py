"""`python -m cluster up`, `down` and `status`: Ray's launcher, with the checks before it.

Machines on premises are not given back to anybody, and Ray leaves its processes running on them;
so `down` ends these first, host by host, with the `ray stop` of the file's own start commands.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import yaml

from cluster import images
from cluster.check import account_problems, open_file, open_to_end
from cluster.errors import ClusterError, UsageError
from cluster.files import ROOT, TOKEN_MODE, ClusterFile, Group
from cluster.rules.starting import local_path

_TUNNEL_TIMEOUT_S = 90
_DASHBOARD_PORT = 8265
_RESTART_S = 2


def up(path: Path, *, yes: bool = False, bucket: str | None = None) -> None:
    """Bring a cluster up, or bring it in line with its file.

    Args:
        path: the cluster file.
        yes: do not ask before machines are rented.
        bucket: that must be reachable from here.

    Raises:
        UsageError: if a check fails; nothing was started then.
        ClusterError: if `ray up` fails.
    """
    file = open_file(path, bucket=bucket)
    if file.kind == "gcp" and find_spec("googleapiclient") is None:
        raise UsageError("Ray needs Google's client; run `pip install google-api-python-client`.")
    problems = account_problems(file)
    if problems:
        raise UsageError("\n".join(problems))
    flags = ["--no-config-cache", "--disable-usage-stats", *(["--yes"] if yes else [])]
    with _settled(file) as settled:
        _run("up", ["up", str(settled), *flags])


@contextmanager
def _settled(file: ClusterFile) -> Iterator[Path]:
    """Yield the file, or one beside it for a moment in which images have their own names."""
    document = images.settled(file)
    if document is None:
        yield file.path.absolute()
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="mtil-") as sink:
        yaml.safe_dump(document, sink, sort_keys=False)
        sink.flush()
        yield Path(sink.name)


def down(path: Path, *, yes: bool = False) -> None:
    """Take a cluster down, its data in the bucket aside.

    What is wrong with the file and does not matter for that keeps nothing running.

    Raises:
        UsageError: if the file does not say which machines those are.
        ClusterError: if `ray down` fails, or a host cannot be reached.
    """
    file = open_to_end(path)
    flags = ["--yes"] if yes else []
    if file.kind == "local":
        if not yes and not _confirmed(f"End Ray on {', '.join(_hosts(file))}? [y/N] "):
            raise UsageError("Ending Ray must be confirmed, but was not; `--yes` does not ask.")
        flags = ["--yes"]
        _stop_hosts(file)
    _run("down", ["down", str(path.absolute()), *flags])


def status(path: Path) -> None:
    """Print what a cluster has, uses and waits for.

    Raises:
        UsageError: if a check fails.
        ClusterError: if the head does not answer.
    """
    file = open_file(path)
    command = f"{TOKEN_MODE} {_program(file.head)} status"
    _run("status", ["exec", str(path.absolute()), command])


@contextmanager
def tunnel(path: Path) -> Iterator[str]:
    """Yield the address on this machine at which the head's dashboard answers, through ssh.

    Raises:
        UsageError: if a check fails.
        ClusterError: if the head cannot be reached.
    """
    open_file(path)
    port = _free_port()
    command = [str(_ray()), "dashboard", str(path.absolute()), "--port", str(port)]
    command += ["--remote-port", str(_DASHBOARD_PORT)]
    forwarder = _Forwarder(command)
    try:
        deadline = time.monotonic() + _TUNNEL_TIMEOUT_S
        while not _answers(port):
            if forwarder.has_ended() or time.monotonic() > deadline:
                raise ClusterError(f"The head of {path} does not answer; `status` says more.")
            time.sleep(0.3)
        forwarder.keep()
        yield f"http://127.0.0.1:{port}"
    finally:
        forwarder.end()


class _Forwarder:
    """A process that forwards a port, started again when it ends, as ssh does with a network."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            self._command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def keep(self) -> None:
        """From now on, start it again when it ends."""
        self._keeper.start()

    def _keep(self) -> None:
        while not self._ending.wait(_RESTART_S):
            if self.has_ended():
                self._process = self._start()

    def end(self) -> None:
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()
        if not self.has_ended():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _run(name: str, arguments: Sequence[str]) -> None:
    done = subprocess.run([str(_ray()), *arguments], cwd=ROOT, check=False)
    if done.returncode:
        raise ClusterError(f"`{name}` failed: ray ended with exit code {done.returncode}.")


def _ray() -> Path:
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise UsageError("The launcher is the program `ray`; run `pip install 'mtil[cluster]'`.")
    return program


def _program(group: Group) -> str:
    """Return how the file calls `ray` on a machine, which need not be on the PATH there."""
    stops = [command for command in group.start if command.split()[-1:] == ["stop"]]
    return stops[0].removesuffix(" stop") if stops else "ray"


def _hosts(file: ClusterFile) -> list[str]:
    provider = file.document["provider"]
    return [provider["head_ip"], *provider["worker_ips"]]  # the head first: it restarts the others


def _stop_hosts(file: ClusterFile) -> None:
    auth = file.document["auth"]
    groups = [file.head, *(file.workers * len(file.document["provider"]["worker_ips"]))]
    lost = []
    for host, group in zip(_hosts(file), groups, strict=True):
        command = ["ssh", "-i", str(local_path(auth["ssh_private_key"]))]
        for option in (
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=10",
            "StrictHostKeyChecking=no",  # as Ray's own connections, which came first
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ):
            command += ["-o", option]
        command += ["--", f"{auth['ssh_user']}@{host}", f"{_program(group)} stop --force"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            lost.append(host)
    if lost:
        raise ClusterError(
            f"Ray must be ended on every host, but was not on {', '.join(lost)} (ssh says why, "
            "above); run `down` again when they answer."
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
