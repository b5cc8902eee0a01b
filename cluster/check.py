"""`python -m cluster check`: check a cluster file before the cluster costs anything."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cluster import buckets, files, prices, structure
from cluster.errors import UsageError
from cluster.files import RENTED_KINDS, ClusterFile
from cluster.rules import NEEDED_TO_END, RULES, ports

# Address blocks reserved for documentation (RFC 5737); the templates use such addresses.
_EXAMPLE_NETWORKS = [
    ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
]
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")


@dataclass(frozen=True)
class ClusterReport:
    """Result of a check. A file without problems may still have blanks to fill in."""

    problems: tuple[str, ...]
    blanks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """Risky settings that may be intended."""
    notes: tuple[str, ...] = ()


def check_cluster_file(path: Path, *, bucket: str | None = None) -> ClusterReport:
    """Check a cluster file. Uses the network only to request buckets.

    Args:
        path: the file.
        bucket: `s3://BUCKET` or `gs://BUCKET`, optionally with a path, that must be reachable from
            this machine; by default the buckets named in the file.

    Raises:
        UsageError: if the file cannot be read, or is not a cluster file.
    """
    kind, document = files.load_cluster_file(path)
    # The rules rely on a valid structure, so structural problems end the check.
    errors = structure.check_structure(kind, document)
    if errors:
        return ClusterReport(tuple(errors))
    file = files.parse_cluster_file(path, kind, document)
    problems = [problem for rule in RULES for problem in rule(file)]
    uris = [bucket] if bucket is not None else buckets.find_named_buckets(file)
    problems += [problem for uri in uris for problem in buckets.check_bucket(uri)]
    warnings = [
        *ports.warn_of_plain_storage(file),
        *(buckets.find_plain_endpoints() if uris else ()),
    ]
    notes = (*_cost(file), *(() if uris else ("bucket: not checked; name it with --bucket",)))
    return ClusterReport(tuple(problems), tuple(_blanks(file)), tuple(warnings), notes)


def _blanks(file: ClusterFile) -> Iterator[str]:
    """Yield the placeholders left for the user to fill in."""
    for key, value in files.walk_scalars(file.document):
        text = str(value)
        has_example = any(
            ipaddress.ip_address(address) in network
            for address in _ADDRESS.findall(text)
            for network in _EXAMPLE_NETWORKS
            if all(int(part) < 256 for part in address.split("."))
        )
        if "CHANGE-ME" in text or has_example:
            yield f"`{key}` is {text if len(text) < 60 else 'an example'}"


def _cost(file: ClusterFile) -> Iterator[str]:
    if file.kind == "local":
        yield "cost: none to a cloud"
        return
    if file.kind not in RENTED_KINDS:
        yield "cost: unknown, because the file names no machines with a price"
        return
    estimate = prices.estimate_cost(file)
    if estimate.idle is None or estimate.most is None:
        region = f" in {file.region}" if file.region else ""
        types = ", ".join(estimate.unknown)
        yield f"cost: unknown; cluster/prices.yaml has no price of {types}{region}"
        return
    yield (
        f"cost: ${estimate.idle:.2f} an hour while idle, at most ${estimate.most:.2f}; disks, "
        "addresses and traffic cost extra, and spot machines may cost less"
    )
    for source in estimate.sources:
        yield f"prices: {source}"


def check_aws_account(file: ClusterFile) -> list[str]:
    """Return why an AWS account cannot run a cluster safely. Asks AWS for the security groups.

    Raises:
        UsageError: if AWS does not answer.
    """
    if file.kind != "aws":
        return []
    # If the named security group is missing or has no rules, Ray opens port 22 to everybody.
    filters, group_names = _security_group_filters(file)
    if not filters:
        return []
    try:
        client = boto3.client("ec2", region_name=file.region, config=buckets.QUICK_CONFIG)
        groups = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"The AWS account must answer, but says: {str(error).rstrip('.')}; check AWS_PROFILE."
        ) from error
    rules = [rule for group in groups for rule in group["IpPermissions"]]
    if not rules:
        return [
            f"The security group {group_names} must exist in {file.region} and have a rule, but "
            "does not. Ray would open port 22 to everybody; create the group as in docs/cluster.md."
        ]
    ranges = [r["CidrIp"] for rule in rules for r in rule.get("IpRanges", [])]
    ranges += [r["CidrIpv6"] for rule in rules for r in rule.get("Ipv6Ranges", [])]
    if any(ports.is_public_network(network) for network in ranges):
        return [
            f"The security group {group_names} must not be open to everybody; change its rules."
        ]
    return []


def _security_group_filters(file: ClusterFile) -> tuple[Any, str]:
    """Return EC2 filters for the file's security groups, and the names or ids for errors."""
    name = file.document["provider"].get("security_group", {}).get("GroupName")
    types = file.document["available_node_types"].values()
    ids = sorted({id_ for kind in types for id_ in kind["node_config"].get("SecurityGroupIds", [])})
    if name is not None:
        return [{"Name": "group-name", "Values": [name]}], name
    return [{"Name": "group-id", "Values": ids}] if ids else [], " and ".join(ids)


def open_cluster_file(path: Path, *, bucket: str | None = None) -> ClusterFile:
    """Check and return a file for `ray up`.

    Raises:
        UsageError: if the file has problems or blanks, or is for another program.
    """
    _load_for_ray_up(path)
    report = check_cluster_file(path, bucket=bucket)
    if report.problems:
        raise UsageError("\n".join(report.problems))
    if report.blanks:
        raise UsageError(f"{path} must be filled in first, but {'; '.join(report.blanks)}.")
    return files.parse_cluster_file(path, *files.load_cluster_file(path))


def open_file_for_down(path: Path) -> ClusterFile:
    """Return a file for taking a cluster down. Ignores mistakes that do not matter for this.

    Raises:
        UsageError: if the structure is wrong, the machines are not named, or the file is for
            another program.
    """
    kind, document = _load_for_ray_up(path)
    errors = structure.check_structure(kind, document)
    if not errors:
        file = files.parse_cluster_file(path, kind, document)
        errors = [problem for rule in NEEDED_TO_END for problem in rule(file)]
    if errors:
        raise UsageError("\n".join(errors))
    return file


def _load_for_ray_up(path: Path) -> tuple[str, dict[str, Any]]:
    kind, document = files.load_cluster_file(path)
    if kind not in files.RAY_UP_KINDS:
        program = {"kuberay": "kubectl apply -f", "skypilot": "sky launch"}[kind]
        raise UsageError(f"{path} is not for `ray up`; use `{program} {path}`.")
    return kind, document
