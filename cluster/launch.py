"""`python -m cluster up`, `down` and `status`: checks, then Ray's cluster launcher.

On premises, Ray's `down` leaves Ray's processes running. So `down` here first runs the `ray stop`
of the file's start commands on every host.
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

from cluster import machine_images
from cluster.check import check_aws_account, open_cluster_file, open_file_for_down
from cluster.errors import ClusterError, UsageError
from cluster.files import ROOT, TOKEN_MODE, ClusterFile, MachineGroup
from cluster.rules.starting import resolve_local_path

_TUNNEL_TIMEOUT_S = 90
_DASHBOARD_PORT = 8265
_RESTART_S = 2


def start_cluster(path: Path, *, yes: bool = False, bucket: str | None = None) -> None:
    """Start a cluster, or update a running cluster to its file.

    Args:
        path: the cluster file.
        yes: whether to rent machines without asking.
        bucket: bucket that must be reachable from this machine.

    Raises:
        UsageError: if a check fails. Nothing was started.
        ClusterError: if `ray up` fails.
    """
    file = open_cluster_file(path, bucket=bucket)
    if file.kind == "gcp" and find_spec("googleapiclient") is None:
        raise UsageError("Ray needs Google's client; run `pip install google-api-python-client`.")
    problems = check_aws_account(file)
    if problems:
        raise UsageError("\n".join(problems))
    flags = ["--no-config-cache", "--disable-usage-stats", *(["--yes"] if yes else [])]
    with _fix_images(file) as config:
        _run_ray("up", ["up", str(config), *flags])


@contextmanager
def _fix_images(file: ClusterFile) -> Iterator[Path]:
    """Yield the path of the file, or of a temporary copy with image ids in place of names."""
    document = machine_images.fix_image_ids(file)
    if document is None:
        yield file.path.absolute()
        return
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", prefix="mtil-") as sink:
        yaml.safe_dump(document, sink, sort_keys=False)
        sink.flush()
        yield Path(sink.name)


def end_cluster(path: Path, *, yes: bool = False) -> None:
    """Take a cluster down. Data in the bucket stays.

    Mistakes in the file that do not matter for `down` are ignored.

    Raises:
        UsageError: if the file does not name the machines.
        ClusterError: if `ray down` fails, or a host cannot be reached.
    """
    file = open_file_for_down(path)
    flags = ["--yes"] if yes else []
    if file.kind == "local":
        if not yes and not _confirm(f"End Ray on {', '.join(_list_hosts(file))}? [y/N] "):
            raise UsageError(
                "Ending Ray must be confirmed, but was not; give `--yes` to skip the question."
            )
        flags = ["--yes"]
        _stop_hosts(file)
    _run_ray("down", ["down", str(path.absolute()), *flags])


def print_cluster_status(path: Path) -> None:
    """Print the resources that a cluster has, uses and waits for.

    Raises:
        UsageError: if a check fails.
        ClusterError: if the head does not answer.
    """
    file = open_cluster_file(path)
    command = f"{TOKEN_MODE} {_ray_command(file.head)} status"
    _run_ray("status", ["exec", str(path.absolute()), command])


@contextmanager
def open_tunnel(path: Path) -> Iterator[str]:
    """Forward the head's dashboard through ssh. Yield the URL on this machine.

    Raises:
        UsageError: if a check fails.
        ClusterError: if the head cannot be reached.
    """
    open_cluster_file(path)
    port = _free_port()
    command = [str(_find_ray()), "dashboard", str(path.absolute()), "--port", str(port)]
    command += ["--remote-port", str(_DASHBOARD_PORT)]
    forwarder = _Forwarder(command)
    try:
        deadline = time.monotonic() + _TUNNEL_TIMEOUT_S
        while not _is_listening(port):
            if forwarder.has_ended() or time.monotonic() > deadline:
                raise ClusterError(
                    f"The head of {path} does not answer; run `status` for the reason."
                )
            time.sleep(0.3)
        forwarder.keep()
        yield f"http://127.0.0.1:{port}"
    finally:
        forwarder.end()


class _Forwarder:
    """Keeps a port-forwarding process running. ssh ends when the network breaks."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._is_ending = threading.Event()
        self._restarter = threading.Thread(target=self._restart_loop, daemon=True)
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
        """From now on, restart the process whenever it ends."""
        self._restarter.start()

    def _restart_loop(self) -> None:
        while not self._is_ending.wait(_RESTART_S):
            if self.has_ended():
                self._process = self._start()

    def end(self) -> None:
        self._is_ending.set()
        if self._restarter.is_alive():
            self._restarter.join()
        if not self.has_ended():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _confirm(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _run_ray(name: str, arguments: Sequence[str]) -> None:
    result = subprocess.run([str(_find_ray()), *arguments], cwd=ROOT, check=False)
    if result.returncode:
        raise ClusterError(f"`{name}` failed: ray ended with exit code {result.returncode}.")


def _find_ray() -> Path:
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise UsageError("The program `ray` is missing; run `pip install 'mtil[cluster]'`.")
    return program


def _ray_command(group: MachineGroup) -> str:
    """Return the path of `ray` on a group's machines, taken from a `ray stop` of the file."""
    # `ray` may be outside the PATH of the machine.
    stops = [command for command in group.start if command.split()[-1:] == ["stop"]]
    return stops[0].removesuffix(" stop") if stops else "ray"


def _list_hosts(file: ClusterFile) -> list[str]:
    provider = file.document["provider"]
    # The head first, because the head restarts the workers.
    return [provider["head_ip"], *provider["worker_ips"]]


def _stop_hosts(file: ClusterFile) -> None:
    auth = file.document["auth"]
    groups = [file.head, *(file.workers * len(file.document["provider"]["worker_ips"]))]
    failed_hosts = []
    for host, group in zip(_list_hosts(file), groups, strict=True):
        command = ["ssh", "-i", str(resolve_local_path(auth["ssh_private_key"]))]
        for option in (
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "ConnectTimeout=10",
            # Like Ray's own ssh connections, which came first.
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
        ):
            command += ["-o", option]
        command += ["--", f"{auth['ssh_user']}@{host}", f"{_ray_command(group)} stop --force"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            failed_hosts.append(host)
    if failed_hosts:
        raise ClusterError(
            f"Ray must be ended on every host, but was not on {', '.join(failed_hosts)} (see "
            "ssh's messages above); run `down` again when the hosts answer."
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
