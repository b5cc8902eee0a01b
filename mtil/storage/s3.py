"""A bucket of S3 or a compatible server as a store.

Every process makes a client, never inherited by a fork: an inherited connection returns the bytes
of a different process.
"""

import io
import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

from mtil.errors import NotFoundError, StorageError
from mtil.storage.listing import StoreListing
from mtil.storage.names import build_object_key
from mtil.storage.s3_errors import S3Errors
from mtil.storage.size_limits import join_chunks, too_large_error

if TYPE_CHECKING:
    from boto3.s3.transfer import TransferConfig
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef, ObjectTypeDef

_CHUNK_BYTES = 2**20
_CREATE_ATTEMPTS = 6
_READ_ATTEMPTS = 5
_MAX_KEYS_PER_DELETE = 1000
"""Most objects in a delete request of S3."""
_NUM_DELETERS = 16
PART_BYTES = 16 * 2**20
"""Part size of larger objects. A few parts upload at a time."""
_NO_MULTI_DELETE = (
    "MissingContentMD5", "InvalidDigest", "BadDigest", "NotImplemented", "501", "MethodNotAllowed",
    "405", "InvalidRequest", "MalformedXML", "MissingRequestBodyError", "UnsupportedOperation",
)  # fmt: skip
"""Error codes of servers that lack this client's request for deleting several objects."""


class S3Store:
    """A bucket or a prefix; the standard AWS environment has endpoint, region and credentials."""

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.partition("/")
        self.prefix = prefix.strip("/")
        self.lacks_multi_delete: str | None = None
        """Error code if the server refused to delete several objects at once, else None."""
        if not self.bucket:
            raise StorageError(f"An s3:// location must name a bucket, but got 's3://{location}'.")

    @property
    def uri(self) -> str:
        """URI of the bucket and prefix."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def local_folder(self) -> None:
        """See `Store.local_folder`."""
        return None

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        return join_chunks(self._chunks(name, max_bytes), f"{self.uri}/{name}", max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        return self._chunks(name, None)

    def _chunks(self, name: str, max_bytes: int | None) -> Iterator[bytes]:
        """Yield an object's bytes. Resume after the last received byte if an answer breaks off."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        key, num_received, num_breaks = self._key(name), 0, 0
        request: GetObjectRequestTypeDef = {"Bucket": self.bucket, "Key": key}
        with S3Errors(self.bucket, key, "read"):
            while True:
                answer = _s3().get_object(**request)
                # Refuse by the announced length, before reading the body.
                if (
                    max_bytes is not None
                    and answer.get("ContentLength", 0) > max_bytes - num_received
                ):
                    raise too_large_error(f"{self.uri}/{name}", max_bytes)
                try:
                    for chunk in answer["Body"].iter_chunks(_CHUNK_BYTES):
                        num_received += len(chunk)
                        yield chunk
                    return
                # botocore retries requests, but not broken bodies.
                except (HTTPClientError, IncompleteReadError):
                    num_breaks += 1
                    if num_breaks == _READ_ATTEMPTS:
                        raise
                    time.sleep(random.uniform(0, 0.1 * 2**num_breaks))
                    # IfMatch: the rest must come from the same version of the object.
                    request |= {"Range": f"bytes={num_received}-", "IfMatch": answer["ETag"]}

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`. A large object goes in parts and appears after the last part."""
        key = self._key(name)
        with S3Errors(self.bucket, key, "write"):
            if len(data) <= PART_BYTES:
                _s3().put_object(Bucket=self.bucket, Key=key, Body=data)
            else:
                _s3().upload_fileobj(io.BytesIO(data), self.bucket, key, Config=_multipart_config())

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`. The server must support `If-None-Match` on writes."""
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
                    # Another process is writing the object. Try again to see which was first.
                    time.sleep(0.1 * 2**attempt)
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
                    # An answer to HEAD has no body, so a GET must fetch the error code.
                    _s3().get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")
                    raise
        except NotFoundError:
            return False
        return True

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`. Interrupted writes leave nothing in a bucket."""
        return {name: item["Size"] for name, item in self._list_items(prefix).items()}

    def versions(self, folder: str = "") -> Callable[[str], str]:
        """See `Store.versions`: the ETag."""
        versions = {name: item["ETag"] for name, item in self._list_items(folder).items()}
        return lambda name: versions.get(name, "-")

    def deletable(self, prefix: str = "") -> StoreListing:
        """See `Store.deletable`. A bucket has no links."""
        return StoreListing(self.sizes(prefix), ())

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        self._delete(self._key(name))

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """See `Store.clear`."""
        names = self.deletable(folder).matching(folder, pattern)
        keys = [self._key(name) for name in names]
        for start in range(0, len(keys), _MAX_KEYS_PER_DELETE):
            remaining = self._delete_at_once(keys[start : start + _MAX_KEYS_PER_DELETE])
            with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
                list(deleters.map(self._delete, remaining))

    def _delete(self, key: str) -> None:
        with S3Errors(self.bucket, key, "delete"):
            _s3().delete_object(Bucket=self.bucket, Key=key)

    def _delete_at_once(self, keys: Sequence[str]) -> list[str]:
        """Delete objects by a single request. Return the keys not deleted."""
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

    def _list_items(self, prefix: str) -> "dict[str, ObjectTypeDef]":
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{self._key(prefix)}/" if prefix else root
        items: dict[str, ObjectTypeDef] = {}
        with S3Errors(self.bucket, start, "list"):
            pages = _s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start):
                items |= {item["Key"][len(root) :]: item for item in page.get("Contents", [])}
        # Keys with a final slash are folder markers, not objects of a store.
        return {name: item for name, item in sorted(items.items()) if not name.endswith("/")}

    def _key(self, name: str) -> str:
        return build_object_key(self.prefix, name)


def _s3() -> "S3Client":
    """Return this process's client for the server and user in the current environment."""
    # With the process id in the cache key, a forked process makes a new client.
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
            # mtil's readers verify sha256, so S3's own checksums are not needed on reads.
            response_checksum_validation="when_required",
        ),
    )


@cache
def _multipart_config() -> "TransferConfig":
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=4
    )
