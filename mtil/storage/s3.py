"""An S3 bucket, or one of a compatible server, as a store.

One client per process, never across a fork: an inherited connection answers with another
process's bytes.
"""

import io
import os
import random
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from mtil.errors import NotFoundError, RefusedError, StorageError
from mtil.storage.bounds import join
from mtil.storage.names import checked

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ObjectTypeDef

_CHUNK_BYTES = 2**20
_CREATE_ATTEMPTS = 6
_READ_ATTEMPTS = 5
_KEYS_A_CALL = 1000
"""How many objects S3 deletes at once."""
_PART_BYTES = 16 * 2**20
"""Larger objects are written in parts of this size, of which a few are on the way at a time."""
_REFUSALS = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_SKEWED = "RequestTimeTooSkewed"
_MAX_LEAD_S = 15 * 60
"""How far S3 lets clocks be apart; an answer to HEAD says no more than that it is a refusal."""


class S3Store:
    """A prefix of a bucket; endpoint, region and credentials by the standard AWS environment."""

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.partition("/")
        self.prefix = prefix.strip("/")
        if not self.bucket:
            raise StorageError(f"An s3:// location must name a bucket, but got 's3://{location}'.")

    @property
    def uri(self) -> str:
        """The bucket and prefix."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        return join(self.chunks(name), f"{self.uri}/{name}", max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`; goes on behind what has come where an answer breaks off."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        key, come, broken = self._key(name), 0, 0
        more: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": key}
        with _S3Errors(self.bucket, key):
            while True:
                answer = _s3().get_object(**more)
                try:
                    for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                        come += len(chunk)
                        yield chunk
                    return
                except (HTTPClientError, IncompleteReadError):  # which botocore asks no more for
                    broken += 1
                    if broken == _READ_ATTEMPTS:
                        raise
                    time.sleep(random.uniform(0, 0.1 * 2**broken))
                    more |= {"Range": f"bytes={come}-", "IfMatch": answer["ETag"]}

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`; a large object is written in parts, which count once all are there."""
        key = self._key(name)
        with _S3Errors(self.bucket, key):
            if len(data) <= _PART_BYTES:
                _s3().put_object(Bucket=self.bucket, Key=key, Body=data)
            else:
                _s3().upload_fileobj(io.BytesIO(data), self.bucket, key, Config=_in_parts())

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`; needs a server that honours `If-None-Match` on writes."""
        from botocore.exceptions import ClientError

        key = self._key(name)
        with _S3Errors(self.bucket, key):
            for attempt in range(_CREATE_ATTEMPTS):
                try:
                    _s3().put_object(Bucket=self.bucket, Key=key, Body=data, IfNoneMatch="*")
                except ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in ("PreconditionFailed", "412"):
                        return False
                    if code != "ConditionalRequestConflict" or attempt == _CREATE_ATTEMPTS - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)  # others write it right now; see who was first
                else:
                    break
        return True

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        try:
            with _S3Errors(self.bucket, self._key(name)):
                _s3().head_object(Bucket=self.bucket, Key=self._key(name))
        except NotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`; a bucket keeps nothing of an interrupted write."""
        return {name: item["Size"] for name, item in self._listed(prefix).items()}

    def marks(self, prefix: str = "") -> dict[str, str]:
        """Return what is another once an object below a folder is written anew: its tag."""
        return {name: item["ETag"] for name, item in self._listed(prefix).items()}

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with _S3Errors(self.bucket, self._key(name)):
            _s3().delete_object(Bucket=self.bucket, Key=self._key(name))

    def clear(self, folder: str) -> None:
        """See `Store.clear`."""
        keys = [self._key(name) for name in self.names(folder)]
        for start in range(0, len(keys), _KEYS_A_CALL):
            batch = keys[start : start + _KEYS_A_CALL]
            with _S3Errors(self.bucket, self._key(folder)):
                answer = _s3().delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch]}
                )
            for error in answer.get("Errors", []):
                raise StorageError(
                    f"s3://{self.bucket}/{error.get('Key')} cannot be deleted: "
                    f"{error.get('Message') or error.get('Code')}."
                )

    def _listed(self, prefix: str) -> "dict[str, ObjectTypeDef]":
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{self._key(prefix)}/" if prefix else root
        found: dict[str, ObjectTypeDef] = {}
        with _S3Errors(self.bucket, start):
            pages = _s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start):
                found |= {item["Key"][len(root) :]: item for item in page.get("Contents", [])}
        return {name: item for name, item in sorted(found.items()) if not name.endswith("/")}

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{checked(name)}".lstrip("/")


def _s3() -> "S3Client":
    """Return this process's client of the server and user that the environment names now."""
    aws = ((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))
    return _client(os.getpid(), frozenset(aws))


@cache
def _client(pid: int, environment: frozenset[tuple[str, str]]) -> "S3Client":
    import boto3
    from botocore.config import Config

    return boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 5},
            max_pool_connections=32,
            response_checksum_validation="when_required",  # readers verify sha256
        ),
    )


@cache
def _in_parts() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=4
    )


def _lead_s(answer: Mapping[str, Any]) -> float:
    """Return the seconds by which this machine's clock is ahead of a server's that has answered."""
    told = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return time.time() - parsedate_to_datetime(told).timestamp() if told else 0.0


class _S3Errors:
    """Turn botocore's errors into one sentence."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key = bucket, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        from botocore.exceptions import BotoCoreError, ClientError

        if isinstance(error, ClientError):
            raise self._answer(error.response) from error
        if isinstance(error, BotoCoreError | ValueError):  # the latter of what is no URL
            endpoint = os.environ.get("AWS_ENDPOINT_URL", "the default endpoint")
            raise StorageError(
                f"Bucket {self.bucket!r} is out of reach at {endpoint}: "
                f"{' '.join(str(error).split()).rstrip('.')}."
            ) from error

    def _answer(self, answer: Mapping[str, Any]) -> StorageError:
        code = answer["Error"].get("Code", "unknown")
        if code in ("NoSuchKey", "404"):
            return NotFoundError(f"s3://{self.bucket}/{self.key} does not exist.")
        if code == "NoSuchBucket":
            return StorageError(f"Bucket {self.bucket!r} does not exist; make it first.")
        is_late = abs(_lead_s(answer)) > _MAX_LEAD_S
        if code == _SKEWED or (code in _REFUSALS and is_late):
            apart = f"{abs(_lead_s(answer)) / 60:.0f} minutes" if is_late else "too far"
            return RefusedError(
                f"This machine's clock must be within {_MAX_LEAD_S / 60:.0f} minutes of the "
                f"storage's, but they are {apart} apart and s3://{self.bucket}/{self.key} is "
                f"refused ({code}); set the clock."
            )
        if code in _REFUSALS:
            return RefusedError(
                f"Access to s3://{self.bucket}/{self.key} is refused ({code}); "
                "check the AWS credentials in the environment."
            )
        return StorageError(f"s3://{self.bucket}/{self.key} failed with {code}.")
