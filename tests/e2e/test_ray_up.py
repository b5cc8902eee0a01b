"""A real `ray up` of two hosts, made of network namespaces with sshd, from the on-prem template.

The tests do not use the machine's own network. The operator has a third namespace, with a bridge to
both hosts. A host has separate processes, /tmp, /run, /dev/shm and /home.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import psutil
import pytest
import yaml

from cluster import object_store
from cluster.files import ROOT
from tests.waiting import until

HEAD, WORKER = ADDRESSES = ("10.77.0.11", "10.77.0.12")
GATEWAY = "10.77.0.1"
NAMES = [f"mtil{os.getpid()}-{name}" for name in ("operator", "head", "worker")]
TOKEN = "a-token-of-this-test-alone-0123456789"

BUCKET, S3_PORT = "mtil-hosts", 8333
CIRCLE = (
    "mtil", "circle", "--config", "demo", "--data", f"s3://{BUCKET}/set",
    "--train.cpus-per-worker", "1.4",
)  # fmt: skip
"""A host with 2 CPUs has room for a single worker: for a fold, or for half of a fold. The worker
has a single thread, since the hosts share the processors of this machine."""
SHORT = (
    "--fold", "0", "--circle.num-rounds", "1", "--train.num-epochs", "1",
    "--model.encoder.name", "resnet10_tiny", "--model.encoder.pretrained", "false",
)  # fmt: skip
LONGER = ("--fold", "0,1", "--circle.num-rounds", "2", "--train.num-epochs", "8")
ALONE, TOGETHER = (("--train.num-workers", number) for number in "12")

Operate = Callable[..., "subprocess.CompletedProcess[str]"]

INSTALL = """
set -e
mount --bind {home} /mnt && mount -t tmpfs tmpfs /home && mkdir /home/mtil
mount --bind /mnt /home/mtil
exec /home/mtil/src/cluster/install.sh /home/mtil/venv
"""
HOST = """
set -e
hostname {name}
mount --bind {home} /mnt && mount --bind {venv} /mnt/venv
mount -t tmpfs tmpfs /home && mkdir /home/mtil && mount --rbind /mnt /home/mtil
for folder in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $folder; done
mkdir -m 755 /run/sshd
mount --bind /home/mtil/passwd /etc/passwd
exec /usr/sbin/sshd -D -f /home/mtil/sshd.conf -E /home/mtil/sshd.log
"""
SSHD = """
ListenAddress {address}
HostKey /home/mtil/hostkey
AuthorizedKeysFile /home/mtil/authorized_keys
PidFile none
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
UsePAM no
"""


def _why_not() -> str | None:
    """Return the reason why hosts cannot be made on this machine; None if possible."""
    missing = [name for name in ("ip", "rsync", "ssh", "unshare") if shutil.which(name) is None]
    missing += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if missing:
        return f"two hosts need the programs {', '.join(missing)}, which are not here"
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "mount", "-t", "tmpfs", "x", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    if os.geteuid() or tried.returncode:
        return f"network namespaces are not allowed here: {tried.stderr.strip() or 'not root'}"
    return None


REASON = _why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def venv(state: Path) -> Path:
    """Environment installed by cluster/install.sh from only the files copied by the Dockerfile."""
    home = state / "image"
    for words in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        *sources, target = words.split()
        for source in sources:
            to = home / "src" / (target if len(sources) == 1 else source)
            to.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(ROOT / source, to)
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", INSTALL.format(home=home)],
        # Python compiles modules when the hosts load them, and keeps the result.
        env=os.environ | {"PYTHON": os.path.realpath(sys.executable), "PIP_NO_COMPILE": "1"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "mtil is installed in /home/mtil/venv"
    return home / "venv"


@pytest.fixture(scope="module")
def hosts(state: Path, venv: Path) -> Iterator[list[psutil.Process]]:
    """Start two hosts. Yield the root process of every host."""
    operator, *others = NAMES
    for name in ("id", "hostkey"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(state / name)]
        subprocess.run(keygen, check=True)
    started: list[subprocess.Popen[bytes]] = []
    try:
        _ip("netns", "add", operator)
        _ip("-n", operator, "link", "set", "lo", "up")
        _ip("-n", operator, "link", "add", "bridge", "type", "bridge")
        _ip("-n", operator, "address", "add", f"{GATEWAY}/24", "dev", "bridge")
        _ip("-n", operator, "link", "set", "bridge", "up")
        for number, (name, address) in enumerate(zip(others, ADDRESSES, strict=True)):
            _ip("netns", "add", name)
            wire = ["link", "add", f"host{number}", "type", "veth", "peer", "eth0", "netns", name]
            _ip("-n", operator, *wire)
            _ip("-n", operator, "link", "set", f"host{number}", "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", name, "link", "set", link, "up")
            _ip("-n", name, "route", "add", "default", "via", GATEWAY)
            script = HOST.format(name=name, home=_home(state, name, address), venv=venv)
            inside = ["unshare", "--pid", "--mount", "--uts", "--fork", "--kill-child"]
            inside += ["--mount-proc", "bash", "-c", script]
            started.append(subprocess.Popen(["ip", "netns", "exec", name, *inside], cwd="/"))
        yield [psutil.Process(process.pid) for process in started]
    finally:
        for process in started:
            process.kill()  # ends all processes on the host
            process.wait()
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _home(state: Path, name: str, address: str) -> Path:
    home = state / name
    (home / "venv").mkdir(parents=True)
    shutil.copy2(state / "hostkey", home)
    shutil.copy2(state / "id.pub", home / "authorized_keys")
    (home / ".bashrc").touch()  # usual for users, and read by Ray
    (home / "sshd.conf").write_text(SSHD.format(address=address))
    users = Path("/etc/passwd").read_text()  # ssh takes the first name of a user id
    (home / "passwd").write_text(f"mtil:x:0:0::/home/mtil:/bin/bash\n{users}")
    return home


@pytest.fixture(scope="module")
def file(state: Path) -> Path:
    """The on-prem template, filled in as the comments say."""
    template = yaml.safe_load((ROOT / "cluster" / "templates" / "on-prem.yaml").read_text())
    template["provider"] |= {"head_ip": HEAD, "worker_ips": [WORKER]}
    template["auth"]["ssh_private_key"] = str(state / "id")
    keys = state / "aws"  # as the template says for an object store with keys
    keys.mkdir()
    (keys / "config").write_text(
        f"[default]\nregion = us-east-1\nendpoint_url = http://{GATEWAY}:{S3_PORT}\n"
    )
    (keys / "credentials").write_text(
        f"[default]\naws_access_key_id = {object_store.ACCESS_KEY}\n"
        f"aws_secret_access_key = {object_store.SECRET_KEY}\n"
    )
    template["file_mounts"]["/home/mtil/.aws"] = str(keys)
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        # Both hosts share this machine. By default, Ray takes a third of the memory per host.
        limits = "ray start --num-cpus=2 --object-store-memory=200000000 "
        template[key][-1] = template[key][-1].replace("ray start ", limits)
    # The first start of the worker fails, as on a busy machine.
    start = "until test -e ~/tried || ! touch ~/tried && ray start "
    assert "until ray start " in template[key][-1]
    template[key][-1] = template[key][-1].replace("until ray start ", start)
    path = state / "on-prem.yaml"
    path.write_text(yaml.safe_dump(template))
    return path


@pytest.fixture(scope="module")
def operate(state: Path, hosts: list[psutil.Process]) -> Operate:
    """Run `python -m cluster` in the operator's namespace, with a separate home folder."""
    token = state / "operator" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text(TOKEN)
    token.chmod(0o600)
    unset = ("RAY_ADDRESS", "RAY_AUTH_MODE")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment |= {"HOME": str(state / "operator"), "RAY_TMPDIR": str(state / "operator")}

    return partial(_run, "cluster", environment)


def _run(
    module: str, environment: dict[str, str], *words: str | Path, timeout_s: float = 600
) -> "subprocess.CompletedProcess[str]":
    """Run a module in the operator's namespace."""
    command = ["ip", "netns", "exec", NAMES[0], sys.executable, "-m", module]
    return subprocess.run(
        [*command, *map(str, words)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@pytest.fixture(scope="module")
def outside(state: Path, hosts: list[psutil.Process]) -> Iterator[Operate]:
    """Run `mtil` outside the cluster, with a data set on an S3 server for the hosts."""
    keys = {
        "AWS_ENDPOINT_URL": f"http://{GATEWAY}:{S3_PORT}",
        "AWS_ACCESS_KEY_ID": object_store.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": object_store.SECRET_KEY,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    run = partial(_run, "mtil", os.environ | keys)
    serve = ["ip", "netns", "exec", NAMES[0], sys.executable, "-m", "cluster", "object-store"]
    serve += ["--dir", str(state / "s3"), "--bucket", BUCKET, "--port", str(S3_PORT)]
    serve += ["--address", GATEWAY]
    with subprocess.Popen(serve, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            while not (line := server.stdout.readline()).startswith("# bucket"):
                assert line, "the S3 server has ended"
            done = run("phantom", state / "images", "--num-images", "60")
            assert done.returncode == 0, done.stderr
            prepare = ("prepare", state / "images", "--layout", "busi", "--num-folds", "3")
            done = run(*prepare, "--image-size", "64", "--to", f"s3://{BUCKET}/set")
            assert done.returncode == 0, done.stderr
            yield run
        finally:
            server.terminate()


def _programs(host: psutil.Process) -> set[str]:
    return {process.name() for process in host.children(recursive=True)}


def _monitor_log(head: psutil.Process) -> str:
    """Return the last lines of the autoscaler's log, from the head's /tmp."""
    inner = head.children(recursive=True)[-1].pid
    (log,) = Path(f"/proc/{inner}/root/tmp/ray").glob("session_2*/logs/monitor.log")
    return "\n".join(log.read_text().splitlines()[-60:])


def _has_cpus(
    file: Path, operate: Operate, hosts: list[psutil.Process], count: int
) -> "subprocess.CompletedProcess[str]":
    """Wait until the cluster has `count` CPUs. Return the last answer of `status`."""
    answers: list[subprocess.CompletedProcess[str]] = []

    def is_so() -> bool:
        answers[:] = [operate("status", file)]
        return f"/{count}.0 CPU" in answers[0].stdout

    try:
        until(is_so)
    except AssertionError as error:
        raise AssertionError(
            f"{count} CPUs did not come: {answers[0].stdout}\n{_monitor_log(hosts[0])}"
        ) from error
    return answers[0]


def test_two_hosts_come_up_run_a_circle_and_are_left_empty(
    file: Path, operate: Operate, outside: Operate, hosts: list[psutil.Process]
) -> None:
    """Both hosts train together, with a process per host and an S3 server outside the cluster."""
    up = operate("up", file, "--yes")
    assert up.returncode == 0, up.stdout + up.stderr
    status = _has_cpus(file, operate, hosts, 4)
    assert status.returncode == 0, status.stdout + status.stderr
    assert "Active:" in status.stdout

    job = operate("submit", "--cluster", file, "--", "mtil", "doctor")
    assert "2 node(s) with 4 CPUs" in job.stdout, job.stdout + job.stderr
    assert job.returncode == 0, job.stdout + job.stderr
    run = f"s3://{BUCKET}/run"
    job = operate("submit", "--cluster", file, "--", *CIRCLE, *SHORT, *TOGETHER, "--run", run)
    assert job.returncode == 0, job.stdout + job.stderr
    result = json.loads(outside("status", "--run", run, "--json").stdout)
    assert result["verified"] is True
    assert result["stages"] == {"0": {"0": "done"}}, result
    failed = operate("submit", "--cluster", file, "--", "bash", "-c", "hostname; exit 7")
    assert failed.returncode == 7, failed.stdout + failed.stderr
    assert NAMES[1] in failed.stdout

    down = operate("down", file, "--yes")
    assert down.returncode == 0, down.stdout + down.stderr
    until(lambda: all(_programs(host) == {"sshd"} for host in hosts))


@pytest.mark.long
def test_a_host_that_is_cut_off_costs_nothing_but_time(
    file: Path, operate: Operate, outside: Operate, hosts: list[psutil.Process]
) -> None:
    """A training host loses link and raylet. After the return, the cluster uses the host again."""
    up = operate("up", file, "--yes")
    assert up.returncode == 0, up.stdout + up.stderr
    _has_cpus(file, operate, hosts, 4)

    def circle(name: str, *words: str) -> "subprocess.CompletedProcess[str]":
        submit = ("submit", "--cluster", file, "--", *CIRCLE, *words)
        return operate(*submit, "--run", f"s3://{BUCKET}/{name}", timeout_s=900)

    def rounds(name: str) -> object:
        return json.loads(outside("status", "--run", f"s3://{BUCKET}/{name}", "--json").stdout)[
            "rounds"
        ]

    quiet = circle("quiet", *LONGER, *ALONE)
    assert quiet.returncode == 0, quiet.stdout + quiet.stderr
    with ThreadPoolExecutor(1) as pool:
        cut = pool.submit(circle, "cut", *LONGER, *ALONE)
        trains = lambda: any(name.startswith("ray::RayTrain") for name in _programs(hosts[1]))  # noqa: E731
        until(lambda: trains() or cut.done())
        assert not cut.done()
        _ip("-n", NAMES[2], "link", "set", "eth0", "down")
        for process in hosts[1].children(recursive=True):
            if process.name() == "raylet":
                process.kill()
        _has_cpus(file, operate, hosts, 2)  # the head has noticed
        _ip("-n", NAMES[2], "link", "set", "eth0", "up")
        job = cut.result()
    assert job.returncode == 0, job.stdout + job.stderr
    assert rounds("cut") == rounds("quiet")
    _has_cpus(file, operate, hosts, 4)
    wide = circle("wide", *SHORT, *TOGETHER)  # needs both hosts
    assert wide.returncode == 0, wide.stdout + wide.stderr
    down = operate("down", file, "--yes")
    assert down.returncode == 0, down.stdout + down.stderr


def test_a_host_that_cannot_be_reached_is_named(file: Path, operate: Operate) -> None:
    _ip("-n", NAMES[2], "link", "set", "eth0", "down")
    try:
        down = operate("down", file, "--yes")
    finally:
        _ip("-n", NAMES[2], "link", "set", "eth0", "up")
    assert down.returncode == 1
    assert f"but was not on {WORKER} (see ssh" in down.stderr
