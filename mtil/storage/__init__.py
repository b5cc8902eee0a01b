"""Stores: local folders and buckets with one interface. Every write is atomic."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from mtil.errors import StorageError
from mtil.storage.gcs import GcsStore
from mtil.storage.listing import StoreListing
from mtil.storage.local import LocalStore
from mtil.storage.names import PARTIAL_NAME_PATTERN, is_partial, quote_object_name
from mtil.storage.s3 import S3Store

__all__ = [
    "BUCKETS",
    "PARTIAL_NAME_PATTERN",
    "GcsStore",
    "LocalStore",
    "S3Store",
    "Store",
    "StoreListing",
    "is_partial",
    "locate_file",
    "open_store",
    "path_within",
    "split_uri",
]


BUCKETS = ("s3://", "gs://")
"""Prefixes of bucket URIs."""


class Store(Protocol):
    """Named objects (byte strings) below a URI. Names are relative, with forward slashes."""

    @property
    def uri(self) -> str:
        """The URI of the store's root, as a user writes it."""

    @property
    def local_folder(self) -> Path | None:
        """The folder on a disk of this machine, or None for a bucket."""

    def read(self, name: str, *, max_bytes: int | None = None) -> bytes:
        """Return an object's bytes.

        Args:
            name: the object's name.
            max_bytes: limit on the bytes read into memory; no limit by default.

        Raises:
            NotFoundError: if the object does not exist.
            TooLargeError: if the object has more than `max_bytes` bytes.
        """

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield an object's bytes in chunks.

        Raises:
            NotFoundError: if the object does not exist.
        """

    def write(self, name: str, data: bytes) -> None:
        """Write an object atomically. Replaces an existing object."""

    def create(self, name: str, data: bytes) -> bool:
        """Write an object atomically if the name is free. Return whether the object was written."""

    def exists(self, name: str) -> bool:
        """Return whether an object with the name exists."""

    def names(self, prefix: str = "") -> list[str]:
        """Return the sorted names of all objects below a folder."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return sizes in bytes, by name, of all objects and partial files below a folder."""

    def versions(self, folder: str = "") -> Callable[[str], str]:
        """Return a function from an object's name to text that changes with the object's bytes.

        The text of a missing object is `-`. A bucket is listed by this call, once. A local file is
        examined by each call of the function, so that a large folder is not walked for a few files.

        Args:
            folder: the folder that holds the names.
        """

    def delete(self, name: str) -> None:
        """Delete an object. A missing object is not an error."""

    def deletable(self, prefix: str = "") -> StoreListing:
        """List the objects below a folder, except objects behind links."""

    def clear(self, folder: str, pattern: re.Pattern[str]) -> None:
        """Delete the objects below a folder with names that match a pattern.

        Args:
            folder: the folder, relative to the root.
            pattern: must match the whole name, relative to `folder`.

        Raises:
            StorageError: if the folder is a link, or an object cannot be deleted.
        """


def open_store(uri: str) -> Store:
    """Return the store at a local path or a `file://`, `s3://` or `gs://` URI.

    Neither reads nor creates anything.

    Raises:
        StorageError: if the location is empty, contains NUL or has an unknown scheme.
    """
    if not uri or "\0" in uri:
        raise StorageError(f"A location must be a path or a URI, but got {quote_object_name(uri)}.")
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
    """Split a URI into its parent URI and its last name, as the parent's store spells the name."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    # Names in file:// URIs are percent-encoded; a store's names never are.
    if uri.startswith("file://"):
        name, parent = unquote(name), "file:///" if parent == "file://" else parent
    return (parent or ("/" if uri.startswith("/") else "."), name)


def path_within(inner: Store, outer: Store) -> str | None:
    """Return the path of a store within another: `.` if equal, None if not inside."""
    if inner.local_folder is not None and outer.local_folder is not None:
        # Resolved: links and `..` may lead to one folder by different paths.
        path, root = inner.local_folder.resolve(), outer.local_folder.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else None
    if inner.uri == outer.uri:
        return "."
    prefix = f"{outer.uri}/"
    return inner.uri.removeprefix(prefix) if inner.uri.startswith(prefix) else None


def locate_file(uri: str) -> tuple[Store, str] | None:
    """Return folder and name if a location is a file or an object, else None."""
    store = open_store(uri)
    path = store.local_folder
    if path is not None:
        return (LocalStore(str(path.parent)), path.name) if path.is_file() else None
    parent, name = split_uri(store.uri)
    if not parent.startswith(BUCKETS):
        return None  # the location is a bucket without a key
    folder = open_store(parent)
    return (folder, name) if folder.exists(name) else None


def _file_path(uri: str, rest: str) -> str:
    path = rest.removeprefix("localhost")
    if not path.startswith("/"):
        raise StorageError(f"A file:// location must be file:///PATH, but got {uri!r}.")
    return unquote(path)
