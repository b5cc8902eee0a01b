"""Names of objects: relative, with forward slashes, never outside their folder."""

import re
from pathlib import PurePosixPath

from mtil.errors import StorageError

PARTIAL = ".partial-"
"""How the name of a file begins that an interrupted write has left."""
PARTIAL_NAME = rf"{re.escape(PARTIAL)}[0-9a-z_]+"
"""A regular expression for the last part of such a name."""
MAX_KEY_BYTES = 1024
"""The most bytes that S3 and Google take for the name of an object."""


def checked(name: str) -> str:
    """Return a name in its plain form.

    Raises:
        StorageError: if the name would leave its folder, or no storage can have it.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StorageError(f"A name must stay inside its folder, but got {shown(name)}.")
    return str(path)


def checked_key(prefix: str, name: str) -> str:
    """Return the key of an object in a bucket.

    Raises:
        StorageError: if the name would leave its folder, or a bucket cannot have it.
    """
    key = "/".join(part for part in (prefix, checked(name)) if part)
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise StorageError(
            f"A name in a bucket must be Unicode, but {shown(name)} has bytes that are not; "
            "rename the file."
        ) from None
    if size > MAX_KEY_BYTES:
        raise StorageError(
            f"A name in a bucket may have {MAX_KEY_BYTES} bytes, but {shown(name)} has {size}; "
            "shorten it."
        )
    return key


def is_partial(name: str) -> bool:
    """Say whether a name is that of a file that an interrupted write has left."""
    return PurePosixPath(name).name.startswith(PARTIAL)


def shown(name: str) -> str:
    """Return a name as an error shows it: quoted, escaped, and cut if it is long."""
    text = ascii(name) if any("\ud800" <= letter <= "\udfff" for letter in name) else repr(name)
    return text if len(text) <= 120 else f"{text[:80]}…{text[-30:]}"
