"""`dataset.json`, the manifest of a prepared data set.

The manifest is written last: a folder without `dataset.json` is no data set. Once images have been
appended, `versions/000001.json`, `versions/000002.json`, … keep the manifest of every version;
`dataset.json` is the newest.
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

from mtil.config import NonNegativeInt, PositiveInt
from mtil.data.dataset.account import Account
from mtil.documents import MIB, Document, Sha256, format_value
from mtil.errors import DataError, NotFoundError, TooLargeError
from mtil.storage import Store

FILE_NAME = "dataset.json"
VERSIONS = "versions"
SCHEMA_VERSION = 2
MAX_FOLDS = 100
MAX_SHARD_BYTES = 2**30
"""Readers hold a whole shard in memory; `mtil prepare` writes about 64 MiB a shard."""
_MAX_BYTES = 64 * MIB
_HOLDOUT = -1
_VERSION = re.compile(rf"{VERSIONS}/([0-9]{{6}})\.json")
_SHA256 = re.compile("[0-9a-f]{64}")

_Fold = Annotated[int, Field(ge=_HOLDOUT, lt=MAX_FOLDS)]
_Part = Annotated[int, Field(ge=0, lt=MAX_FOLDS)]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The number of rows of a shard with the same fold, inner part and label."""

    fold: _Fold
    part: _Part
    label: Annotated[int, Field(ge=0, le=2)]
    rows: PositiveInt


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A Parquet file of rows: path, size, digest and row counts."""

    path: str
    rows: PositiveInt
    bytes: Annotated[int, Field(gt=0, le=MAX_SHARD_BYTES)]
    sha256: Sha256
    cells: Annotated[tuple[Cell, ...], FailFast()]


@dataclass(frozen=True, kw_only=True)
class FileDigest:
    """Size in bytes and sha256 of a file."""

    bytes: Annotated[int, Field(ge=0, le=2**40)]
    sha256: Sha256


@dataclass(frozen=True, kw_only=True)
class DroppedImage:
    """An image read but left out of the data set, with the reason."""

    sample_id: str
    why: str


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """A source collection of a data set."""

    name: str
    prefix: str
    """Prefix of the sample ids of the collection; empty for a single collection."""
    licence: str
    citation: str
    read: NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set.

    Folds divide the groups for testing. Parts divide the groups of a fold again. The inner
    validation rows of fold k are the rows of the remaining folds with part k modulo `num_parts`.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    sources: tuple[SourceInfo, ...]
    image_size: Annotated[int, Field(ge=1, le=2048)]
    protocol: str
    """`grouped`, `paper`, or `official` for folds published with the sources."""
    fold_rule: str
    num_folds: Annotated[int, Field(ge=1, le=MAX_FOLDS)]
    num_parts: Annotated[int, Field(ge=1, le=MAX_FOLDS)]
    seed: NonNegativeInt
    num_groups: NonNegativeInt
    read: NonNegativeInt
    kept: dict[str, NonNegativeInt]
    folds: dict[str, dict[str, NonNegativeInt]]
    holdout: dict[str, NonNegativeInt]
    """Number of images reserved for a final test, by class."""
    dropped: Annotated[tuple[DroppedImage, ...], FailFast()] = field(default=())
    invalid: Annotated[tuple[DroppedImage, ...], FailFast()] = field(default=())
    """Skipped unusable images."""
    shards: Annotated[tuple[Shard, ...], FailFast()]
    fingerprint: str
    version: Annotated[int, Field(ge=1, le=999_999)] = 1
    """Increases by 1 with every `mtil prepare --append`."""
    audit: str = "audit"
    """Folder of the version's audit."""
    facts: tuple[str, ...] = field(default=())
    """Files of hashes and thumbnails; `--append` compares new images with them."""
    files: dict[str, FileDigest] = field(default_factory=dict)
    """Size and digest of the audit, facts and splits files, by name. Empty in data sets of earlier
    versions of mtil."""
    account: Account | None = None
    """Files and images seen while this version was prepared. None in data sets of earlier versions
    of mtil."""

    def name_source(self, source: str) -> str:
        """Return the collection of a row by the row's `source`.

        The `source` is empty in a data set of a single collection, and for the rows of a first
        collection to which others were appended: their ids have no prefix.
        """
        first = [known.name for known in self.sources if not known.prefix]
        return source or (first[0] if first else "")

    @property
    def num_rows(self) -> int:
        """Number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)


_ADAPTER: TypeAdapter[Manifest] = TypeAdapter(Manifest)


def manifest_to_json(manifest: Manifest) -> bytes:
    """Return the UTF-8 bytes of `dataset.json`."""
    values: Mapping[str, Any] = _ADAPTER.dump_python(manifest, mode="json")
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def describe_file(data: bytes) -> FileDigest:
    """Return the manifest entry for the bytes of a file."""
    return FileDigest(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def read_dataset_file(store: Store, name: str, files: Mapping[str, FileDigest]) -> bytes:
    """Read a file of a data set, verified against the manifest entry if present.

    Args:
        store: store of the data set.
        name: name of the file.
        files: `Manifest.files`.

    Raises:
        NotFoundError: if the file does not exist.
        DataError: if size or digest differ from the manifest.
    """
    expected = files.get(name)
    if expected is None:
        return store.read(name)
    try:
        # Bounded by the size in the manifest: a replaced file cannot fill the memory.
        data = store.read(name, max_bytes=expected.bytes)
    except TooLargeError:
        data = None
    if data is None or describe_file(data) != expected:
        raise DataError(
            f"{store.uri}/{name} must have {expected.bytes} bytes with sha256 "
            f"{expected.sha256[:12]}…, but the bytes differ; "
            "delete the data set and prepare the data again."
        )
    return data


def load_manifest(store: Store, fingerprint: str | None = None) -> Manifest:
    """Read a manifest of the data set at a store.

    Args:
        store: store of the data set.
        fingerprint: fingerprint of the version to read; the newest version if None.

    Raises:
        DataError: if the store has no data set, the schema version is unknown, or no version has
            the fingerprint.
    """
    newest = read_manifest(store)
    if fingerprint is None:
        return newest
    matching = find_manifest(store, fingerprint)
    if matching is None:
        raise DataError(
            f"No version of {store.uri} has the fingerprint {fingerprint[:12]}…, the newest has "
            f"{newest.fingerprint[:12]}…; name the data set with the fingerprint."
        )
    return matching


def find_manifest(store: Store, fingerprint: str) -> Manifest | None:
    """Return the manifest of the version with a fingerprint, or None if no version matches.

    Raises:
        DataError: if the store has no data set or the schema version is unknown.
    """
    newest = read_manifest(store)
    if newest.fingerprint == fingerprint:
        return newest
    for name in reversed(store.names(VERSIONS)):
        older = read_manifest(store, name)
        if older.fingerprint == fingerprint:
            return older
    return None


def load_version(store: Store, version: int) -> Manifest:
    """Read the manifest of a version.

    Raises:
        DataError: if the store has no data set or the version does not exist.
    """
    newest = read_manifest(store)
    if version == newest.version:
        return newest
    name = version_name(version)
    if not 1 <= version < newest.version:
        raise DataError(
            f"A version must be one of 1 to {newest.version} of {store.uri}, but got {version}."
        )
    return read_manifest(store, name)


def version_name(version: int) -> str:
    """Return the file name of a version's manifest, used once a data set has two versions."""
    return f"{VERSIONS}/{version:06d}.json"


def read_manifest(store: Store, name: str = FILE_NAME) -> Manifest:
    """Read and validate a manifest file. See `load_manifest` for errors."""
    document = Document(f"{store.uri}/{name}", "prepare the data again", max_bytes=_MAX_BYTES)
    try:
        values = document.object(document.read(store, name))
    except NotFoundError:
        raise DataError(
            f"A data set must have a {name}, but {store.uri} has none; "
            "make one with `mtil prepare`."
        ) from None
    # Checked before validation: a manifest of another schema would fail with a misleading key.
    version = values.get("schema_version")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise DataError(
            f"A data set must have schema version {SCHEMA_VERSION}, but {store.uri} has "
            f"{format_value(version)}; prepare the data again."
        )
    manifest = document.validate(_ADAPTER, values)
    for problem in _find_contradictions(manifest, name):
        document.refuse(problem)
    return manifest


def _find_contradictions(manifest: Manifest, name: str) -> Iterator[str]:
    """Yield contradictions between the values of a manifest, or with the file name."""
    version = _VERSION.fullmatch(name)
    if version and int(version[1]) != manifest.version:
        yield f"must be version {int(version[1])}, but says version {manifest.version}"
    if not _SHA256.fullmatch(manifest.fingerprint):
        yield (
            "is wrong at `fingerprint`: it must be a sha256, but is "
            f"{format_value(manifest.fingerprint)}"
        )
    paths = [shard.path for shard in manifest.shards]
    if len(set(paths)) < len(paths):
        yield "must name each shard once, but names one twice"
    # Readers open the paths: a path must not lead out of the data set.
    names = [("shards", path) for path in paths] + [("audit", path) for path in manifest.facts]
    names += [("audit", f"{manifest.audit}/x")]
    for folder, path in names:
        if not _is_below(folder, path):
            yield f"must name files below {folder}/, but names {format_value(path)}"
    yield from _find_miscounts(manifest)


def _find_miscounts(manifest: Manifest) -> Iterator[str]:
    """Yield contradictions between row counts."""
    rows: Counter[int] = Counter()
    for shard in manifest.shards:
        if sum(cell.rows for cell in shard.cells) != shard.rows:
            yield f"must give {shard.path} as many rows as its cells have, but does not"
        for cell in shard.cells:
            rows[cell.fold] += cell.rows
            if cell.fold >= manifest.num_folds or cell.part >= manifest.num_parts:
                yield (
                    f"must have folds below {manifest.num_folds} and parts below "
                    f"{manifest.num_parts}, but {shard.path} has fold {cell.fold} and part "
                    f"{cell.part}"
                )
    counts = {str(_HOLDOUT): manifest.holdout, **manifest.folds}
    for fold in range(_HOLDOUT, manifest.num_folds):
        counted = sum(counts.get(str(fold), {}).values())
        if counted != rows[fold]:
            yield (
                f"must count the rows of its shards, but counts {counted} of the {rows[fold]} in "
                f"fold {fold}"
            )
    kept = sum(manifest.kept.values())
    if kept != manifest.num_rows:
        yield f"must keep the {manifest.num_rows} images of its shards, but keeps {kept}"


def _is_below(folder: str, path: str) -> bool:
    parts = PurePosixPath(path).parts
    is_normalised = str(PurePosixPath(path)) == path and ".." not in parts and "\0" not in path
    return is_normalised and len(parts) > 1 and parts[0] == folder
