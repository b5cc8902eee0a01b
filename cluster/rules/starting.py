"""What is needed to start Ray on machines, and to reach them."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from cluster import files
from cluster.commands import Start, ray_starts
from cluster.files import LAUNCHED, ClusterFile, Group

_PORT = "6379"
_ZONE = re.compile(r"\w[\w.-]*")
_ANYWHERE = re.compile(r"\$\{?RAY_HEAD_IP\}?")


def launchable(file: ClusterFile) -> Iterator[str]:
    """What `ray up` needs to bring a cluster up: one head, and workers that join it."""
    if file.kind not in LAUNCHED:
        return
    heads = _starts(file.head)
    for start in heads:
        if "--head" not in start.options:
            yield "The head's `ray start` must have --head, but has not."
    if not any("--autoscaling-config" in start.options for start in heads):
        yield (
            "The head's `ray start` must have --autoscaling-config=~/ray_bootstrap_config.yaml, or "
            "no worker ever comes, but has not."
        )
    port = next((start.options["--port"] for start in heads if "--port" in start.options), _PORT)
    told = set()
    for group in file.workers:
        for problem in _joins(file, group, port):
            if problem not in told:
                told.add(problem)
                yield problem


def _starts(group: Group) -> list[Start]:
    return [start for command in group.start for start in ray_starts(command)]


def _joins(file: ClusterFile, group: Group, port: str) -> Iterator[str]:
    for start in _starts(group):
        if "--head" in start.options:
            yield "Workers must join the head, but start with --head a cluster of their own."
            continue
        address = start.options.get("--address", "")
        host, _, found = address.rpartition(":")
        head = file.document["provider"].get("head_ip")
        if not _ANYWHERE.fullmatch(host) and host != head:
            yield f"Workers must join $RAY_HEAD_IP:{port}, but join {address or 'nothing'}."
        elif found != port:
            yield f"Workers must join the head's port {port}, but join {found}."


def older_autoscaler(file: ClusterFile) -> Iterator[str]:
    """On premises: Ray's newer autoscaler never brings workers in."""
    for group in file.groups if file.kind == "local" else ():
        if any(one.variables.get("RAY_enable_autoscaler_v2") != "0" for one in _starts(group)):
            yield (
                f"{group.name} must start with RAY_enable_autoscaler_v2=0, because Ray's newer "
                "autoscaler never brings local workers in, but does not."
            )


def only_hosts(file: ClusterFile) -> Iterator[str]:
    """On premises: nothing is there that is for clouds or containers."""
    if file.kind != "local":
        return
    if "available_node_types" in file.document:
        yield "`available_node_types` must be left out for the provider local, but is there."
    if "docker" in file.document:
        yield "`docker` must be left out for the provider local, whose `down` ends processes."
    if "coordinator_address" in file.document["provider"]:
        yield "`provider.coordinator_address` must be left out: the hosts are named in this file."


def hosts(file: ClusterFile) -> Iterator[str]:
    """On premises: hosts are named, each once, by something that can be an address."""
    if file.kind != "local":
        return
    provider = file.document["provider"]
    head, workers = provider.get("head_ip"), provider.get("worker_ips")
    if not head:
        yield "`provider.head_ip` must name the head, but is missing."
    if workers is None:
        yield "`provider.worker_ips` must name the other hosts, but is missing."
        return
    if head in workers:
        yield "`worker_ips` must not name the head, which works too, but does."
    twice = sorted({str(host) for host in workers if workers.count(host) > 1})
    if twice:
        yield f"`worker_ips` must name each host once, but has {', '.join(twice)} twice."
    if file.workers[0].largest > len(workers):
        yield f"`max_workers` must be {len(workers)}, the number of `worker_ips`, or fewer."
    for host in filter(None, [head, *workers]):
        if not can_be_reached(str(host)):
            yield f"`provider` must name hosts by an address or a name, but has {host}."


def can_be_reached(host: str) -> bool:
    """Say whether something can be the address or the name of a host."""
    try:
        zone = getattr(ipaddress.ip_address(host), "scope_id", None)
        return not ipaddress.ip_address(host).is_unspecified and bool(_ZONE.fullmatch(zone or "0"))
    except ValueError:
        name = re.fullmatch(r"[A-Za-z0-9]([\w-]*\w)?(\.\w([\w-]*\w)?)*", host)
        return bool(name) and not re.fullmatch(r"[\d.]+", host)


def mounts_are_there(file: ClusterFile) -> Iterator[str]:
    """What is copied to the machines exists."""
    for remote, local in (file.document.get("file_mounts") or {}).items():
        if file.kind == "skypilot" and (not isinstance(local, str) or "://" in local):
            continue  # a bucket
        if file.kind in LAUNCHED and not str(remote).startswith("/"):
            yield f"`file_mounts` must name absolute paths on the machines, but has {remote}."
        path, is_token = local_path(str(local)), "auth_token" in str(remote)
        if not path.exists():
            how = "; run `ray get-auth-token --generate`" if is_token else ""
            yield f"`file_mounts` must name paths that exist here, but {local} does not{how}."
        elif is_token and path.stat().st_mode & 0o077:
            yield f"Nobody else may read {local}, here or there; run `chmod 600 {local}`."


def ssh_key_is_there(file: ClusterFile) -> Iterator[str]:
    """The private key exists and nobody else may read it; a cloud without one gets one from Ray."""
    if file.kind not in LAUNCHED:
        return
    auth = file.document.get("auth", {})
    if not auth.get("ssh_user"):
        yield "`auth.ssh_user` must say who logs in, but is missing."
    name = auth.get("ssh_private_key")
    if name is None:
        if file.kind == "local":
            yield "`auth.ssh_private_key` must name a private key, but is missing."
        return
    path = local_path(str(name))
    if not path.is_file():
        yield (
            f"`auth.ssh_private_key` must exist, but {name} does not; make one with "
            f"`ssh-keygen -t ed25519 -f {name}`."
        )
    elif path.read_bytes()[:4] == b"ssh-":
        yield f"`auth.ssh_private_key` must be the private key, but {name} is the public one."
    elif path.stat().st_mode & 0o077:
        yield f"Nobody else may read {name}, or ssh refuses it; run `chmod 600 {name}`."


def local_path(name: str) -> Path:
    """Return a path that a file names on this machine; relative ones start at the checkout."""
    return files.ROOT / Path(name).expanduser()


RULES = (launchable, older_autoscaler, only_hosts, hosts, mounts_are_there, ssh_key_is_there)
