"""What AWS and Google would refuse, or take for something else."""

import re
from collections.abc import Iterator
from functools import cache

import boto3

from cluster.files import ClusterFile
from cluster.machine_types import machine
from cluster.rules.access import node_config

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def cluster_name(file: ClusterFile) -> Iterator[str]:
    """A name that tags, keys and machines can have."""
    name = file.document.get("cluster_name")
    if file.kind in ("aws", "gcp") and not _NAME.fullmatch(str(name)):
        yield f"`cluster_name` must be of lower-case letters, digits and hyphens, but is {name}."


def aws_place(file: ClusterFile) -> Iterator[str]:
    """AWS: the region is one, and zones are of it."""
    if file.kind != "aws":
        return
    if file.region is None:
        yield "`provider.region` must be given, but is missing."
        return
    if file.region not in _regions():
        yield f"`provider.region` must be a region of AWS, but is {file.region}."
        return
    for zone in str(file.document["provider"].get("availability_zone") or "").split(","):
        if zone.strip() and not zone.strip().startswith(file.region):
            yield f"`provider.availability_zone` must be of {file.region}, but is {zone.strip()}."


@cache
def _regions() -> frozenset[str]:
    session = boto3.Session()
    partitions = session.get_available_partitions()
    return frozenset(
        region for name in partitions for region in session.get_available_regions("ec2", name)
    )


def aws_tags(file: ClusterFile) -> Iterator[str]:
    """AWS: machines have a tag by which their cost is found."""
    for group in file.groups if file.kind == "aws" else ():
        told = node_config(file, group.name).get("TagSpecifications") or []
        if not any(one.get("Tags") for one in told if isinstance(one, dict)):
            yield (
                f"{group.name} must have a tag in its `TagSpecifications`, by which bills are told "
                "apart, but has none."
            )


def google_place(file: ClusterFile) -> Iterator[str]:
    """GCP: there is a project, and the zone is of the region."""
    if file.kind != "gcp":
        return
    provider = file.document["provider"]
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield f"`provider.{key}` must be given, but is missing."
    zone = str(provider.get("availability_zone") or "")
    if zone and file.region and zone.rpartition("-")[0] != file.region:
        yield f"`provider.availability_zone` must be of {file.region}, but is {zone}."


def google_gpus_stop(file: ClusterFile) -> Iterator[str]:
    """GCP: a machine with a GPU ends when its host is maintained, and must say so."""
    for group in file.groups if file.kind == "gcp" else ():
        known = machine(file, group)
        told = str(node_config(file, group.name).get("scheduling", ""))
        if known and known.gpus and "TERMINATE" not in told:
            yield (
                f"{group.name} must say `scheduling: [{{onHostMaintenance: TERMINATE}}]`, as every "
                "machine with a GPU there, but does not."
            )


RULES = (cluster_name, aws_place, aws_tags, google_place, google_gpus_stop)
