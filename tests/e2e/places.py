"""Parts of a circle to kill: an S3 server, clusters of two nodes, and the command."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from ray._private.utils import get_ray_address_file
from ray.cluster_utils import Cluster

from cluster import object_store
from tests.waiting import until_gone

BUCKET = "mtil-kills"
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "LOG_NAME_UPDATE_INTERVAL_S": "3600",
}


def kill(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL processes, and wait for the end of all."""
    killed = list(processes)
    for process in killed:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    until_gone(killed)


class Storage:
    """An S3 server to kill and restart. The objects stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self.environment: dict[str, str] = {}

    def __enter__(self) -> "Storage":
        self._start(None)
        os.environ.update(self.environment)
        return self

    def __exit__(self, *raised: object) -> None:
        self._running.close()

    def kill(self) -> None:
        """SIGKILL the server."""
        mine = psutil.Process().children()
        kill(process for process in mine if f"-dir={self._folder}" in " ".join(process.cmdline()))

    def restart(self) -> None:
        """Start the server again on the previous port."""
        self._running.close()
        self._start(urlsplit(self.environment["AWS_ENDPOINT_URL"]).port)

    def _start(self, port: int | None) -> None:
        server = object_store.run_object_store(self._folder, BUCKET, port=port)
        self.environment = self._running.enter_context(server)


class Nodes:
    """A cluster on this machine: a head and a second node with 1 CPU each.

    The nodes inherit the environment of the present process.
    """

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="mtil-")  # a short path, for sockets
        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": self._folder}
        # `Cluster` writes the head's address into a folder, but does not make the folder.
        Path(get_ray_address_file(None)).parent.mkdir(parents=True, exist_ok=True)
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.add()

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *raised: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self) -> None:
        """Start the second node."""
        self._other = self._cluster.add_node(num_cpus=1)

    def warn_other(self, seconds: int) -> None:
        """Announce a preemption of the second node to Ray, as a cloud does for a spot machine."""
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "drain-node"),
                *("--address", self.address, "--node-id", self._other.node_id),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"),
                *("--deadline-remaining-seconds", str(seconds)),
            ],
            check=True,
            capture_output=True,
        )

    def kill_other(self) -> None:
        """SIGKILL the second node's raylet. All processes of the node end."""
        workers = self._below(self._other)
        self._cluster.remove_node(self._other, allow_graceful=False)
        _, left = psutil.wait_procs(workers, timeout=10)
        kill(left)

    def kill(self) -> None:
        """SIGKILL all processes of the cluster."""
        nodes = self._cluster.list_all_nodes()
        workers = [process for node in nodes for process in self._below(node)]
        for node in nodes:
            node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
        kill(workers)
        self._cluster.worker_nodes.clear()
        self._cluster.head_node = None

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the processes of the cluster with a title beginning with a name."""
        return [one for node in self._cluster.list_all_nodes() for one in self._titled(node, name)]

    def read_stderr(self, process: psutil.Process) -> str:
        """Return the stderr of a process of the cluster so far."""
        logs = Path(self._folder).glob(f"session_*/logs/worker-*-{process.pid}.err")
        return "".join(log.read_text() for log in logs if not log.parent.parent.is_symlink())

    def hosts(self, name: str) -> int:
        """Return the number of nodes with a process whose title begins with a name."""
        return sum(bool(self._titled(node, name)) for node in self._cluster.list_all_nodes())

    def _titled(self, node: object, name: str) -> list[psutil.Process]:
        found = []
        for process in self._below(node):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(name):
                    found.append(process)
        return found

    @staticmethod
    def _below(node: object) -> list[psutil.Process]:
        found = []
        for info in node.all_processes.get("raylet", []):  # type: ignore[attr-defined]
            with suppress(psutil.NoSuchProcess):
                found += psutil.Process(info.process.pid).children(recursive=True)
        return found


class Command:
    """An `mtil` command, to be started repeatedly."""

    def __init__(self, arguments: Sequence[str], log: Path, **environment: str) -> None:
        self._arguments, self._log = arguments, log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the command."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mtil", *self._arguments],
                env=os.environ | self._environment,
                stdout=log,
                stderr=log,
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while the command runs."""
        assert self._process is not None
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL the command, if running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def read_output(self) -> str:
        """Return the output of all starts so far."""
        return self._log.read_text()
