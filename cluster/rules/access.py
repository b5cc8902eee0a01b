"""Rules on access to the cluster and on the cluster's own rights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import credentials, files
from cluster.commands import find_ray_starts
from cluster.files import RAY_UP_KINDS, RENTED_KINDS, ClusterFile
from cluster.rules.arguments import USER_PATTERN

_TOKEN_PATH = ".ray/auth_token"


def check_security_group(file: ClusterFile) -> Iterator[str]:
    """AWS: require a security group made for the cluster."""
    if file.kind != "aws":
        return
    name = file.document["provider"].get("security_group", {}).get("GroupName")
    has_ids = all(
        get_node_config(file, group.name).get("SecurityGroupIds") for group in file.groups
    )
    if not name and not has_ids:
        yield (
            "`provider.security_group.GroupName` must name a group of yours, but is missing. "
            "Ray's own group opens port 22 to everybody; create a group as in docs/cluster.md."
        )


def get_node_config(file: ClusterFile, name: str) -> dict[str, Any]:
    """Return the `node_config` of a node type."""
    config: dict[str, Any] = file.document["available_node_types"][name]["node_config"]
    return config


def check_token_authentication(file: ClusterFile) -> Iterator[str]:
    """Require token authentication."""
    if file.kind == "kuberay":
        yield from _check_kuberay_token(file)
        return
    name, mode = files.TOKEN_MODE.split("=")
    for group in file.groups:
        given = dict(group.variables)
        starts = [start for command in group.start for start in find_ray_starts(command, given)]
        if not starts:
            yield f"{group.name} must have a command with `ray start`, but has none."
        if any(start.variables.get(name) != mode for start in starts):
            yield (
                f"`ray start` must have {files.TOKEN_MODE}, but lacks it in {group.name}, so "
                "everybody in reach of the ports may run anything."
            )


def _check_kuberay_token(file: ClusterFile) -> Iterator[str]:
    options = files.find_ray_cluster_spec(file.document).get("authOptions", {})
    if options.get("mode") != "token":
        yield "`authOptions.mode` must be token, or everybody in the cluster may run anything."
    for group in file.groups:
        mode = dict(group.variables).get("RAY_AUTH_MODE", "token")
        if mode != "token":
            yield f"{group.name} must not set RAY_AUTH_MODE, which KubeRay sets, but has {mode}."


def check_token_mounts(file: ClusterFile) -> Iterator[str]:
    """Require a token on every machine, in the place where Ray looks."""
    if file.kind == "kuberay":
        return
    mounts = [str(remote) for remote in file.document.get("file_mounts") or {}]
    token_mounts = [remote for remote in mounts if remote.endswith(f"/{_TOKEN_PATH}")]
    has_variable = any(
        name in text
        for group in file.groups
        for text in (*group.start, *dict(group.variables))
        for name in ("RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")
    )
    if not token_mounts and not has_variable:
        yield f"`file_mounts` must have ~/{_TOKEN_PATH}, or no machine can join, but does not."
    user = file.document.get("auth", {}).get("ssh_user")
    for remote in token_mounts:
        parts = Path(remote).parts
        owner = parts[2] if parts[:2] == ("/", "home") else user
        # arguments.py reports malformed user names.
        is_name = USER_PATTERN.fullmatch(str(user)) and file.kind in RAY_UP_KINDS
        if is_name and user and owner != user and "docker" not in file.document:
            yield f"`file_mounts` must put the token into the home of {user}, but has {remote}."


def check_no_secrets(file: ClusterFile) -> Iterator[str]:
    """Refuse secrets: the file is kept in a repository and copied to every machine."""
    remedy = "use an instance profile, a mounted file or a Kubernetes secret."
    for key, value in files.walk_scalars(file.document):
        name = key.rpartition(".")[2] if "/" not in key else ""
        # A short value of a lower-case field is rarely a secret.
        is_value = name.isupper() or len(str(value)) >= 8
        is_secret = (
            credentials.is_secret_name(name) and credentials.is_literal_value(value) and is_value
        )
        if is_secret or (isinstance(value, str) and next(credentials.find_secrets(value), None)):
            yield f"The file must hold no secrets, but `{key}` looks like one; {remedy}"
    for name in _literal_secrets(file.document) if file.kind == "kuberay" else ():
        yield f"The file must hold no secrets, but {name} has a value in it; {remedy}"


def _literal_secrets(node: object) -> Iterator[str]:
    """Yield secrets with values in Kubernetes' form `{name: AWS_SECRET_ACCESS_KEY, value: …}`."""
    if isinstance(node, dict):
        name = str(node.get("name", ""))
        if credentials.is_secret_name(name) and credentials.is_literal_value(node.get("value")):
            yield name
        for value in node.values():
            yield from _literal_secrets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _literal_secrets(value)


def check_no_key_folders(file: ClusterFile) -> Iterator[str]:
    """Refuse key folders on rented machines, which have roles instead."""
    for remote, local in (
        file.document.get("file_mounts", {}).items() if file.kind in RENTED_KINDS else ()
    ):
        for folder in (".aws", ".config/gcloud", ".ssh"):
            if f"{remote}/".endswith(f"/{folder}/") or f"{local}/".endswith(f"/{folder}/"):
                yield (
                    f"`file_mounts` must not copy keys to the machines, but has {local}; the "
                    "machines have roles."
                )
                break


def check_instance_profiles(file: ClusterFile) -> Iterator[str]:
    """AWS: require roles for the bucket, and for workers a role without further rights."""
    if file.kind != "aws":
        return
    head_profile = get_node_config(file, file.head.name).get("IamInstanceProfile")
    for group in file.groups:
        profile = get_node_config(file, group.name).get("IamInstanceProfile")
        if not profile:
            yield (
                f"{group.name} must have an `IamInstanceProfile` to reach the bucket without keys, "
                "but has none; create the profile as in docs/cluster.md."
            )
        elif not group.is_head and profile == head_profile:
            yield (
                f"{group.name} must have its own `IamInstanceProfile`, but has the head's, which "
                "may start machines; create mtil-worker as in docs/cluster.md."
            )


def check_machine_hardening(file: ClusterFile) -> Iterator[str]:
    """AWS: require session tokens for the metadata service, and encrypted disks."""
    for group in file.groups if file.kind == "aws" else ():
        config = get_node_config(file, group.name)
        if (config.get("MetadataOptions") or {}).get("HttpTokens") == "optional":
            yield (
                f"`HttpTokens` of {group.name} must be required, but is optional, so "
                "a single forged request gets the machine's role."
            )
        for disk in config.get("BlockDeviceMappings") or []:
            if disk.get("Ebs", {}).get("Encrypted") is False:
                yield f"Disks of {group.name} must be encrypted, but {disk['DeviceName']} is not."


def check_service_accounts(file: ClusterFile) -> Iterator[str]:
    """GCP: require service accounts for workers to reach the bucket."""
    # Ray gives the head an account.
    for group in file.workers if file.kind == "gcp" else ():
        accounts = get_node_config(file, group.name).get("serviceAccounts") or []
        if not any(account.get("email") and account.get("scopes") for account in accounts):
            yield (
                f"{group.name} must have `serviceAccounts` with an email and scopes to reach the "
                "bucket, but has none; create an account as in docs/cluster.md."
            )


RULES = (
    check_security_group, check_token_authentication, check_token_mounts, check_no_secrets,
    check_no_key_folders,
    check_instance_profiles, check_machine_hardening, check_service_accounts,
)  # fmt: skip
