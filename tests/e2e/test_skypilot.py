"""The `run` of SkyPilot's template ends on both nodes, and does not end SkyPilot's own Ray.

Both nodes, and a Ray like SkyPilot's own, run on this machine in namespaces made by the test: the
ports are fixed, and no process may outlive the test.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.files import ROOT

PROGRAM = """
ip link set lo up
address=$(hostname -i | cut -d ' ' -f 1)
[ $address = 127.0.0.1 ] || ip address add $address/32 dev lo
export PATH=$HOME/venv/bin:$PATH SKYPILOT_NODE_IPS=$address$'\\n'$address SKYPILOT_NUM_NODES=2
RAY_TMPDIR=$HOME/s RAY_AUTH_MODE=disabled ray start --head --port=6380 --dashboard-port=8266 \\
    --object-manager-port=8076 --min-worker-port=11002 --num-cpus=1 \\
    --object-store-memory=80000000 --block > $HOME/sky.log 2>&1 &
sky=$!
SKYPILOT_NODE_RANK=1 bash $HOME/worker.sh > $HOME/worker.log 2>&1 & worker=$!
SKYPILOT_NODE_RANK=0 bash $HOME/head.sh > $HOME/head.log 2>&1 & head=$!
(sleep 900; kill $head $worker) 2> /dev/null &
wait $head; echo "head: $?"
wait $worker; echo "worker: $?"
export RAY_ADDRESS=$address:6380 RAY_AUTH_MODE=disabled
kill -0 $sky && ray status > /dev/null && echo "sky: alive"
ps -eo args | grep -c "[g]cs_server --"
"""
RUN = """#!{python}
import ray, sys
ray.init(log_to_driver=False)
print(sys.argv[1:], sum(node["Alive"] for node in ray.nodes()))
sys.exit(3)
"""


@pytest.fixture(scope="module")
def reason() -> str | None:
    done = subprocess.run(_alone("true"), capture_output=True, text=True, check=False)
    return f"namespaces are not allowed here: {done.stderr}" if done.returncode else None


def _alone(*command: str) -> list[str]:
    return ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", *command]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home folder with a token, a `ray`, and an `mtil` that counts the nodes and fails."""
    folder = Path(tempfile.mkdtemp(prefix="y", dir="/tmp"))  # Ray's sockets need short paths
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("a-token-of-this-test-alone-0123456789")
    (folder / ".ray" / "auth_token").chmod(0o600)
    programs = folder / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "ray").symlink_to(Path(sys.executable).with_name("ray"))
    (programs / "mtil").write_text(RUN.format(python=sys.executable))
    (programs / "mtil").chmod(0o755)
    task = yaml.safe_load((ROOT / "cluster" / "templates" / "skypilot.yaml").read_text())
    run = task["run"].replace("/tmp/mtil", str(folder / "r"))
    few = "ray start --num-cpus=1 --object-store-memory=80000000"
    run = run.replace("ray start", few)
    (folder / "head.sh").write_text(run)
    (folder / "worker.sh").write_text(run.replace("52366", "52367"))  # both agents run here
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.long
def test_run_ends_on_all_nodes_when_it_fails_and_leaves_skypilots_ray_alone(
    reason: str | None, home: Path
) -> None:
    if reason is not None:
        pytest.skip(reason)
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    given = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        _alone("bash", "-c", PROGRAM),
        env=given | {"HOME": str(home), "DATA": "s3://b/data", "RUN": "s3://b/run"},
        cwd=home,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    logs = {name: (home / f"{name}.log").read_text()[-3000:] for name in ("head", "worker", "sky")}
    lines = done.stdout.splitlines()
    assert lines == ["head: 3", "worker: 0", "sky: alive", "1"], (done.stdout, done.stderr, logs)
    words = ["circle", "--config", "base", "--data", "s3://b/data", "--run", "s3://b/run"]
    assert f"{words} 2" in logs["head"]
