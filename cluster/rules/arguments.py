"""Rules on values passed to programs on this machine: ssh, rsync and Ray's launcher.

The programs read a value with a leading hyphen as an option: `ssh_user: "-oProxyCommand=…"` would
run a command here. Ray puts no `--` before the values.
"""

import re
from collections.abc import Iterator
from typing import Any

from cluster.files import RAY_UP_KINDS, ClusterFile
from cluster.rules.starting import is_valid_host

USER_PATTERN = re.compile(r"[A-Za-z0-9_][\w.+@\\-]{0,63}\$?")
_PATH = re.compile(r"[^-'\"\\%][^'\"\\]*")
_CLUSTER = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_CONTAINER = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
_IMAGE = re.compile(r"[A-Za-z0-9][\w./:@-]{0,511}")
_NAME = r"[A-Za-z0-9_][\w.@-]*"
_OPTION = (
    r"-[46aCqTx]+|-[lpJ] ?" + _NAME + r"|-i ?[\w/.~][\w/.~-]*"
    r"|-o ?(?:StrictHostKeyChecking|UserKnownHostsFile|IdentitiesOnly|ConnectTimeout|LogLevel"
    r"|ServerAliveInterval|ServerAliveCountMax)=[\w/.-]+"
)
_JUMP = re.compile(rf"ssh(?: (?:{_OPTION}))* -W ?%h:%p(?: (?:{_OPTION}))* {_NAME}")


def check_names(file: ClusterFile) -> Iterator[str]:
    """Require plain names for users, keys, clusters and hosts: no options, no paths upwards."""
    if file.kind not in RAY_UP_KINDS:
        return
    auth = file.document.get("auth") or {}
    provider = file.document["provider"]
    yield from _check_form(
        "auth.ssh_user", auth.get("ssh_user"), USER_PATTERN, "the name of a user"
    )
    for key in ("ssh_private_key", "ssh_public_key"):
        expected = "a path without quotes that does not begin with a hyphen"
        yield from _check_form(f"auth.{key}", auth.get(key), _PATH, expected)
    # The name becomes part of a path of Ray. clouds.py checks the names of rented clusters.
    if file.kind == "local":
        yield from _check_form(
            "cluster_name", file.document.get("cluster_name"), _CLUSTER, "a name"
        )
    address = provider.get("external_head_ip")
    if address is not None and not is_valid_host(str(address)):
        yield (
            f"`provider.external_head_ip` must be an address or a name, but is {_quote(address)}."
        )


def check_jump_host(file: ClusterFile) -> Iterator[str]:
    """Allow only a jump host as ssh's proxy command, because the command runs on this machine."""
    auth = file.document.get("auth") or {} if file.kind in RAY_UP_KINDS else {}
    command = auth.get("ssh_proxy_command")
    if command is not None and not _JUMP.fullmatch(" ".join(str(command).split(" "))):
        yield (
            "`auth.ssh_proxy_command`, which runs on this machine, must be `ssh -W %h:%p` and a "
            f"host, but is {_quote(command)}; put other commands into ~/.ssh/config."
        )


def check_mount_names(file: ClusterFile) -> Iterator[str]:
    """Require paths in `file_mounts` that rsync cannot read as options or commands."""
    if file.kind not in RAY_UP_KINDS:
        return
    for remote, local in (file.document.get("file_mounts") or {}).items():
        if str(local).startswith("-"):
            yield f"`file_mounts` must name paths, but {_quote(local)} is an option; put ./ before."
        if set("'\"\\`$;&|<>\n") & set(str(remote)):
            yield f"`file_mounts` must name paths on the machines, but has {_quote(remote)}."


def check_container_names(file: ClusterFile) -> Iterator[str]:
    """Require plain names for containers and images, which Ray writes into shell commands."""
    if file.kind not in RAY_UP_KINDS:
        return
    types = (file.document.get("available_node_types") or {}).values()
    for docker in (file.document.get("docker"), *(node_type.get("docker") for node_type in types)):
        for key, value in (docker or {}).items():
            if key == "container_name":
                yield from _check_form("docker.container_name", value, _CONTAINER, "a name")
            elif key in ("image", "head_image", "worker_image"):
                yield from _check_form(f"docker.{key}", value, _IMAGE, "the name of an image")


def _check_form(key: str, value: Any, form: re.Pattern[str], expected: str) -> Iterator[str]:
    if value is not None and not form.fullmatch(str(value)):
        yield f"`{key}` must be {expected}, but is {_quote(value)}."


def _quote(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


NEEDED_TO_END = (check_names, check_jump_host)
RULES = (*NEEDED_TO_END, check_mount_names, check_container_names)
