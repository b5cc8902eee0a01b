"""`dataset.json`: what a prepared data set holds. It is written last: without it there is none.

Once images have been appended, every version's manifest is kept as `versions/000001.json` and so
on, and `dataset.json` is the newest.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import FailFast, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from mtil.config import Count, Whole
from mtil.data.dataset.account import Account
from mtil.documents import MIB, Document, Sha256, shown
from mtil.errors import DataError, NotFoundError, TooLargeError
from mtil.storage import Store

FILE_NAME = "dataset.json"
VERSIONS = "versions"
SCHEMA_VERSION = 2
MAX_FOLDS = 100
MAX_SHARD_BYTES = 2**30
"""Readers hold a shard in memory; `mtil prepare` writes about 64 MiB."""
_MAX_BYTES = 64 * MIB
_HOLDOUT = -1
_VERSION = re.compile(rf"{VERSIONS}/([0-9]{{6}})\.json")
_SHA256 = re.compile("[0-9a-f]{64}")

_Fold = Annotated[int, Field(ge=_HOLDOUT, lt=MAX_FOLDS)]
_Part = Annotated[int, Field(ge=0, lt=MAX_FOLDS)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """How many rows of a shard share a fold, an inner part and a label."""

    fold: _Fold
    part: _Part
    label: Annotated[int, Field(ge=0, le=2)]
    rows: Count


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One Parquet file of rows."""

    path: str
    rows: Count
    bytes: Annotated[int, Field(gt=0, le=MAX_SHARD_BYTES)]
    sha256: Sha256
    cells: Annotated[tuple[Cell, ...], FailFast()]


@dataclass(frozen=True, kw_only=True)
class File:
    """The bytes of one file."""

    bytes: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Sha256


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
    read: Whole


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set.

    Folds split groups for testing. Inside each fold, `part` splits its groups again: fold k's
    inner validation rows are those of the other folds whose part is k modulo `num_parts`.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    sources: tuple[SourceInfo, ...]
    image_size: Annotated[int, Field(ge=1, le=2048)]
    protocol: str
    """`grouped`, `paper`, or `official` for the sources' own folds."""
    fold_rule: str
    num_folds: Annotated[int, Field(ge=1, le=MAX_FOLDS)]
    num_parts: Annotated[int, Field(ge=1, le=MAX_FOLDS)]
    seed: Whole
    num_groups: Whole
    read: Whole
    kept: dict[str, Whole]
    folds: dict[str, dict[str, Whole]]
    holdout: dict[str, Whole]
    """Images by class that are kept for a final test."""
    dropped: Annotated[tuple[Dropped, ...], FailFast()] = field(default=())
    invalid: Annotated[tuple[Dropped, ...], FailFast()] = field(default=())
    """Images that could not be used and were skipped."""
    shards: Annotated[tuple[Shard, ...], FailFast()]
    fingerprint: str
    version: Annotated[int, Field(ge=1, le=999_999)] = 1
    """Counts up with every `mtil prepare --append`."""
    audit: str = "audit"
    """The folder of this version's audit."""
    facts: tuple[str, ...] = field(default=())
    """Files that say what the images are like, for later ones to be compared with."""
    files: dict[str, File] = field(default_factory=dict)
    """Size and digest of the files of the audit, the facts and the splits, by name. Data sets of
    earlier versions of this program name none."""
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


def file_of(data: bytes) -> File:
    """Return what a manifest says of a file with these bytes."""
    return File(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_file(store: Store, name: str, files: Mapping[str, File]) -> bytes:
    """Read a file of a data set and verify it, if the manifest says what it holds.

    Args:
        store: the data set's.
        name: the file.
        files: `Manifest.files`.

    Raises:
        NotFoundError: if there is no such file.
        DataError: if it has other bytes than the manifest says.
    """
    said = files.get(name)
    if said is None:
        return store.read(name)
    try:
        data = store.read(name, max_bytes=said.bytes)
    except TooLargeError:
        data = None
    if data is None or file_of(data) != said:
        raise DataError(
            f"{store.uri}/{name} must have {said.bytes} bytes with sha256 {said.sha256[:12]}…, "
            "but its bytes differ; delete the data set and prepare it again."
        )
    return data


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
    document = Document(f"{store.uri}/{name}", "prepare the data again", max_bytes=_MAX_BYTES)
    try:
        values = document.object(document.read(store, name))
    except NotFoundError:
        raise DataError(
            f"A data set must have a {name}, but {store.uri} has none; "
            "make one with `mtil prepare`."
        ) from None
    version = values.get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise DataError(
            f"A data set must have schema version {SCHEMA_VERSION}, but {store.uri} has "
            f"{shown(version)}; prepare the data again."
        )
    made = document.validate(_ADAPTER, values)
    for problem in _contradictions(made, name):
        document.refuse(problem)
    return made


def _contradictions(made: Manifest, name: str) -> Iterator[str]:
    """Yield what the values of a manifest contradict in each other or in the file's name."""
    version = _VERSION.fullmatch(name)
    if version and int(version[1]) != made.version:
        yield f"must be version {int(version[1])}, but says version {made.version}"
    if not _SHA256.fullmatch(made.fingerprint):
        yield f"is wrong at `fingerprint`: it must be a sha256, but is {shown(made.fingerprint)}"
    paths = [shard.path for shard in made.shards]
    if len(set(paths)) < len(paths):
        yield "must name each shard once, but names one twice"
    names = [("shards", path) for path in paths] + [("audit", path) for path in made.facts]
    names += [("audit", f"{made.audit}/x")]
    for folder, path in names:
        if not _is_below(folder, path):
            yield f"must name files below {folder}/, but names {shown(path)}"
    yield from _miscounts(made)


def _miscounts(made: Manifest) -> Iterator[str]:
    """Yield the counts of rows that do not add up."""
    rows: Counter[int] = Counter()
    for shard in made.shards:
        if sum(cell.rows for cell in shard.cells) != shard.rows:
            yield f"must give {shard.path} as many rows as its cells have, but does not"
        for cell in shard.cells:
            rows[cell.fold] += cell.rows
            if cell.fold >= made.num_folds or cell.part >= made.num_parts:
                yield (
                    f"must have folds below {made.num_folds} and parts below {made.num_parts}, but "
                    f"{shard.path} has fold {cell.fold} and part {cell.part}"
                )
    counts = {str(_HOLDOUT): made.holdout, **made.folds}
    for fold in range(_HOLDOUT, made.num_folds):
        counted = sum(counts.get(str(fold), {}).values())
        if counted != rows[fold]:
            yield (
                f"must count the rows of its shards, but counts {counted} of the {rows[fold]} in "
                f"fold {fold}"
            )
    kept = sum(made.kept.values())
    if kept != made.num_rows:
        yield f"must keep the {made.num_rows} images of its shards, but keeps {kept}"


def _is_below(folder: str, path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = str(PurePosixPath(path)) == path and ".." not in parts and "\0" not in path
    return plain and len(parts) > 1 and parts[0] == folder
