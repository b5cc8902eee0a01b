"""Fix the machine image of an AWS cluster for the cluster's lifetime.

A cluster file may name the newest image of a series. Without a fixed image, a worker started a week
later would have a different image from the head.
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


def fix_image_ids(file: ClusterFile) -> dict[str, Any] | None:
    """Return the file's content with the image's name replaced by its id.

    The image is the running head's, or else the newest image with the name. Returns None if the
    file names no image to look up.

    Raises:
        UsageError: if AWS does not return the image.
    """
    image_names = {group.image for group in file.groups if _PARAMETER.fullmatch(group.image or "")}
    if file.kind != "aws" or len(image_names) != 1:
        return None
    (name,) = image_names
    try:
        image = _find_head_image(file) or _find_newest_image(file, str(name))
    except (BotoCoreError, ClientError) as error:
        raise UsageError(
            f"AWS must return the image {name}, but says: {str(error).rstrip('.')}; check "
            "AWS_PROFILE, or write the image's id (ami-…) into the file."
        ) from error
    document = copy.deepcopy(file.document)
    for node_type in document["available_node_types"].values():
        if node_type["node_config"].get("ImageId") == name:
            node_type["node_config"]["ImageId"] = image
    return document


def _find_head_image(file: ClusterFile) -> str | None:
    client = boto3.client("ec2", region_name=file.region, config=buckets.QUICK_CONFIG)
    filters: Any = [
        {"Name": "tag:ray-cluster-name", "Values": [file.document["cluster_name"]]},
        {"Name": "tag:ray-node-type", "Values": ["head"]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
    ]
    reservations = client.describe_instances(Filters=filters)["Reservations"]
    images = [machine["ImageId"] for r in reservations for machine in r["Instances"]]
    return images[0] if images else None


def _find_newest_image(file: ClusterFile, name: str) -> str:
    client = boto3.client("ssm", region_name=file.region, config=buckets.QUICK_CONFIG)
    answer = client.get_parameter(Name=name.removeprefix("resolve:ssm:"))
    return str(answer["Parameter"]["Value"])
