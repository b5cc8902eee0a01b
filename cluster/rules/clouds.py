"""Rules on values that AWS or Google would refuse or misunderstand."""

import re
from collections.abc import Iterator
from functools import cache

import boto3

from cluster.files import ClusterFile
from cluster.machine_types import find_machine_type
from cluster.rules.access import get_node_config

_CLUSTER_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def check_cluster_name(file: ClusterFile) -> Iterator[str]:
    """Require a cluster name valid for tags, keys and machines."""
    name = file.document.get("cluster_name")
    if file.kind in ("aws", "gcp") and not _CLUSTER_NAME.fullmatch(str(name)):
        yield f"`cluster_name` must be of lower-case letters, digits and hyphens, but is {name}."


def check_aws_region(file: ClusterFile) -> Iterator[str]:
    """AWS: require an existing region and zones of the region."""
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


def check_aws_tags(file: ClusterFile) -> Iterator[str]:
    """AWS: require tags, to find the machines' cost on bills."""
    for group in file.groups if file.kind == "aws" else ():
        specs = get_node_config(file, group.name).get("TagSpecifications") or []
        if not any(spec.get("Tags") for spec in specs if isinstance(spec, dict)):
            yield (
                f"{group.name} must have a tag in its `TagSpecifications` to identify its cost "
                "on bills, but has none."
            )


def check_google_region(file: ClusterFile) -> Iterator[str]:
    """GCP: require a project, a region and a zone of the region."""
    if file.kind != "gcp":
        return
    provider = file.document["provider"]
    for key in ("project_id", "region", "availability_zone"):
        if not provider.get(key):
            yield f"`provider.{key}` must be given, but is missing."
    zone = str(provider.get("availability_zone") or "")
    if zone and file.region and zone.rpartition("-")[0] != file.region:
        yield f"`provider.availability_zone` must be of {file.region}, but is {zone}."


def check_google_gpu_maintenance(file: ClusterFile) -> Iterator[str]:
    """GCP: require `onHostMaintenance: TERMINATE` for machines with GPUs, as Google does."""
    for group in file.groups if file.kind == "gcp" else ():
        known = find_machine_type(file, group)
        scheduling = str(get_node_config(file, group.name).get("scheduling", ""))
        if known and known.gpus and "TERMINATE" not in scheduling:
            yield (
                f"{group.name} must have `scheduling: [{{onHostMaintenance: TERMINATE}}]`, like "
                "every Google machine with a GPU, but does not."
            )


RULES = (
    check_cluster_name,
    check_aws_region,
    check_aws_tags,
    check_google_region,
    check_google_gpu_maintenance,
)
