"""Names of objects: relative, with forward slashes, never outside their folder."""

from pathlib import PurePosixPath

from mtil.errors import StorageError


def checked(name: str) -> str:
    """Return a name in its plain form; raises `StorageError` if it would leave its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise StorageError(f"A name must stay inside its folder, but got {name!r}.")
    return str(path)
