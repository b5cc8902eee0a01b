"""Bytes in and out of a local folder or an S3 bucket, each object whole or not at all.

One S3 client per process, never across a fork: an inherited connection answers with another
process's bytes.
"""

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote

from mtil.errors import NotFoundError, RefusedError, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectRequestTypeDef

_PARTIAL = ".partial-"
_CHUNK_BYTES = 2**20
_MKDIR_ATTEMPTS = 10
_CREATE_ATTEMPTS = 6
_READ_ATTEMPTS = 5
_KEYS_A_CALL = 1000
"""How many objects S3 deletes at once."""
_REFUSALS = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch")
_SKEWED = "RequestTimeTooSkewed"
_MAX_LEAD_S = 15 * 60
"""How far S3 lets clocks be apart; an answer to HEAD says no more than that it is a refusal."""


class Store(Protocol):
    """A tree of named byte strings below a URI. Names are relative, with forward slashes."""

    @property
    def uri(self) -> str:
        """The root, as the user would write it."""

    def read(self, name: str) -> bytes:
        """Return an object's bytes; `NotFoundError` if there is none."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes piece by piece; `NotFoundError` if there is none."""

    def write(self, name: str, data: bytes) -> None:
        """Write an object whole, replacing another of that name."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object whole unless one of that name exists; say whether it was written."""

    def exists(self, name: str) -> bool:
        """Say whether there is an object of that name."""

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all objects below a folder."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the bytes of all objects below a folder, and of what interrupted writes left."""

    def delete(self, name: str) -> None:
        """Delete an object; a missing one is no error."""

    def clear(self, folder: str) -> None:
        """Delete every object below a folder, and what interrupted writes have left there."""


def open_store(uri: str) -> Store:
    """Return the store at a local path, a `file://` URI or an `s3://bucket/prefix` URI.

    Nothing is read or made yet. Raises `StorageError` for another scheme.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(uri)
    if scheme == "file":
        return LocalStore(unquote(rest))
    if scheme == "s3":
        return S3Store(rest)
    raise StorageError(f"A location must be a path, file:// or s3://, but got {uri!r}.")


def is_partial(name: str) -> bool:
    """Say whether a name of `Store.sizes` is what an interrupted write has left."""
    return PurePosixPath(name).name.startswith(_PARTIAL)


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into its parent, a URI again, and its last name as the store calls it."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    if uri.startswith("file://"):
        name = unquote(name)
    return (parent or ("/" if uri.startswith("/") else "."), name)


class LocalStore:
    """A folder on a local or shared disk."""

    def __init__(self, root: str) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        path = self._path(name)
        try:
            return path.read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist.") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None

    def chunks(self, name: str) -> Iterator[bytes]:
        """See `Store.chunks`."""
        path = self._path(name)
        try:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFoundError(f"{path} does not exist.") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        path = self._path(name)
        try:
            partial = _write_partial(path, data)
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from None

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        path = self._path(name)
        try:
            partial = _write_partial(path, data)
            try:
                path.hardlink_to(partial)
            except FileExistsError:
                return False
            finally:
                partial.unlink()
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error.strerror}.") from None
        return True

    def exists(self, name: str) -> bool:
        """See `Store.exists`."""
        path = self._path(name)
        try:
            return path.is_file()
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}.") from None

    def names(self, prefix: str = "") -> list[str]:
        """See `Store.names`."""
        found = []
        start = self._path(prefix) if prefix else self.root
        for folder, _, files in os.walk(start, onerror=_refuse_unreadable):
            found += [
                (Path(folder) / file).relative_to(self.root).as_posix()
                for file in files
                if not file.startswith(_PARTIAL)
            ]
        return sorted(found)

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """See `Store.sizes`."""
        found = {}
        start = self._path(prefix) if prefix else self.root
        for folder, _, files in os.walk(start, onerror=_refuse_unreadable):
            for file in files:
                path = Path(folder) / file
                with suppress(FileNotFoundError):  # deleted meanwhile
                    found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        return dict(sorted(found.items()))

    def delete(self, name: str) -> None:
        """See `Store.delete`; folders that this empties go too, as a bucket has none."""
        path = self._path(name)
        try:
            path.unlink()
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror}.") from None
        self._remove_empty(path.parent)

    def clear(self, folder: str) -> None:
        """See `Store.clear`; folders that this empties go too."""
        path = self._path(folder)
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"{path} cannot be deleted: {error.strerror}.") from None
        self._remove_empty(path.parent)

    def _remove_empty(self, folder: Path) -> None:
        while folder != self.root:
            try:
                folder.rmdir()
            except OSError:
                break
            folder = folder.parent

    def _path(self, name: str) -> Path:
        return self.root / _checked(name)


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

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        return b"".join(self.chunks(name))

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
        """See `Store.write`."""
        with _S3Errors(self.bucket, self._key(name)):
            _s3().put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

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
        root = f"{self.prefix}/" if self.prefix else ""
        start = f"{self._key(prefix)}/" if prefix else root
        found: dict[str, int] = {}
        with _S3Errors(self.bucket, start):
            pages = _s3().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=start):
                found |= {
                    item["Key"][len(root) :]: item["Size"] for item in page.get("Contents", [])
                }
        return {name: size for name, size in sorted(found.items()) if not name.endswith("/")}

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

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{_checked(name)}".lstrip("/")


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StorageError(f"A name must stay inside its folder, but got {name!r}.")
    return str(path)


def _write_partial(path: Path, data: bytes) -> Path:
    for attempt in range(_MKDIR_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(prefix=_PARTIAL, dir=path.parent)
            break
        except (FileNotFoundError, FileExistsError):  # a delete elsewhere took the empty folder
            if attempt == _MKDIR_ATTEMPTS - 1:
                raise
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        Path(partial).unlink()
        raise
    Path(partial).chmod(0o666 & ~_umask())
    return Path(partial)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise StorageError(f"{error.filename} cannot be read: {error.strerror}.") from None


@cache
def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
        if isinstance(error, BotoCoreError):
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
