"""Whether the bucket that a cluster is to use can be reached from here."""

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

QUICKLY = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
"""For questions that somebody waits for the answers of."""

_URI = re.compile(r"(s3|gs)://([a-z0-9][a-z0-9._-]{1,220}[a-z0-9])(?:/.*)?", re.DOTALL)
_IN_TEXT = re.compile(r"\b(?:s3|gs)://([a-zA-Z0-9][\w.-]+)")
_BLANK = "CHANGE-ME"
_EMULATOR = "STORAGE_EMULATOR_HOST"
_PATIENCE = timedelta(seconds=10)


def named(file: ClusterFile) -> list[str]:
    """Return the buckets that a job in the file is given."""
    job = files.job_spec(file.document) if file.kind == "kuberay" else None
    texts = [str((job or {}).get("entrypoint", "")), str(file.document.get("run", ""))]
    texts += [value for group in file.groups for _, value in group.variables]
    found = [match for text in texts for match in _IN_TEXT.finditer(text)]
    return list(dict.fromkeys(match[0] for match in found if _BLANK not in match[1]))


def problems(uri: str) -> list[str]:
    """Say what is wrong with a bucket, after asking for it."""
    found = _URI.fullmatch(uri)
    if found is None:
        return [f"A bucket must be named as s3://BUCKET or gs://BUCKET, but got {uri}."]
    scheme, name = found[1], found[2]
    refusal = _s3_refusal(name) if scheme == "s3" else _google_refusal(name)
    if refusal is None:
        return []
    where = {
        "s3": "AWS_PROFILE and AWS_ENDPOINT_URL",
        "gs": "`gcloud auth application-default login` and STORAGE_EMULATOR_HOST",
    }[scheme]
    told = " ".join(refusal.split()).rstrip(".")
    return [
        f"The bucket must be reachable from here, but {scheme}://{name} is not ({told}); look at "
        f"{where}."
    ]


def warnings() -> Iterator[str]:
    """Say where an endpoint of this environment is not encrypted."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", _EMULATOR):
        url = os.environ.get(name, "")
        if ports.is_plain(url):
            yield ports.warning(url)


def _s3_refusal(name: str) -> str | None:
    try:
        boto3.client("s3", config=QUICKLY).head_bucket(Bucket=name)
    except (BotoCoreError, ClientError) as error:
        return str(error)
    return None


def _google_refusal(name: str) -> str | None:
    """Ask Google by pyarrow's client, which comes with mtil."""
    from pyarrow.fs import FileType, GcsFileSystem

    scheme, separator, host = os.environ.get(_EMULATOR, "").rpartition("://")
    where: dict[str, Any] = {}
    if host:
        where = {
            "anonymous": True,
            "scheme": scheme if separator else "http",
            "endpoint_override": host,
        }
    try:
        (found,) = GcsFileSystem(retry_time_limit=_PATIENCE, **where).get_file_info([name])
    except OSError as error:
        return str(error)
    return "there is none of that name" if found.type == FileType.NotFound else None
