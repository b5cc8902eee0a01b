"""What a cluster file must keep to; each rule is a function that yields a sentence a violation.

Rules look at the file alone, and at this checkout; none asks a network.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import ray.util.accelerators

from cluster import files, prices
from cluster.files import LAUNCHED, ClusterFile

Rule = Callable[[ClusterFile], Iterator[str]]

RENTED = ("aws", "gcp")
_PIN = re.compile(r"^ray==(\S+)$", re.MULTILINE)
_INSTALLS = re.compile(r"\b(?:pip|conda|uv)3?\b[^;&|]*\binstall\b")
_SECRET_NAME = re.compile(r"(?:^|[._])[A-Z0-9_]*(?:SECRET|PASSWORD|TOKEN|ACCESS_KEY)[A-Z0-9_]*$")
_SECRET_WORDS = re.compile(
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\b[A-Z0-9_]*(?:SECRET|PASSWORD|TOKEN|ACCESS_KEY)[A-Z0-9_]*(?<!_PATH)(?<!_FILE)=[^\s$'\"]{8,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_MAX_IDLE_MINUTES = 60


def one_image(file: ClusterFile) -> Iterator[str]:
    """Machines of one cluster start from one image."""
    images = {group.image for group in file.groups}
    if len(images) > 1:
        told = ", ".join(f"{group.name}: {group.image}" for group in file.groups)
        yield f"All machines must have one image, but got {told}; give all of them the head's."


def pinned_versions(file: ClusterFile) -> Iterator[str]:
    """Machines of one cluster have the versions of constraints.txt, Ray's above all."""
    found = _PIN.search((files.ROOT / "constraints.txt").read_text())
    assert found is not None
    version = found[1]
    if file.kind == "kuberay":
        told = files.ray_cluster_spec(file.document).get("rayVersion")
        if told != version:
            yield f"`rayVersion` must be constraints.txt's {version}, but is {told}."
    for group in file.groups:
        named = re.search(r"rayproject/ray(?:-ml)?:(\d[\d.]*\d)", group.image or "")
        if named and named[1] != version:
            yield f"The image of {group.name} must have Ray {version}, but is {group.image}."
        if file.kind == "kuberay" or file.document.get("docker"):
            continue
        if not any("cluster/install.sh" in command for command in group.setup):
            yield (
                f"The set-up of {group.name} must run cluster/install.sh, which has the versions "
                "of constraints.txt, but does not."
            )
        loose = [c for c in group.setup if _INSTALLS.search(c) and "constraint" not in c]
        for command in loose:
            yield (
                f"Packages must come from cluster/install.sh, but {group.name} runs "
                f"`{command}`, which machines may do differently; add them to pyproject.toml."
            )


def closed_ports(file: ClusterFile) -> Iterator[str]:
    """Nothing listens on a public address."""
    for key, value in files.scalars(file.document):
        if value in ("0.0.0.0/0", "::/0"):
            yield f"Ports must not be open to everybody, but `{key}` is {value}; name your address."
        if value in ("LoadBalancer", "NodePort") and key.endswith(("serviceType", "spec.type")):
            yield f"`{key}` must be ClusterIP, but is {value}; use `kubectl port-forward`."
        if key.endswith("enableIngress") and value is True:
            yield f"`{key}` must be false; reach the cluster with `kubectl port-forward`."
        if key.startswith("resources.ports"):
            yield f"`resources.ports` must be left out, but opens {value} to everybody."
    for group in file.groups:
        for command in group.start:
            wide = re.search(r"--(?:dashboard|ray-client-server)-host[= ](0\.0\.0\.0|::)", command)
            if wide:
                yield (
                    f"The dashboard runs whatever it is sent, so it must listen on 127.0.0.1, but "
                    f"{group.name} says {wide[0]}; `submit --cluster` reaches it through ssh."
                )


def own_security_group(file: ClusterFile) -> Iterator[str]:
    """AWS: machines are in a security group that was made for them."""
    if file.kind != "aws":
        return
    named = file.document["provider"].get("security_group", {}).get("GroupName")
    own = all(
        file.document["available_node_types"][group.name]["node_config"].get("SecurityGroupIds")
        for group in file.groups
    )
    if not named and not own:
        yield (
            "`provider.security_group.GroupName` must name a group of yours, but is missing, and "
            "the one that Ray makes opens port 22 to everybody; docs/cluster.md makes one."
        )


def token_authentication(file: ClusterFile) -> Iterator[str]:
    """Ray asks for a token."""
    if file.kind == "kuberay":
        options = files.ray_cluster_spec(file.document).get("authOptions", {})
        if options.get("mode") != "token":
            yield "`authOptions.mode` must be token, or anybody in the cluster may run anything."
        return
    for group in file.groups:
        starts = [command for command in group.start if "ray start" in command]
        if not starts:
            yield f"{group.name} must have a command with `ray start`, but has none."
        if any(files.TOKEN_MODE not in command for command in starts):
            yield (
                f"`ray start` must have RAY_AUTH_MODE=token, but that of {group.name} has not, so "
                "that whoever reaches its ports may run anything."
            )


def no_secrets(file: ClusterFile) -> Iterator[str]:
    """A file holds no key: it is kept in a repository, and copied to every machine."""
    way_out = "use an instance profile, a mounted file or a Kubernetes secret."
    for key, value in files.scalars(file.document):
        if not isinstance(value, str):
            continue
        literal = bool(_SECRET_NAME.search(key)) and bool(value) and not value.startswith("$")
        if literal or _SECRET_WORDS.search(value):
            yield f"The file must hold no secrets, but `{key}` looks like one; {way_out}"
    for group in file.document.get("spec", {}).values() if file.kind == "kuberay" else ():
        for name in _literal_secrets(group):
            yield f"The file must hold no secrets, but {name} has a value in it; {way_out}"


def _literal_secrets(node: object) -> Iterator[str]:
    """Find `{name: AWS_SECRET_ACCESS_KEY, value: …}`, as Kubernetes writes environments."""
    if isinstance(node, dict):
        if _SECRET_NAME.search(str(node.get("name", ""))) and node.get("value"):
            yield str(node["name"])
        for value in node.values():
            yield from _literal_secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _literal_secrets(value)


def instance_profiles(file: ClusterFile) -> Iterator[str]:
    """AWS: machines reach the bucket by a role of theirs."""
    for group in file.groups if file.kind == "aws" else ():
        config = file.document["available_node_types"][group.name]["node_config"]
        if not config.get("IamInstanceProfile"):
            yield (
                f"{group.name} must have an `IamInstanceProfile`, by which it reaches the bucket "
                "without keys, but has none; docs/cluster.md makes one."
            )


def head_without_work(file: ClusterFile) -> Iterator[str]:
    """Where machines are rented, the head is small, has no GPU and takes no tasks."""
    if file.kind not in (*RENTED, "kuberay"):
        return
    if file.head.cpus != 0:
        yield (
            "The head must offer no CPU (`CPU: 0`), or trainings land on it and take the cluster "
            f"down with them, but offers {_number(file.head.cpus)}."
        )
    if file.head.gpus:
        yield f"The head must have no GPU, since it takes no work, but has {file.head.gpus:g}."


def from_zero(file: ClusterFile) -> Iterator[str]:
    """Rented workers come when they are needed and go when they are idle."""
    if file.kind not in (*RENTED, "kuberay"):
        return
    for group in file.workers:
        if group.smallest:
            yield (
                f"{group.name} must start from 0 workers, or it costs while nothing runs, but "
                f"starts from {group.smallest}."
            )
    idle: float | None = file.document.get("idle_timeout_minutes")
    if file.kind == "kuberay":
        spec = files.ray_cluster_spec(file.document)
        if spec.get("enableInTreeAutoscaling") is not True:
            yield "`enableInTreeAutoscaling` must be true, or workers neither come nor go."
        seconds = spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds")
        idle = None if seconds is None else seconds / 60
    if idle is None or not 0 < idle <= _MAX_IDLE_MINUTES:
        yield (
            f"Idle workers must go within {_MAX_IDLE_MINUTES} minutes, but the idle timeout is "
            f"{_number(idle)}."
        )


def counts_fit(file: ClusterFile) -> Iterator[str]:
    """Numbers of workers agree with one another."""
    for group in file.workers:
        if group.smallest > group.largest:
            yield f"{group.name} must not start from more than {group.largest} workers, but does."
    if file.max_workers is not None:
        least = sum(group.smallest for group in file.workers)
        if least > file.max_workers:
            yield f"`max_workers` must be {least} or more, but is {file.max_workers}."
    if file.kind == "local":
        hosts = file.document["provider"].get("worker_ips", [])
        if file.document["provider"].get("head_ip") in hosts:
            yield "`worker_ips` must not name the head, which works too, but does."
        if file.workers[0].largest > len(hosts):
            yield f"`max_workers` must be {len(hosts)}, the number of `worker_ips`, or fewer."


def known_gpus(file: ClusterFile) -> Iterator[str]:
    """GPUs are of a type that Ray knows, and as many as the machine has."""
    names = {v for k, v in vars(ray.util.accelerators).items() if k.isupper()}
    for group in file.groups:
        if group.accelerator is not None and group.accelerator not in names:
            yield (
                f"The GPU of {group.name} must be of a type that Ray knows, but is "
                f"{group.accelerator}; ray.util.accelerators lists them."
            )
        known = prices.machine(file, group)
        if known and group.gpus is not None and group.gpus != known.gpus:
            yield (
                f"{group.name} must say `GPU: {known.gpus}`, which is what {known.type} has, but "
                f"says {group.gpus:g}."
            )
        if known and group.cpus and group.cpus > known.cpus:
            yield (
                f"{group.name} must not say more than `CPU: {known.cpus}`, which is what "
                f"{known.type} has, but says {group.cpus:g}."
            )


def room_for_data(file: ClusterFile) -> Iterator[str]:
    """A machine has CPUs left for Ray Data beside one for each GPU's worker."""
    for group in file.groups:
        known = prices.machine(file, group)
        cpus = group.cpus if group.cpus is not None or known is None else known.cpus
        if group.gpus and cpus is not None and cpus < group.gpus + 1:
            yield (
                f"{group.name} must have a CPU for each GPU and one for Ray Data, which else "
                f"waits for ever, but has {cpus:g} for {group.gpus:g}; take a larger machine."
            )


def launchable(file: ClusterFile) -> Iterator[str]:
    """What `ray up` needs to bring a cluster up."""
    if file.kind not in LAUNCHED:
        return
    heads = [command for command in file.head.start if "ray start" in command]
    if not any("--autoscaling-config" in command for command in heads):
        yield (
            "The head's `ray start` must have --autoscaling-config=~/ray_bootstrap_config.yaml, or "
            "no worker ever comes, but has not."
        )
    if file.kind != "local":
        return
    if "available_node_types" in file.document:
        yield "`available_node_types` must be left out for the provider local, but is there."
    for group in file.groups:
        if not any("RAY_enable_autoscaler_v2=0" in command for command in group.start):
            yield (
                f"{group.name} must start with RAY_enable_autoscaler_v2=0, because Ray's newer "
                "autoscaler never brings local workers in, but does not."
            )


def mounts_are_there(file: ClusterFile) -> Iterator[str]:
    """What is copied to the machines exists."""
    mounts = file.document.get("file_mounts", {}) if file.kind in LAUNCHED else {}
    for remote, local in mounts.items():
        if not str(remote).startswith("/"):
            yield f"`file_mounts` must name absolute paths on the machines, but has {remote}."
        path, is_token = local_path(str(local)), "auth_token" in str(local)
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
    elif path.stat().st_mode & 0o077:
        yield f"Nobody else may read {name}, or ssh refuses it; run `chmod 600 {name}`."


def local_path(name: str) -> Path:
    """Return a path that a file names on this machine; relative ones start at the checkout."""
    return files.ROOT / Path(name).expanduser()


def _number(value: float | None) -> str:
    return "not said" if value is None else f"{value:g}"


RULES: tuple[Rule, ...] = (
    one_image, pinned_versions, closed_ports, own_security_group, token_authentication, no_secrets,
    instance_profiles, head_without_work, from_zero, counts_fit, known_gpus, room_for_data,
    launchable, mounts_are_there, ssh_key_is_there,
)  # fmt: skip
