"""An S3 bucket, or one of a compatible server, as a store.

One client per process, never across a fork: an inherited connection answers with another
process's bytes.
"""

import io
import os
import random
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from mtil.errors import NotFoundError, StorageError
from mtil.storage.bounds import join, too_large
from mtil.storage.listing import Listing
from mtil.storage.names import checked_key
from mtil.storage.s3_errors import S3Errors

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ObjectTypeDef

_CHUNK_BYTES = 2**20
_CREATE_ATTEMPTS = 6
_READ_ATTEMPTS = 5
_KEYS_A_CALL = 1000
"""How many objects S3 deletes at once."""
_NUM_DELETERS = 16
PART_BYTES = 16 * 2**20
"""Larger objects are written in parts of this size, of which a few are on the way at a time."""
_NO_MULTI_DELETE = (
    "MissingContentMD5", "InvalidDigest", "BadDigest", "NotImplemented", "501", "MethodNotAllowed",
    "405", "InvalidRequest", "MalformedXML", "MissingRequestBodyError", "UnsupportedOperation",
)  # fmt: skip
"""What servers say that do not delete several objects at once, or not as this client asks."""


class S3Store:
    """A prefix of a bucket; endpoint, region and credentials by the standard AWS environment."""

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.partition("/")
        self.prefix = prefix.strip("/")
        self.lacks_multi_delete: str | None = None
        """The code with which the server has refused to delete several objects at once."""
        if not self.bucket:
            raise StorageError(f"An s3:// location must name a bucket, but got 's3://{location}'.")

    @property
    def uri(self) -> str:
        """The bucket and prefix."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        return join(self._chunks(name, max_bytes), f"{self.uri}/{name}", max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        return self._chunks(name, None)

    def _chunks(self, name: str, max_bytes: int | None) -> Iterator[bytes]:
        """Yield an object's bytes; go on behind what has come where an answer breaks off."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        key, come, broken = self._key(name), 0, 0
        more: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": key}
        with S3Errors(self.bucket, key, "read"):
            while True:
                answer = _s3().get_object(**more)
                if max_bytes is not None and answer.get("ContentLength", 0) > max_bytes - come:
                    raise too_large(f"{self.uri}/{name}", max_bytes)
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
        with S3Errors(self.bucket, key, "write"):
            if len(data) <= PART_BYTES:
                _s3().put_object(Bucket=self.bucket, Key=key, Body=data)
            else:
                _s3().upload_fileobj(io.BytesIO(data), self.bucket, key, Config=_in_parts())

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`; needs a server that honours `If-None-Match` on writes."""
        from botocore.exceptions import ClientError

        key = self._key(name)
        with S3Errors(self.bucket, key, "create"):
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
        from botocore.exceptions import ClientError

        key = self._key(name)
        try:
            with S3Errors(self.bucket, key, "read"):
                try:
                    _s3().head_object(Bucket=self.bucket, Key=key)
                except ClientError as error:
                    if error.response["Error"].get("Code") in ("404", "NoSuchKey"):
                        return False
                    # an answer to HEAD has no body, which alone says why
                    _s3().get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")
                    raise
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

    def deletable(self, prefix: str = "") -> Listing:
        """See `Store.deletable`; a bucket has no links."""
        return Listing(self.sizes(prefix), ())

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._delete(self._key(name))

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """See `Store.clear`."""
        names = self.deletable(folder).matching(folder, pattern)
        keys = [self._key(name) for name in names]
        for start in range(0, len(keys), _KEYS_A_CALL):
            left = self._delete_at_once(keys[start : start + _KEYS_A_CALL])
            with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
                list(deleters.map(self._delete, left))

    def _delete(self, key: str) -> None:
        with S3Errors(self.bucket, key, "delete"):
            _s3().delete_object(Bucket=self.bucket, Key=key)

    def _delete_at_once(self, keys: Sequence[str]) -> list[str]:
        """Delete objects in one request; return those that must be deleted one by one."""
        from botocore.exceptions import ClientError

        with S3Errors(self.bucket, keys[0], "delete"):
            try:
                answer = _s3().delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in keys]}
                )
            except ClientError as error:
                code = error.response["Error"].get("Code")
                if code not in _NO_MULTI_DELETE:
                    raise
                self.lacks_multi_delete = code
                return list(keys)
        return [error["Key"] for error in answer.get("Errors", []) if "Key" in error]

    def _listed(self, prefix: str) -> "dict[str, ObjectTypeDef]":
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{self._key(prefix)}/" if prefix else root
        found: dict[str, ObjectTypeDef] = {}
        with S3Errors(self.bucket, start, "list"):
            pages = _s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start):
                found |= {item["Key"][len(root) :]: item for item in page.get("Contents", [])}
        return {name: item for name, item in sorted(found.items()) if not name.endswith("/")}

    def _key(self, name: str) -> str:
        return checked_key(self.prefix, name)


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
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
    )
