"""`python -m cluster check`: everything that can be said of a cluster before it costs anything."""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster import files, prices, structure
from cluster.errors import UsageError
from cluster.files import ClusterFile
from cluster.rules import RENTED, RULES

_EXAMPLES = [ipaddress.ip_network(n) for n in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")]
_ADDRESS = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_QUICKLY = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})


@dataclass(frozen=True)
class Report:
    """What was found; a file without problems may still have blanks to fill in."""

    problems: tuple[str, ...]
    blanks: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def check(path: Path, *, bucket: str | None = None) -> Report:
    """Check a cluster file; ask the network only for the bucket.

    Args:
        path: the file.
        bucket: `s3://BUCKET`, with any path behind it, that must be reachable from here.

    Raises:
        UsageError: if the file cannot be read, or is no cluster file.
    """
    kind, document = files.load(path)
    wrong = structure.problems(kind, document)
    if wrong:
        return Report(tuple(wrong))
    file = files.parse(path, kind, document)
    problems = [problem for rule in RULES for problem in rule(file)]
    problems += _bucket_problems(bucket) if bucket else []
    notes = (*_cost(file), *(() if bucket else ("bucket: not checked; name it with --bucket",)))
    return Report(tuple(problems), tuple(_blanks(file)), notes)


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


def _bucket_problems(uri: str) -> list[str]:
    scheme, _, rest = uri.partition("://")
    name = rest.partition("/")[0]
    if scheme != "s3" or not name:
        return [f"A bucket must be named as s3://BUCKET, but got {uri}."]
    try:
        boto3.client("s3", config=_QUICKLY).head_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        told = str(error).rstrip(".")
        return [
            f"The bucket must be reachable from here, but s3://{name} is not ({told}); look at "
            "AWS_PROFILE and AWS_ENDPOINT_URL."
        ]
    return []


def account_problems(file: ClusterFile) -> list[str]:
    """Return what keeps an AWS account from running a cluster safely; asks the account.

    Ray makes a security group that lets everybody reach port 22 if the one that is named is not
    there, and adds that rule to one that has no rules yet.
    """
    if file.kind != "aws":
        return []
    name = file.document["provider"].get("security_group", {}).get("GroupName")
    if name is None:
        return []
    try:
        client = boto3.client("ec2", region_name=file.region, config=_QUICKLY)
        filters: Any = [{"Name": "group-name", "Values": [name]}]
        found = client.describe_security_groups(Filters=filters)["SecurityGroups"]
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"The AWS account must answer, but says: {str(error).rstrip('.')}; look at AWS_PROFILE."
        ) from error
    rules = [rule for group in found for rule in group["IpPermissions"]]
    if not rules:
        return [
            f"The security group {name} must exist in {file.region} and have a rule, but does not, "
            "and Ray would open port 22 to everybody; docs/cluster.md makes it."
        ]
    ranges = [r.get("CidrIp") for rule in rules for r in rule.get("IpRanges", [])]
    ranges += [r.get("CidrIpv6") for rule in rules for r in rule.get("Ipv6Ranges", [])]
    if {"0.0.0.0/0", "::/0"} & set(ranges):
        return [f"The security group {name} must not be open to everybody, but is; see its rules."]
    return []


def open_file(path: Path) -> ClusterFile:
    """Return a file that `ray up` can act on.

    Raises:
        UsageError: if it has problems or blanks, or is for another program.
    """
    kind, document = files.load(path)
    if kind not in files.LAUNCHED:
        program = {"kuberay": "kubectl apply -f", "skypilot": "sky launch"}[kind]
        raise UsageError(f"{path} is not for `ray up`; use `{program} {path}`.")
    report = check(path)
    if report.problems:
        raise UsageError("\n".join(report.problems))
    if report.blanks:
        raise UsageError(f"{path} must be filled in first, but {'; '.join(report.blanks)}.")
    return files.parse(path, kind, document)
