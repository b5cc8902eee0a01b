"""Check whether a cluster's bucket is reachable from this machine."""

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster import files
from cluster.files import ClusterFile
from cluster.rules import ports

QUICK_CONFIG = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
"""Client settings with short timeouts, for checks during which the user waits."""

_URI = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/.*)?", re.DOTALL)
_BUCKET_IN_TEXT = re.compile(r"\b(?:s3|gs)://([a-zA-Z0-9][\w.-]+)")
_PLACEHOLDER = "CHANGE-ME"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_GCS_RETRY_LIMIT = timedelta(seconds=10)


def find_named_buckets(file: ClusterFile) -> list[str]:
    """Return the bucket URIs named in a file's job and environment variables."""
    job = files.find_job_spec(file.document) if file.kind == "kuberay" else None
    texts = [str((job or {}).get("entrypoint", "")), str(file.document.get("run", ""))]
    texts += [value for group in file.groups for _, value in group.variables]
    matches = [match for text in texts for match in _BUCKET_IN_TEXT.finditer(text)]
    return list(dict.fromkeys(match[0] for match in matches if _PLACEHOLDER not in match[1]))


def check_bucket(uri: str) -> list[str]:
    """Request a bucket, and return an error sentence if the bucket is misnamed or unreachable."""
    match = _URI.fullmatch(uri)
    if match is None:
        return [f"A bucket must be named as s3://BUCKET or gs://BUCKET, but got {uri}."]
    scheme, name = match[1], match[2]
    refusal = _s3_refusal(name) if scheme == "s3" else _google_refusal(name)
    if refusal is None:
        return []
    settings = {
        "s3": "AWS_PROFILE and AWS_ENDPOINT_URL",
        "gs": "`gcloud auth application-default login` and STORAGE_EMULATOR_HOST",
    }[scheme]
    reason = " ".join(refusal.split()).rstrip(".")
    return [
        f"The bucket must be reachable from here, but {scheme}://{name} is not ({reason}); check "
        f"{settings}."
    ]


def find_plain_endpoints() -> Iterator[str]:
    """Yield a warning for each unencrypted endpoint in this environment."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", _EMULATOR):
        url = os.environ.get(name, "")
        if ports.is_plain_endpoint(url):
            yield ports.plain_endpoint_warning(url)


def _s3_refusal(name: str) -> str | None:
    try:
        boto3.client("s3", config=QUICK_CONFIG).head_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return None


def _google_refusal(name: str) -> str | None:
    """Return why a Google bucket is unreachable, or None."""
    # pyarrow comes with mtil; Google's own client is an extra.
    from pyarrow.fs import FileType, GcsFileSystem

    scheme, separator, host = os.environ.get(_EMULATOR, "").rpartition("://")
    options: dict[str, Any] = {}
    if host:
        options = {
            "anonymous": True,
            "scheme": scheme if separator else "http",
            "endpoint_override": host,
        }
    try:
        (info,) = GcsFileSystem(retry_time_limit=_GCS_RETRY_LIMIT, **options).get_file_info([name])
    except OSError as error:
        return str(error)
    return "no bucket has this name" if info.type == FileType.NotFound else None
