"""Who may run something on a cluster, and what the cluster may reach."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import credentials, files
from cluster.commands import ray_starts
from cluster.files import LAUNCHED, RENTED, ClusterFile
from cluster.rules.arguments import USER

_TOKEN = ".ray/auth_token"


def own_security_group(file: ClusterFile) -> Iterator[str]:
    """AWS: machines are in a security group that was made for them."""
    if file.kind != "aws":
        return
    named = file.document["provider"].get("security_group", {}).get("GroupName")
    own = all(node_config(file, group.name).get("SecurityGroupIds") for group in file.groups)
    if not named and not own:
        yield (
            "`provider.security_group.GroupName` must name a group of yours, but is missing, and "
            "the one that Ray makes opens port 22 to everybody; docs/cluster.md makes one."
        )


def node_config(file: ClusterFile, name: str) -> dict[str, Any]:
    """Return what a file says to a cloud of a type of machine."""
    config: dict[str, Any] = file.document["available_node_types"][name]["node_config"]
    return config


def token_authentication(file: ClusterFile) -> Iterator[str]:
    """Ray asks for a token."""
    if file.kind == "kuberay":
        yield from _token_of_pods(file)
        return
    name, mode = files.TOKEN_MODE.split("=")
    for group in file.groups:
        given = dict(group.variables)
        starts = [one for command in group.start for one in ray_starts(command, given)]
        if not starts:
            yield f"{group.name} must have a command with `ray start`, but has none."
        if any(one.variables.get(name) != mode for one in starts):
            yield (
                f"`ray start` must have {files.TOKEN_MODE}, but that of {group.name} has not, so "
                "that whoever reaches its ports may run anything."
            )


def _token_of_pods(file: ClusterFile) -> Iterator[str]:
    options = files.ray_cluster_spec(file.document).get("authOptions", {})
    if options.get("mode") != "token":
        yield "`authOptions.mode` must be token, or anybody in the cluster may run anything."
    for group in file.groups:
        mode = dict(group.variables).get("RAY_AUTH_MODE", "token")
        if mode != "token":
            yield f"{group.name} must not set RAY_AUTH_MODE, which KubeRay does, but says {mode}."


def token_on_every_machine(file: ClusterFile) -> Iterator[str]:
    """Machines that ask for a token have one, where Ray looks for it."""
    if file.kind == "kuberay":
        return
    mounts = [str(remote) for remote in file.document.get("file_mounts") or {}]
    found = [remote for remote in mounts if remote.endswith(f"/{_TOKEN}")]
    elsewhere = any(
        name in text
        for group in file.groups
        for text in (*group.start, *dict(group.variables))
        for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    )
    if not found and not elsewhere:
        yield f"`file_mounts` must have ~/{_TOKEN}, without which no machine joins, but has not."
    user = file.document.get("auth", {}).get("ssh_user")
    for remote in found:
        parts = Path(remote).parts
        whose = parts[2] if parts[:2] == ("/", "home") else user
        is_name = USER.fullmatch(str(user)) and file.kind in LAUNCHED  # else arguments.py says so
        if is_name and user and whose != user and "docker" not in file.document:
            yield f"`file_mounts` must put the token into the home of {user}, but has {remote}."


def no_secrets(file: ClusterFile) -> Iterator[str]:
    """A file holds no key: it is kept in a repository, and copied to every machine."""
    way_out = "use an instance profile, a mounted file or a Kubernetes secret."
    for key, value in files.scalars(file.document):
        name = key.rpartition(".")[2] if "/" not in key else ""
        literal = name.isupper() or len(str(value)) >= 8
        held = credentials.is_secret_name(name) and credentials.is_literal(value) and literal
        if held or (isinstance(value, str) and next(credentials.found(value), None)):
            yield f"The file must hold no secrets, but `{key}` looks like one; {way_out}"
    for name in _literal_secrets(file.document) if file.kind == "kuberay" else ():
        yield f"The file must hold no secrets, but {name} has a value in it; {way_out}"


def _literal_secrets(node: object) -> Iterator[str]:
    """Find `{name: AWS_SECRET_ACCESS_KEY, value: …}`, as Kubernetes writes environments."""
    if isinstance(node, dict):
        name = str(node.get("name", ""))
        if credentials.is_secret_name(name) and credentials.is_literal(node.get("value")):
            yield name
        for value in node.values():
            yield from _literal_secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _literal_secrets(value)


def no_key_folders(file: ClusterFile) -> Iterator[str]:
    """Rented machines have a role of theirs, and so nobody's keys."""
    for remote, local in (
        file.document.get("file_mounts", {}).items() if file.kind in RENTED else ()
    ):
        for folder in (".aws", ".config/gcloud", ".ssh"):
            if f"{remote}/".endswith(f"/{folder}/") or f"{local}/".endswith(f"/{folder}/"):
                yield (
                    f"`file_mounts` must not copy keys to the machines, but has {local}; they have "
                    "a role of their own."
                )
                break


def instance_profiles(file: ClusterFile) -> Iterator[str]:
    """AWS: machines reach the bucket by a role of theirs, workers by one that can do no more."""
    if file.kind != "aws":
        return
    heads = node_config(file, file.head.name).get("IamInstanceProfile")
    for group in file.groups:
        own = node_config(file, group.name).get("IamInstanceProfile")
        if not own:
            yield (
                f"{group.name} must have an `IamInstanceProfile`, by which it reaches the bucket "
                "without keys, but has none; docs/cluster.md makes one."
            )
        elif not group.is_head and own == heads:
            yield (
                f"{group.name} must have an `IamInstanceProfile` of its own, but has the head's, "
                "which may start machines; docs/cluster.md makes mtil-worker."
            )


def hardened_machines(file: ClusterFile) -> Iterator[str]:
    """AWS: roles are not given away by a forged request, and disks are encrypted."""
    for group in file.groups if file.kind == "aws" else ():
        config = node_config(file, group.name)
        if (config.get("MetadataOptions") or {}).get("HttpTokens") == "optional":
            yield (
                f"`HttpTokens` of {group.name} must be required, but is optional, so "
                "that one forged request gets its role."
            )
        for disk in config.get("BlockDeviceMappings") or []:
            if disk.get("Ebs", {}).get("Encrypted") is False:
                yield f"Disks of {group.name} must be encrypted, but {disk['DeviceName']} is not."


def service_accounts(file: ClusterFile) -> Iterator[str]:
    """GCP: workers reach the bucket by a service account; Ray gives the head one."""
    for group in file.workers if file.kind == "gcp" else ():
        accounts = node_config(file, group.name).get("serviceAccounts") or []
        if not any(one.get("email") and one.get("scopes") for one in accounts):
            yield (
                f"{group.name} must have `serviceAccounts` with an email and scopes, by which it "
                "reaches the bucket, but has none; docs/cluster.md makes one."
            )


RULES = (
    own_security_group, token_authentication, token_on_every_machine, no_secrets, no_key_folders,
    instance_profiles, hardened_machines, service_accounts,
)  # fmt: skip
