"""Rules on starting Ray on machines and on reaching the machines."""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path

from cluster import files
from cluster.commands import RayStart, find_ray_starts
from cluster.files import RAY_UP_KINDS, ClusterFile, MachineGroup

_DEFAULT_PORT = "6379"
_ZONE = re.compile(r"\w[\w.-]*")
_HEAD_VARIABLE = re.compile(r"\$\{?RAY_HEAD_IP\}?")


def check_start_commands(file: ClusterFile) -> Iterator[str]:
    """Require start commands of a head, and of workers that join the head."""
    if file.kind not in RAY_UP_KINDS:
        return
    heads = _find_starts(file.head)
    for start in heads:
        if "--head" not in start.options:
            yield "The head's `ray start` must have --head, but does not."
    if not any("--autoscaling-config" in start.options for start in heads):
        yield (
            "The head's `ray start` must have --autoscaling-config=~/ray_bootstrap_config.yaml, or "
            "no worker ever starts, but does not."
        )
    port = next(
        (start.options["--port"] for start in heads if "--port" in start.options), _DEFAULT_PORT
    )
    # Groups share start commands, so report each problem once.
    reported = set()
    for group in file.workers:
        for problem in _check_address(file, group, port):
            if problem not in reported:
                reported.add(problem)
                yield problem


def _find_starts(group: MachineGroup) -> list[RayStart]:
    return [start for command in group.start for start in find_ray_starts(command)]


def _check_address(file: ClusterFile, group: MachineGroup, port: str) -> Iterator[str]:
    for start in _find_starts(group):
        if "--head" in start.options:
            yield "Workers must join the head, but start their own cluster with --head."
            continue
        address = start.options.get("--address", "")
        host, _, worker_port = address.rpartition(":")
        head = file.document["provider"].get("head_ip")
        if not _HEAD_VARIABLE.fullmatch(host) and host != head:
            yield f"Workers must join $RAY_HEAD_IP:{port}, but join {address or 'nothing'}."
        elif worker_port != port:
            yield f"Workers must join the head's port {port}, but join {worker_port}."


def check_autoscaler_version(file: ClusterFile) -> Iterator[str]:
    """On premises: require Ray's older autoscaler. The newer autoscaler never starts workers."""
    for group in file.groups if file.kind == "local" else ():
        if any(
            start.variables.get("RAY_enable_autoscaler_v2") != "0" for start in _find_starts(group)
        ):
            yield (
                f"{group.name} must start with RAY_enable_autoscaler_v2=0, because Ray's newer "
                "autoscaler never starts local workers, but does not."
            )


def check_on_prem_settings(file: ClusterFile) -> Iterator[str]:
    """On premises: refuse settings for clouds and containers."""
    if file.kind != "local":
        return
    if "available_node_types" in file.document:
        yield "`available_node_types` must be left out for the provider local, but is present."
    if "docker" in file.document:
        yield "`docker` must be left out for the provider local, whose `down` ends processes."
    if "coordinator_address" in file.document["provider"]:
        yield "`provider.coordinator_address` must be left out: the hosts are named in this file."


def check_hosts(file: ClusterFile) -> Iterator[str]:
    """On premises: require each host once, by a valid address or name."""
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
        yield "`worker_ips` must not name the head, which also works, but does."
    twice = sorted({str(host) for host in workers if workers.count(host) > 1})
    if twice:
        yield f"`worker_ips` must name each host once, but has {', '.join(twice)} twice."
    if file.workers[0].largest > len(workers):
        yield f"`max_workers` must be {len(workers)}, the number of `worker_ips`, or fewer."
    for host in filter(None, [head, *workers]):
        if not is_valid_host(str(host)):
            yield f"`provider` must name hosts by an address or a name, but has {host}."


def is_valid_host(host: str) -> bool:
    """Return whether a text is a valid address or name of a host."""
    try:
        zone = getattr(ipaddress.ip_address(host), "scope_id", None)
        return not ipaddress.ip_address(host).is_unspecified and bool(_ZONE.fullmatch(zone or "0"))
    except ValueError:
        name = re.fullmatch(r"[A-Za-z0-9]([\w-]*\w)?(\.\w([\w-]*\w)?)*", host)
        return bool(name) and not re.fullmatch(r"[\d.]+", host)


def check_mount_sources(file: ClusterFile) -> Iterator[str]:
    """Require existing local paths in `file_mounts`, and a private token file."""
    for remote, local in (file.document.get("file_mounts") or {}).items():
        if file.kind == "skypilot" and (not isinstance(local, str) or "://" in local):
            # A bucket, not a local path.
            continue
        if file.kind in RAY_UP_KINDS and not str(remote).startswith("/"):
            yield f"`file_mounts` must name absolute paths on the machines, but has {remote}."
        path, is_token = resolve_local_path(str(local)), "auth_token" in str(remote)
        if not path.exists():
            remedy = "; run `ray get-auth-token --generate`" if is_token else ""
            yield f"`file_mounts` must name paths that exist here, but {local} does not{remedy}."
        elif is_token and path.stat().st_mode & 0o077:
            yield f"Nobody else may read {local}, here or there; run `chmod 600 {local}`."


def check_ssh_key(file: ClusterFile) -> Iterator[str]:
    """Require an existing private ssh key, readable only by its owner."""
    if file.kind not in RAY_UP_KINDS:
        return
    auth = file.document.get("auth", {})
    if not auth.get("ssh_user"):
        yield "`auth.ssh_user` must name the user for ssh, but is missing."
    name = auth.get("ssh_private_key")
    if name is None:
        # On clouds, Ray creates a missing key.
        if file.kind == "local":
            yield "`auth.ssh_private_key` must name a private key, but is missing."
        return
    path = resolve_local_path(str(name))
    if not path.is_file():
        yield (
            f"`auth.ssh_private_key` must exist, but {name} does not; create the key with "
            f"`ssh-keygen -t ed25519 -f {name}`."
        )
    elif path.read_bytes()[:4] == b"ssh-":
        yield f"`auth.ssh_private_key` must be the private key, but {name} is a public key."
    elif path.stat().st_mode & 0o077:
        yield f"Nobody else may read {name}, or ssh refuses it; run `chmod 600 {name}`."


def resolve_local_path(name: str) -> Path:
    """Return a local path from a cluster file. Relative paths start at the checkout."""
    return files.ROOT / Path(name).expanduser()


RULES = (
    check_start_commands,
    check_autoscaler_version,
    check_on_prem_settings,
    check_hosts,
    check_mount_sources,
    check_ssh_key,
)
