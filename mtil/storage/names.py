"""Object names: relative, with forward slashes, never outside the store."""

import re
from pathlib import PurePosixPath

from mtil.errors import StorageError

PARTIAL_PREFIX = ".partial-"
"""Name prefix of temporary files, left behind when a write is interrupted."""
PARTIAL_NAME_PATTERN = rf"{re.escape(PARTIAL_PREFIX)}[0-9a-z_]+"
"""Regular expression for the last component of a partial file's name."""
MAX_KEY_BYTES = 1024
"""Longest object key, in bytes of UTF-8, in S3 and Google Cloud Storage."""


def normalize_name(name: str) -> str:
    """Return a name in normal form.

    Raises:
        StorageError: if the name is empty, leaves its folder, or contains NUL.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StorageError(
            f"A name must stay inside its folder, but got {quote_object_name(name)}."
        )
    return str(path)


def build_object_key(prefix: str, name: str) -> str:
    """Return the bucket key of an object.

    Raises:
        StorageError: if the name leaves its folder, is not valid Unicode, or is too long.
    """
    key = "/".join(part for part in (prefix, normalize_name(name)) if part)
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StorageError(
            f"A name in a bucket must be Unicode, but {quote_object_name(name)} has other bytes; "
            "rename the file."
        ) from None
    if size > MAX_KEY_BYTES:
        raise StorageError(
            f"A name in a bucket may have {MAX_KEY_BYTES} bytes, but {quote_object_name(name)} "
            f"has {size}; "
            "shorten the name."
        )
    return key


def is_partial(name: str) -> bool:
    """Return whether a name belongs to the partial file of an interrupted write."""
    return PurePosixPath(name).name.startswith(PARTIAL_PREFIX)


def quote_object_name(name: str) -> str:
    """Return a name for error messages: quoted, escaped, and shortened if long."""
    # Lone surrogates stand for undecodable bytes and cannot be encoded for a terminal.
    text = ascii(name) if any("\ud800" <= letter <= "\udfff" for letter in name) else repr(name)
    return text if len(text) <= 120 else f"{text[:80]}…{text[-30:]}"
