"""A Google Cloud Storage bucket as a store.

Uses pyarrow's client, which retries with backoff. pyarrow has no conditional create, so `create`
uses Google's own client (extra `mtil[gcs]`). Every process makes new clients, never inherited by a
fork, as with S3.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from mtil.errors import NotFoundError, RefusedError, StorageError
from mtil.storage.listing import StoreListing
from mtil.storage.names import build_object_key
from mtil.storage.size_limits import join_chunks

if TYPE_CHECKING:
    from google.cloud.storage import Client
    from pyarrow.fs import FileInfo, GcsFileSystem

_CHUNK_BYTES = 2**20
_NUM_DELETERS = 16
_RETRY_S = 60.0
"""Seconds of retries after temporary failures."""
_EMULATOR = "STORAGE_EMULATOR_HOST"
"""Variable of Google's own libraries: address of a server without login."""


class GcsStore:
    """A bucket or a prefix of a bucket, with Google's application default credentials."""

    def __init__(self, location: str) -> None:
        self.bucket, _, prefix = location.partition("/")
        self.prefix = prefix.strip("/")
        if not self.bucket:
            raise StorageError(f"A gs:// location must name a bucket, but got 'gs://{location}'.")

    @property
    def uri(self) -> str:
        """URI of the bucket and prefix."""
        return f"gs://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def local_folder(self) -> None:
        """See `Store.local_folder`."""
        return None

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """See `Store.read`."""
        return join_chunks(self.chunks(name), f"{self.uri}/{name}", max_bytes)

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        path = self._path(name)
        with _Errors(path), _pyarrow().open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        path = self._path(name)
        with _Errors(path):
            stream = _pyarrow().open_output_stream(path)
            stream.write(data)
            # Close only after a complete write: closing makes an object of the bytes sent so far.
            stream.close()

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        from google.api_core.exceptions import PreconditionFailed

        path = self._path(name)
        with _Errors(path):
            blob = _google().bucket(self.bucket).blob(path.partition("/")[2])
            try:
                # Generation 0 stands for a missing object.
                blob.upload_from_string(data, if_generation_match=0, checksum="crc32c")
            except PreconditionFailed:
                return False
        return True

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        path = self._path(name)
        with _Errors(path):
            return bool(_pyarrow().get_file_info(path).is_file)

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`. Interrupted writes leave nothing in a bucket."""
        return {name: info.size for name, info in self._list_infos(prefix).items()}

    def versions(self, folder: str = "") -> Callable[[str], str]:
        """See `Store.versions`: size and modification time."""
        versions = {
            name: f"{info.size}:{info.mtime_ns}" for name, info in self._list_infos(folder).items()
        }
        return lambda name: versions.get(name, "-")

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        path = self._path(name)
        try:
            with _Errors(path):
                _pyarrow().delete_file(path)
        except NotFoundError:
            return

    def deletable(self, prefix: str = "") -> StoreListing:
        """See `Store.deletable`. A bucket has no links."""
        return StoreListing(self.sizes(prefix), ())

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """See `Store.clear`."""
        names = self.deletable(folder).matching(folder, pattern)
        with ThreadPoolExecutor(_NUM_DELETERS) as deleters:
            list(deleters.map(self.delete, names))

    def _list_infos(self, prefix: str) -> "dict[str, FileInfo]":
        from pyarrow.fs import FileSelector

        root = f"{self.bucket}/{self.prefix}".rstrip("/") + "/"
        start = self._path(prefix) if prefix else root.rstrip("/")
        with _Errors(start):
            infos = _pyarrow().get_file_info(
                FileSelector(start, recursive=True, allow_not_found=True)
            )
        by_name = {info.path.removeprefix(root): info for info in infos if info.is_file}
        return dict(sorted(by_name.items()))

    def _path(self, name: str) -> str:
        return f"{self.bucket}/{build_object_key(self.prefix, name)}"


def _pyarrow() -> "GcsFileSystem":
    """Return this process's file system for the server in the current environment."""
    # With the process id in the cache key, a forked process makes a new client.
    return _filesystem(os.getpid(), os.environ.get(_EMULATOR))


@cache
def _filesystem(pid: int, emulator: str | None) -> "GcsFileSystem":
    from pyarrow.fs import GcsFileSystem

    retries = timedelta(seconds=_RETRY_S)
    if emulator is None:
        return GcsFileSystem(retry_time_limit=retries)
    scheme, separator, host = emulator.rpartition("://")
    return GcsFileSystem(
        anonymous=True,
        scheme=scheme if separator else "http",
        endpoint_override=host,
        retry_time_limit=retries,
    )


def _google() -> "Client":
    return _client(os.getpid(), os.environ.get(_EMULATOR))


@cache
def _client(pid: int, emulator: str | None) -> "Client":
    try:
        from google.cloud.storage import Client
    except ModuleNotFoundError:
        raise StorageError(
            "Writing to gs:// needs Google's client; run `pip install 'mtil[gcs]'`."
        ) from None
    return Client() if emulator is None else Client.create_anonymous_client()


class _Errors:
    """Turns the errors of both clients into mtil's errors."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, StorageError):
            return
        where = f"gs://{self.path}"
        text = " ".join(str(error).split()).rstrip(".")[:300]
        # pyarrow raises OSError. Google's client raises errors of Google's and of HTTP libraries.
        is_google = type(error).__module__.partition(".")[0] in ("google", "requests", "urllib3")
        if not isinstance(error, OSError) and not is_google:
            return
        if _NO_BUCKET.search(text):
            bucket = self.path.partition("/")[0]
            raise StorageError(f"Bucket {bucket!r} does not exist; make it first.") from error
        if isinstance(error, FileNotFoundError):
            raise NotFoundError(f"{where} does not exist.") from error
        for pattern, reason in _REFUSALS:
            if pattern.search(text) or pattern.search(type(error).__name__):
                raise RefusedError(f"Access to {where} is refused{reason}.") from error
        if isinstance(error, PermissionError) or _is_refusal(error):
            raise RefusedError(
                f"Access to {where} is refused; check Google's application default credentials, "
                "and their rights to read, create, list and delete objects."
            ) from error
        remedy = next((remedy for pattern, remedy in _FAILURES if pattern.search(text)), None)
        raise StorageError(f"{where} failed: {text}{f'; {remedy}' if remedy else ''}.") from error


_NO_BUCKET = re.compile(r"bucket does not exist|bucket .*not found", re.IGNORECASE)
_REFUSALS = (
    (
        re.compile(r"DefaultCredentialsError|Could not (?:find|create).*credential", re.IGNORECASE),
        ", because there are no credentials; run `gcloud auth application-default login`, or set "
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    (
        re.compile(r"RefreshError|UNAUTHENTICATED|invalid_grant|expired|Invalid Credentials|"
                   r"OAuth2", re.IGNORECASE),
        ", because the credentials have expired or are not valid; run `gcloud auth "
        "application-default login`, and check this machine's clock",
    ),
    (
        re.compile(r"requester pays|userProject", re.IGNORECASE),
        ", because the bucket charges its readers (requester pays); copy the data to your own "
        "bucket",
    ),
    (
        re.compile(r"retention|object.?hold|temporary hold|locked", re.IGNORECASE),
        ", because objects of the bucket are locked; mtil replaces and deletes its files, "
        "so choose a bucket without a retention policy",
    ),
    (
        re.compile(r"\bKMS\b|cloudkms", re.IGNORECASE),
        ", because the key that encrypts the bucket cannot be used; ask for access to the key",
    ),
)  # fmt: skip
"""Patterns of the clients' messages, with the ends of the error sentences."""
_FAILURES = (
    (re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|\b50[0234]\b|timed? ?out|Connection|connect|"
                r"resolve", re.IGNORECASE), "check the network, and try again later"),
    (re.compile(r"RESOURCE_EXHAUSTED|\b429\b|rate|quota", re.IGNORECASE),
     "too many requests or no quota left; try again later"),
    (re.compile(r"NOT_IMPLEMENTED|UNIMPLEMENTED|\b501\b|\b405\b", re.IGNORECASE),
     "the server lacks a request that mtil needs; choose another storage"),
    (re.compile(r"INVALID_ARGUMENT|\b400\b|Invalid bucket name", re.IGNORECASE),
     "correct the gs:// location"),
)  # fmt: skip


def _is_refusal(error: Any) -> bool:
    return getattr(error, "code", None) in (401, 403)
