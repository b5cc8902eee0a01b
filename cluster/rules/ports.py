"""Rules on open ports, public addresses and unencrypted connections."""

import ipaddress
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from cluster import files
from cluster.commands import find_ray_starts
from cluster.files import ClusterFile

_MIN_PREFIX_LENGTH = {4: 16, 6: 32}
"""Shortest prefix by IP version. Shorter prefixes cover more than an organisation's network."""
_PRIVATE_NETWORKS = [
    ipaddress.ip_network(block)
    for block in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8",
        "169.254.0.0/16", "fc00::/7", "fe80::/10", "::1/128",
    )
]  # fmt: skip
_ENDPOINT = re.compile(
    r"(?:AWS_ENDPOINT_URL\w*|STORAGE_EMULATOR_HOST|endpoint(?:_url|_override)?)\s*[=:]\s*"
    r"['\"]?(http://[^\s'\"]+)",
    re.IGNORECASE,
)
_LOCAL_NAMES = (".local", ".internal", ".lan", ".svc", ".localhost")


def is_public_network(network: str) -> bool:
    """Return whether a network in CIDR notation includes addresses of strangers."""
    try:
        block = ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
    if any(block.version == own.version and block.subnet_of(own) for own in _PRIVATE_NETWORKS):  # type: ignore[arg-type]
        return False
    return block.prefixlen < _MIN_PREFIX_LENGTH[block.version]


def check_closed_ports(file: ClusterFile) -> Iterator[str]:
    """Refuse ports open to strangers."""
    for key, value in files.walk_scalars(file.document):
        if isinstance(value, str) and "/" in value and is_public_network(value):
            yield f"Ports must not be open to everybody, but `{key}` is {value}; use your address."
        if value in ("LoadBalancer", "NodePort") and key.endswith(("serviceType", "spec.type")):
            yield f"`{key}` must be ClusterIP, but is {value}; use `kubectl port-forward`."
        if key.endswith("enableIngress") and value is True:
            yield f"`{key}` must be false; reach the cluster with `kubectl port-forward`."
        if key.startswith("resources.ports"):
            yield f"`resources.ports` must be left out, but opens {value} to everybody."
        if key.endswith(".hostNetwork") and value is True:
            yield f"`{key}` must be false, or Ray's ports are open on the node's own addresses."
        if key.endswith(".hostPort"):
            yield f"`{key}` must be left out, but opens {value} on the node's own addresses."


def check_dashboard_address(file: ClusterFile) -> Iterator[str]:
    """Require a private address for the dashboard, which runs every command sent to the port."""
    reported = set()
    for group in file.groups:
        for command in group.start:
            for start in find_ray_starts(command):
                host = start.options.get("--dashboard-host")
                if host is not None and not _is_private(host) and host not in reported:
                    reported.add(host)
                    yield (
                        f"The dashboard runs any command it gets, so it must listen on 127.0.0.1, "
                        f"but {group.name} has --dashboard-host={host}; `submit --cluster` "
                        "uses ssh."
                    )


def _is_private(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(address in own for own in _PRIVATE_NETWORKS if own.version == address.version)


def check_private_hosts(file: ClusterFile) -> Iterator[str]:
    """On premises: refuse public addresses of hosts."""
    # Ray's ports are open on all of a machine's addresses.
    if file.kind != "local":
        return
    provider = file.document["provider"]
    for host in [provider.get("head_ip"), *provider.get("worker_ips", [])]:
        try:
            public = ipaddress.ip_address(str(host)).is_global
        except ValueError:
            continue
        if public:
            yield (
                f"Hosts must have addresses of a private network, as Ray's ports are open there, "
                f"but {host} is public; behind a firewall, give the host's name instead "
                "(docs/security.md)."
            )


def check_storage_encryption(file: ClusterFile) -> Iterator[str]:
    """Require https:// for object stores on the internet."""
    for url in _plain_endpoints(file):
        if not _is_in_network(url):
            yield f"Object storage must be reached by https://, but {url} is not encrypted."


def warn_of_plain_storage(file: ClusterFile) -> Iterator[str]:
    """Yield a warning for each unencrypted endpoint in a private network, which may be intended."""
    for url in _plain_endpoints(file):
        if _is_in_network(url):
            yield plain_endpoint_warning(url)


def plain_endpoint_warning(url: str) -> str:
    """Return the warning for an unencrypted endpoint in a private network."""
    return (
        f"{url} sends images and maps in the clear to everybody on the network; use https://, for "
        "example by `object-store --cert`"
    )


def is_plain_endpoint(url: str) -> bool:
    """Return whether an endpoint is unencrypted and not on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "http" and host != "localhost" and not _is_loopback(host)


def _plain_endpoints(file: ClusterFile) -> list[str]:
    values = [f"{key}={value}" for key, value in files.walk_scalars(file.document)]
    values += [f"{name}={value}" for group in file.groups for name, value in group.variables]
    urls = [url for value in values for url in _ENDPOINT.findall(value)]
    return [url for url in dict.fromkeys(urls) if is_plain_endpoint(url)]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_in_network(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return _is_private(host) or "." not in host or host.endswith(_LOCAL_NAMES)


RULES = (check_closed_ports, check_dashboard_address, check_private_hosts, check_storage_encryption)
