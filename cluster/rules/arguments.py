"""What a file hands to programs of this machine (ssh, rsync, Ray's launcher) is what it says it is.

A value that begins with a hyphen is an option to them: `ssh_user: "-oProxyCommand=…"` would run a
command here. Ray puts no `--` before these values.
"""

import re
from collections.abc import Iterator
from typing import Any

from cluster.files import LAUNCHED, ClusterFile
from cluster.rules.starting import can_be_reached

USER = re.compile(r"[A-Za-z0-9_][\w.+@\\-]{0,63}\$?")
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


def names(file: ClusterFile) -> Iterator[str]:
    """Users, keys, clusters and hosts are names, and not options or paths out of a folder."""
    if file.kind not in LAUNCHED:
        return
    auth = file.document.get("auth") or {}
    provider = file.document["provider"]
    yield from _fits("auth.ssh_user", auth.get("ssh_user"), USER, "the name of a user")
    for key in ("ssh_private_key", "ssh_public_key"):
        what = "a path without quotes that does not begin with a hyphen"
        yield from _fits(f"auth.{key}", auth.get(key), _PATH, what)
    if file.kind == "local":  # it is part of a path of Ray's; clouds.py has the clouds' names
        yield from _fits("cluster_name", file.document.get("cluster_name"), _CLUSTER, "a name")
    outside = provider.get("external_head_ip")
    if outside is not None and not can_be_reached(str(outside)):
        yield (
            f"`provider.external_head_ip` must be an address or a name, but is {_shown(outside)}."
        )


def jump_host(file: ClusterFile) -> Iterator[str]:
    """The command by which ssh reaches machines runs here, and so only leads over another host."""
    auth = file.document.get("auth") or {} if file.kind in LAUNCHED else {}
    command = auth.get("ssh_proxy_command")
    if command is not None and not _JUMP.fullmatch(" ".join(str(command).split(" "))):
        yield (
            "`auth.ssh_proxy_command`, which runs on this machine, must be `ssh -W %h:%p` and a "
            f"host, but is {_shown(command)}; put any other way into ~/.ssh/config."
        )


def mounts(file: ClusterFile) -> Iterator[str]:
    """What is copied is named by paths, which rsync does not take for options."""
    if file.kind not in LAUNCHED:
        return
    for remote, local in (file.document.get("file_mounts") or {}).items():
        if str(local).startswith("-"):
            yield f"`file_mounts` must name paths, but {_shown(local)} is an option; put ./ before."
        if set("'\"\\`$;&|<>\n") & set(str(remote)):
            yield f"`file_mounts` must name paths on the machines, but has {_shown(remote)}."


def containers(file: ClusterFile) -> Iterator[str]:
    """Containers and images are names, which Ray writes into shell commands."""
    if file.kind not in LAUNCHED:
        return
    types = (file.document.get("available_node_types") or {}).values()
    for docker in (file.document.get("docker"), *(one.get("docker") for one in types)):
        for key, value in (docker or {}).items():
            if key == "container_name":
                yield from _fits("docker.container_name", value, _CONTAINER, "a name")
            elif key in ("image", "head_image", "worker_image"):
                yield from _fits(f"docker.{key}", value, _IMAGE, "the name of an image")


def _fits(key: str, value: Any, form: re.Pattern[str], what: str) -> Iterator[str]:
    if value is not None and not form.fullmatch(str(value)):
        yield f"`{key}` must be {what}, but is {_shown(value)}."


def _shown(value: Any) -> str:
    text = str(value)
    return repr(text if len(text) <= 80 else f"{text[:79]}…")


NEEDED_TO_END = (names, jump_host)
RULES = (*NEEDED_TO_END, mounts, containers)
