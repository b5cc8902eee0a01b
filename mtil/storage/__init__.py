"""Bytes in and out of a local folder or a bucket, each object whole or not at all."""

import re
from collections.abc import Iterator
from typing import Protocol
from urllib.parse import unquote

from mtil.errors import StorageError
from mtil.storage.gcs import GcsStore
from mtil.storage.listing import Listing
from mtil.storage.local import LocalStore
from mtil.storage.names import PARTIAL_NAME, is_partial, shown
from mtil.storage.s3 import S3Store

__all__ = [
    "BUCKETS",
    "PARTIAL_NAME",
    "GcsStore",
    "Listing",
    "LocalStore",
    "S3Store",
    "Store",
    "is_partial",
    "open_store",
    "split_uri",
]


BUCKETS = ("s3://", "gs://")
"""How the URI of a bucket begins."""


class Store(Protocol):
    """A tree of named byte strings below a URI. Names are relative, with forward slashes."""

    @property
    def uri(self) -> str:
        """The root, as the user would write it."""

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """Return an object's bytes.

        Args:
            name: the object's.
            max_bytes: the most bytes that are read into memory; no bound by default.

        Raises:
            NotFoundError: if there is no such object.
            TooLargeError: if it has more than `max_bytes` bytes.
        """

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

    def deletable(self, prefix: str = "") -> Listing:
        """List the objects below a folder that are reached through no link."""

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """Delete the objects below a folder whose names, relative to it, match a pattern.

        Raises:
            StorageError: if the folder is a link, or an object cannot be deleted.
        """


def open_store(uri: str) -> Store:
    """Return the store at a local path or a `file://`, `s3://` or `gs://` URI.

    Nothing is read or made yet. Raises `StorageError` for another scheme.
    """
    if not uri or "\0" in uri:
        raise StorageError(f"A location must be a path or a URI, but got {shown(uri)}.")
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return LocalStore(uri)
    if scheme == "file":
        return LocalStore(_file_path(uri, rest))
    if scheme == "s3":
        return S3Store(rest)
    if scheme == "gs":
        return GcsStore(rest)
    raise StorageError(f"A location must be a path, file://, s3:// or gs://, but got {uri!r}.")


def split_uri(uri: str) -> tuple[str, str]:
    """Split a URI into its parent, a URI again, and its last name as the store calls it."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    if uri.startswith("file://"):
        name, parent = unquote(name), "file:///" if parent == "file://" else parent
    return (parent or ("/" if uri.startswith("/") else "."), name)


def _file_path(uri: str, rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise StorageError(f"A file:// location must be file:///PATH, but got {uri!r}.")
    return unquote(path)
