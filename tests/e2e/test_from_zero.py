"""A cluster with a head without CPUs: the autoscaler starts machines for a training."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
import ray.util

from tests.e2e.conftest import Command

_MACHINES = {"most": 2, "kinds": [{"cpus": 1, "gpus": 0, "most": 2}]}
_PROVIDER = {
    "type": "fake_multinode",  # Ray's provider for tests: nodes are processes of the autoscaler
    "disable_node_updaters": True,  # nodes have no ssh server
    "disable_launch_config_check": True,
    "foreground_node_launch": True,
    "worker_liveness_check": False,
}
_FILE = {
    "cluster_name": "from-zero",
    "max_workers": 2,
    "idle_timeout_minutes": 10,
    "upscaling_speed": 1.0,
    "head_node_type": "ray.head.default",  # the provider fixes the name
    "available_node_types": {
        "ray.head.default": {
            "resources": {"CPU": 0},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 0,
        },
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
    },
    **{
        f"{step}_commands": []
        for step in (
            *("setup", "head_setup", "worker_setup"),
            *("initialization", "head_start_ray", "worker_start_ray"),
        )
    },
    **{key: {} for key in ("auth", "docker", "file_mounts")},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of a head without CPUs. The autoscaler starts nodes on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="mtil-"))  # a short path, for sockets
    port, client, agent = _free_ports(3)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    provider = _PROVIDER | {"gcs_address": address}
    (folder / "file.json").write_text(json.dumps(_FILE | {"provider": provider}))
    before = {one.pid for one in psutil.process_iter()}
    try:
        subprocess.run(
            [
                *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--num-cpus=0"),
                *(f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false"),
                *(f"--ray-client-server-port={client}", f"--dashboard-agent-listen-port={agent}"),
                "--disable-usage-stats",
                f"--autoscaling-config={folder / 'file.json'}",
            ],
            env=os.environ
            | {
                "RAY_AUTH_MODE": "disabled",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "0",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            },
            check=True,
            capture_output=True,
            text=True,
        )
        yield address
    finally:
        _end(folder, before)
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        found = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in found:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in found]


def _end(folder: Path, before: set[int]) -> None:
    """Kill the processes of the cluster in a folder, and all their descendants."""
    mine = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            if process.pid not in before and str(folder) in " ".join(process.cmdline()):
                mine += [process, *process.children(recursive=True)]
    for process in mine:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(mine, timeout=10)


def test_machines_come_for_a_training(mtil: Command, data: Path, tmp_path: Path, head: str) -> None:
    """Two workers with 0.7 CPUs need two machines with 1 CPU, declared in `MTIL_MACHINES`."""
    arguments = ["train", "--config", "demo", "--data", data, "--run", tmp_path / "run"]
    arguments += ["--fold", "0", "--train.num-epochs", "1", "--train.num-workers", "2"]
    arguments += ["--model.encoder.name", "resnet10_tiny", "--model.encoder.pretrained", "false"]
    arguments += ["--train.cpus-per-worker", "0.7", "--json"]
    refused = mtil(*arguments, RAY_ADDRESS=head, RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2, refused.stderr
    assert "the workers must leave" in refused.stderr.lower()
    machines = {"MTIL_MACHINES": json.dumps(_MACHINES)}
    done = mtil(*arguments, RAY_ADDRESS=head, RAY_AUTH_MODE="disabled", **machines)
    assert done.returncode == 0, done.stderr
    assert "has to start machines" in done.stderr
    assert json.loads(done.stdout)["fold"] == 0
