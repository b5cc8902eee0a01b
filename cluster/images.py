"""One machine image for as long as a cluster of AWS lives, where its file names the newest one.

A worker that comes a week later would else have another one than the head.
"""

import copy
import re
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from cluster import buckets
from cluster.errors import UsageError
from cluster.files import ClusterFile

_PARAMETER = re.compile(r"resolve:ssm:(/?[\w./-]+)(?::[\w-]+)?")


def settled(file: ClusterFile) -> dict[str, Any] | None:
    """Return the file's content with names of images looked up; None if there are none.

    The head that runs already has settled it, and else the newest image of that name does.

    Raises:
        UsageError: if AWS does not say which one it is.
    """
    named = {group.image for group in file.groups if _PARAMETER.fullmatch(group.image or "")}
    if file.kind != "aws" or len(named) != 1:
        return None
    (name,) = named
    try:
        image = _of_the_head(file) or _newest(file, str(name))
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"AWS must say which image {name} is, but says: {str(error).rstrip('.')}; look at "
            "AWS_PROFILE, or write the image's own name (ami-…) into the file."
        ) from error
    document = copy.deepcopy(file.document)
    for node_type in document["available_node_types"].values():
        if node_type["node_config"].get("ImageId") == name:
            node_type["node_config"]["ImageId"] = image
    return document


def _of_the_head(file: ClusterFile) -> str | None:
    client = boto3.client("ec2", region_name=file.region, config=buckets.QUICKLY)
    filters: Any = [
        {"Name": "tag:ray-cluster-name", "Values": [file.document["cluster_name"]]},
        {"Name": "tag:ray-node-type", "Values": ["head"]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    found = client.describe_instances(Filters=filters)["Reservations"]
    images = [machine["ImageId"] for one in found for machine in one["Instances"]]
    return images[0] if images else None


def _newest(file: ClusterFile, name: str) -> str:
    client = boto3.client("ssm", region_name=file.region, config=buckets.QUICKLY)
    found = client.get_parameter(Name=name.removeprefix("resolve:ssm:"))
    return str(found["Parameter"]["Value"])
