"""Versions of a data set: immutable once committed.

Creating `versions/000002.json` commits version 2; only a single writer can create the file.
Afterwards `dataset.json` is updated. If the update is missing, the next command makes up for it.
"""

import re
from collections.abc import Mapping

from mtil.data.audit import findings as audits
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import FILE_NAME, FileDigest, Manifest
from mtil.data.folds import splits
from mtil.data.folds.assign import FoldAssignment, SamplePlace
from mtil.data.prepare import staging
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

_TAG = r"(?P<version>[0-9]{6})-[0-9a-f]{16}"
STAGED_NAMES = re.compile(rf"(?:(?:new|known)/)?(?:{staging.STAGED_FILE_PATTERN})")
"""Names of staged files, relative to the staging folder of an attempt."""
# Names of all files written by attempts, by folder. Only matching files are ever deleted.
_ATTEMPT_FILES = {
    staging.STAGING_FOLDER: re.compile(
        rf"{staging.STAGING_FOLDER}/(?:{_TAG}|[0-9a-f]{{16}})/{STAGED_NAMES.pattern}"
    ),
    "shards": re.compile(rf"shards/part-\d{{5,}}(?:-{_TAG})?\.parquet"),
    "audit": re.compile(
        rf"audit/(?:{_TAG}/)?"
        rf"(?:facts-\d{{5,}}\.parquet|{re.escape(audits.PAIRS_FILE)}|{re.escape(audits.IMAGES_FILE)})"
    ),
}


def load_newest(store: Store) -> Manifest:
    """Return the newest version; update `dataset.json` and delete files of failed attempts.

    Raises:
        DataError: if the store holds no data set.
    """
    return publish_version(store, manifests.load_manifest(store))


def commit_version(store: Store, before: Manifest, made: Manifest) -> None:
    """Commit a version as the newest.

    Args:
        store: store of the data set.
        before: the version before.
        made: the version to commit.

    Raises:
        DataError: if a different version was committed after `before` in the meantime.
    """
    # Keep the manifest of the version before: `dataset.json` will be overwritten.
    store.create(manifests.version_name(before.version), store.read(FILE_NAME))
    name, data = manifests.version_name(made.version), manifests.manifest_to_json(made)
    # Equal bytes: an earlier attempt of the command has committed the version.
    if not store.create(name, data) and store.read(name) != data:
        raise DataError(
            f"Other images were appended to {store.uri} meanwhile; run the same command again."
        )
    publish_version(store, before)


def make_attempt_tag(version: int, key: str) -> str:
    """Return the tag in the file names of an attempt at a version, `000002-` and the key."""
    return f"{version:06d}-{key}"


def encode_splits(made: Manifest, places: Mapping[str, SamplePlace]) -> bytes:
    """Return the bytes of a version's `splits.json`.

    Args:
        made: the version.
        places: group, fold and part of the kept images, by sample id.
    """
    fold_and_part = {name: (place.fold, place.part) for name, place in places.items()}
    assignment = FoldAssignment(made.fold_rule, made.num_folds, made.num_parts, fold_and_part)
    return splits.serialize_splits(
        assignment, {name: place.group for name, place in places.items()}
    )


def publish_version(store: Store, made: Manifest) -> Manifest:
    """Write `splits.json` and `dataset.json` of the newest version; return the newest manifest.

    Args:
        store: store of the data set.
        made: the newest version known so far.
    """
    known_version = made.version
    is_done = False
    # A concurrent writer may commit a version during publication: check again at the end.
    while not is_done or _has_next(store, made):
        while _has_next(store, made):
            made = manifests.read_manifest(store, manifests.version_name(made.version + 1))
        # `dataset.json` last: readers find the new version only with the splits in place.
        if made.version > known_version or not _has_splits(store, made):
            store.write(splits.SPLITS_FILE, encode_splits(made, _read_places(store, made)))
        if made.version > known_version:
            store.write(FILE_NAME, manifests.manifest_to_json(made))
        is_done = True
    _delete_leftovers(store, made)
    return made


def delete_attempt(store: Store, tag: str) -> None:
    """Delete the shards and the audit of a failed attempt."""
    for folder in ("shards", "audit"):
        for name in store.deletable(folder).sizes:
            if tag in name and _ATTEMPT_FILES[folder].fullmatch(name):
                store.delete(name)


def repair_splits(store: Store, made: Manifest) -> None:
    """Write the `splits.json` of version 1 if missing after an interrupted preparation."""
    if made.version == 1 and not _has_splits(store, made) and not _has_next(store, made):
        publish_version(store, made)


def check_splits(store: Store) -> None:
    """Check that `splits.json` belongs to a version of the data set.

    Raises:
        DataError: if `splits.json` was edited or is missing.
    """
    newest = manifests.read_manifest(store)
    names = store.names(manifests.VERSIONS)
    versions = [newest, *(manifests.read_manifest(store, name) for name in names)]
    recorded = [version.files.get(splits.SPLITS_FILE) for version in versions]
    # Manifests of earlier programs record no splits file to compare with.
    if None not in recorded and _read_splits_file(store) not in recorded:
        raise DataError(
            f"{store.uri}/{splits.SPLITS_FILE} is not the file written with the data set; run the "
            "same `mtil prepare` again to restore the file, and keep edited splits elsewhere."
        )


def _has_next(store: Store, made: Manifest) -> bool:
    return store.exists(manifests.version_name(made.version + 1))


def _has_splits(store: Store, made: Manifest) -> bool:
    """Return whether `splits.json` is the file recorded in the manifest.

    Also return True for a manifest of an earlier program, which records no splits file.
    """
    recorded = made.files.get(splits.SPLITS_FILE)
    return recorded is None or _read_splits_file(store) == recorded


def _read_splits_file(store: Store) -> FileDigest | None:
    try:
        return manifests.describe_file(store.read(splits.SPLITS_FILE))
    except NotFoundError:
        return None


def _read_places(store: Store, made: Manifest) -> dict[str, SamplePlace]:
    """Read the places of the kept images of a version, by sample id."""
    images = audits.read_audit_table(store, made, audits.IMAGES_FILE)
    columns = (images.column(name).to_pylist() for name in ("sample_id", "group", "fold", "part"))
    return {
        name: SamplePlace(group, fold, part)
        for name, group, fold, part in zip(*columns, strict=True)
        if fold is not None
    }


def _delete_leftovers(store: Store, made: Manifest) -> None:
    """Delete files of attempts at versions up to the newest, except the files of the versions."""
    versions = [
        made,
        *(manifests.read_manifest(store, name) for name in store.names(manifests.VERSIONS)),
    ]
    used_names = {
        name
        for version in versions
        for name in (
            *(shard.path for shard in version.shards),
            *version.facts,
            *(f"{version.audit}/{file}" for file in (audits.PAIRS_FILE, audits.IMAGES_FILE)),
        )
    }
    # Keep files of attempts at later versions: the attempt may still be running.
    for folder, pattern in _ATTEMPT_FILES.items():
        for name in store.deletable(folder).sizes:
            match = pattern.fullmatch(name)
            if match and int(match["version"] or 1) <= made.version and name not in used_names:
                store.delete(name)
