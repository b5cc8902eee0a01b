"""`python -m cluster check`: everything that can be said of a cluster before it costs anything."""

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
from cluster.files import RENTED, ClusterFile
from cluster.rules import NEEDED_TO_END, RULES, ports

_EXAMPLES = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")


@dataclass(frozen=True)
class Report:
    """What was found; a file without problems may still have blanks to fill in."""

    problems: tuple[str, ...]
    blanks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What may be meant, and should be known."""
    notes: tuple[str, ...] = ()


def check(path: Path, *, bucket: str | None = None) -> Report:
    """Check a cluster file; ask the network only for the bucket.

    Args:
        path: the file.
        bucket: `s3://BUCKET` or `gs://BUCKET`, with any path behind it, that must be reachable from
            here; without it those that the file itself names are asked for.

    Raises:
        UsageError: if the file cannot be read, or is no cluster file.
    """
    kind, document = files.load(path)
    wrong = structure.problems(kind, document)
    if wrong:
        return Report(tuple(wrong))
    file = files.parse(path, kind, document)
    problems = [problem for rule in RULES for problem in rule(file)]
    named = [bucket] if bucket is not None else buckets.named(file)
    problems += [problem for uri in named for problem in buckets.problems(uri)]
    warnings = [*ports.plain_storage(file), *(buckets.warnings() if named else ())]
    notes = (*_cost(file), *(() if named else ("bucket: not checked; name it with --bucket",)))
    return Report(tuple(problems), tuple(_blanks(file)), tuple(warnings), notes)


def _blanks(file: ClusterFile) -> Iterator[str]:
    """Find what stands for something that only the user knows."""
    for key, value in files.scalars(file.document):
        text = str(value)
        examples = any(
            ipaddress.ip_address(found) in network
            for found in _ADDRESS.findall(text)
            for network in _EXAMPLES
            if all(int(part) < 256 for part in found.split("."))
        )
        if "CHANGE-ME" in text or examples:
            yield f"`{key}` is {text if len(text) < 60 else 'an example'}"


def _cost(file: ClusterFile) -> Iterator[str]:
    if file.kind == "local":
        yield "cost: none to a cloud"
        return
    if file.kind not in RENTED:
        yield "cost: unknown, since the file names no machines that have a price"
        return
    found = prices.estimate(file)
    if found.idle is None or found.most is None:
        region = f" in {file.region}" if file.region else ""
        types = ", ".join(found.unknown)
        yield f"cost: unknown; cluster/prices.yaml has no price of {types}{region}"
        return
    yield (
        f"cost: ${found.idle:.2f} an hour while idle, at most ${found.most:.2f}; disks, addresses "
        "and traffic come on top, and spot machines may cost less"
    )
    for source in found.sources:
        yield f"prices: {source}"


def account_problems(file: ClusterFile) -> list[str]:
    """Return what keeps an AWS account from running a cluster safely; asks the account.

    Ray makes a security group that lets everybody reach port 22 if the one that is named is not
    there, and adds that rule to one that has no rules yet.
    """
    if file.kind != "aws":
        return []
    filters, told = _security_groups(file)
    if not filters:
        return []
    try:
        client = boto3.client("ec2", region_name=file.region, config=buckets.QUICKLY)
        found = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"The AWS account must answer, but says: {str(error).rstrip('.')}; look at AWS_PROFILE."
        ) from error
    rules = [rule for group in found for rule in group["IpPermissions"]]
    if not rules:
        return [
            f"The security group {told} must exist in {file.region} and have a rule, but does not, "
            "and Ray would open port 22 to everybody; docs/cluster.md makes it."
        ]
    ranges = [r["CidrIp"] for rule in rules for r in rule.get("IpRanges", [])]
    ranges += [r["CidrIpv6"] for rule in rules for r in rule.get("Ipv6Ranges", [])]
    if any(ports.is_wide(one) for one in ranges):
        return [f"The security group {told} must not be open to everybody, but is; see its rules."]
    return []


def _security_groups(file: ClusterFile) -> tuple[Any, str]:
    """Return what finds the groups that the file names, by name or by id, and how to call them."""
    name = file.document["provider"].get("security_group", {}).get("GroupName")
    types = file.document["available_node_types"].values()
    ids = sorted({one for kind in types for one in kind["node_config"].get("SecurityGroupIds", [])})
    if name is not None:
        return [{"Name": "group-name", "Values": [name]}], name
    return [{"Name": "group-id", "Values": ids}] if ids else [], " and ".join(ids)


def open_file(path: Path, *, bucket: str | None = None) -> ClusterFile:
    """Return a file that `ray up` can act on.

    Raises:
        UsageError: if it has problems or blanks, or is for another program.
    """
    _launched(path)
    report = check(path, bucket=bucket)
    if report.problems:
        raise UsageError("\n".join(report.problems))
    if report.blanks:
        raise UsageError(f"{path} must be filled in first, but {'; '.join(report.blanks)}.")
    return files.parse(path, *files.load(path))


def open_to_end(path: Path) -> ClusterFile:
    """Return a file by which a cluster can be taken down, whatever else is wrong with it.

    Raises:
        UsageError: if its structure is wrong, it does not say which machines, or is for another
            program.
    """
    kind, document = _launched(path)
    wrong = structure.problems(kind, document)
    if not wrong:
        file = files.parse(path, kind, document)
        wrong = [problem for rule in NEEDED_TO_END for problem in rule(file)]
    if wrong:
        raise UsageError("\n".join(wrong))
    return file


def _launched(path: Path) -> tuple[str, dict[str, Any]]:
    kind, document = files.load(path)
    if kind not in files.LAUNCHED:
        program = {"kuberay": "kubectl apply -f", "skypilot": "sky launch"}[kind]
        raise UsageError(f"{path} is not for `ray up`; use `{program} {path}`.")
    return kind, document
