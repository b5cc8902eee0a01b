"""`dataset.json`: what a prepared data set holds. It is written last: without it there is none.

Once images have been appended, every version's manifest is kept as `versions/000001.json` and so
on, and `dataset.json` is the newest.
"""

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mtil.data.account import Account
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

FILE_NAME = "dataset.json"
VERSIONS = "versions"
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How many rows of a shard share a fold, an inner part and a label."""

    fold: int
    part: int
    label: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of rows."""

    path: str
    rows: int
    bytes: int
    sha256: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """An image that was read but not kept."""

    sample_id: str
    why: str


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """A collection that a data set was made from."""

    name: str
    prefix: str
    """What its sample ids begin with; empty if there is only one collection."""
    licence: str
    citation: str
    read: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set.

    Folds split groups for testing. Inside each fold, `part` splits its groups again: fold k's
    inner validation rows are those of the other folds whose part is k modulo `num_parts`.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    sources: tuple[SourceInfo, ...]
    image_size: int
    protocol: str
    """`grouped`, `paper`, or `official` for the sources' own folds."""
    fold_rule: str
    num_folds: int
    num_parts: int
    seed: int
    num_groups: int
    read: int
    kept: dict[str, int]
    folds: dict[str, dict[str, int]]
    holdout: dict[str, int]
    """Images by class that are kept for a final test."""
    dropped: tuple[Dropped, ...] = field(default=())
    invalid: tuple[Dropped, ...] = field(default=())
    """Images that could not be used and were skipped."""
    shards: tuple[Shard, ...]
    fingerprint: str
    version: int = 1
    """Counts up with every `mtil prepare --append`."""
    audit: str = "audit"
    """The folder of this version's audit."""
    facts: tuple[str, ...] = field(default=())
    """Files that say what the images are like, for later ones to be compared with."""
    account: Account | None = None
    """The files and images that the preparation of this version saw; earlier versions of mtil
    wrote none."""

    @property
    def num_rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def to_json(manifest: Manifest) -> bytes:
    """Return the text of `dataset.json`."""
    values: Mapping[str, Any] = _ADAPTER.dump_python(manifest, mode="json")
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def load(store: Store, fingerprint: str | None = None) -> Manifest:
    """Read the manifest of the data set at a store.

    Args:
        store: the data set's.
        fingerprint: which version to read; the newest if none is given.

    Raises:
        DataError: if there is no data set, not one of this schema version, or no version with the
            fingerprint.
    """
    newest = read(store)
    if fingerprint is None:
        return newest
    found = find(store, fingerprint)
    if found is None:
        raise DataError(
            f"No version of {store.uri} has the fingerprint {fingerprint[:12]}…, the newest has "
            f"{newest.fingerprint[:12]}…; name the data set that has it."
        )
    return found


def find(store: Store, fingerprint: str) -> Manifest | None:
    """Return the manifest of the version that has a fingerprint, or None if none has.

    Raises:
        DataError: if there is no data set, or not one of this schema version.
    """
    newest = read(store)
    if newest.fingerprint == fingerprint:
        return newest
    for name in reversed(store.names(VERSIONS)):
        older = read(store, name)
        if older.fingerprint == fingerprint:
            return older
    return None


def load_version(store: Store, version: int) -> Manifest:
    """Read the manifest of a version.

    Raises:
        DataError: if there is no data set, or no such version.
    """
    newest = read(store)
    if version == newest.version:
        return newest
    name = version_name(version)
    if not 1 <= version < newest.version:
        raise DataError(
            f"A version must be one of 1 to {newest.version} of {store.uri}, but got {version}."
        )
    return read(store, name)


def version_name(version: int) -> str:
    """Return where a version's manifest is kept once there is a second one."""
    return f"{VERSIONS}/{version:06d}.json"


def read(store: Store, name: str = FILE_NAME) -> Manifest:
    """Read one manifest. See `load`."""
    try:
        values = json.loads(store.read(name))
    except NotFoundError:
        raise DataError(
            f"A data set must have a {name}, but {store.uri} has none; "
            "make one with `mtil prepare`."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise DataError(f"{store.uri}/{name} is not JSON; prepare the data again.") from None
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(
            f"A data set must have schema version {SCHEMA_VERSION}, but {store.uri} has "
            f"{version!r}; prepare the data again."
        )
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise DataError(f"{store.uri}/{name} is wrong at `{where}`; prepare again.") from None
