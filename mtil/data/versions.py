"""Versions of a data set, each as immutable as the first.

A version counts once `versions/000002.json` and the like exists, which only one writer can create;
`dataset.json` follows. Whoever finds it behind brings it up to date.
"""

import re

from mtil.data import audit as audits
from mtil.data import manifest as manifests
from mtil.data import splits, staging
from mtil.data.folds import Assignment
from mtil.data.manifest import FILE_NAME, Manifest
from mtil.errors import DataError
from mtil.storage import Store

_TAG = re.compile(r"([0-9]{6})-[0-9a-f]{16}")


def newest(store: Store) -> Manifest:
    """Return the newest version, and have `dataset.json` say so and nothing else be left.

    Raises:
        DataError: if there is no data set.
    """
    return _publish(store, manifests.load(store))


def commit(store: Store, before: Manifest, made: Manifest) -> None:
    """Make a version the newest.

    Args:
        store: the data set's.
        before: the version that it continues.
        made: the version.

    Raises:
        DataError: if another has continued that version meanwhile.
    """
    store.create(manifests.version_name(before.version), store.read(FILE_NAME))
    name, data = manifests.version_name(made.version), manifests.to_json(made)
    if not store.create(name, data) and store.read(name) != data:
        raise DataError(
            f"Other images were appended to {store.uri} meanwhile; run the same command again."
        )
    _publish(store, before)


def tag(version: int, key: str) -> str:
    """Return what an attempt at a version calls its files."""
    return f"{version:06d}-{key}"


def _has_next(store: Store, made: Manifest) -> bool:
    return store.exists(manifests.version_name(made.version + 1))


def _publish(store: Store, made: Manifest) -> Manifest:
    """Have `splits.json` and `dataset.json` say what the newest version says, and return it."""
    while _has_next(store, made):  # also one that came while this one was published
        while _has_next(store, made):
            made = manifests.read(store, manifests.version_name(made.version + 1))
        images = audits.read(store, made.audit, audits.IMAGES).to_pylist()
        kept = [row for row in images if row["fold"] is not None]
        place = {row["sample_id"]: (row["fold"], row["part"]) for row in kept}
        group = {row["sample_id"]: row["group"] for row in kept}
        assignment = Assignment(made.fold_rule, made.num_folds, made.num_parts, place)
        store.write(splits.FILE_NAME, splits.to_json(assignment, group))
        store.write(FILE_NAME, manifests.to_json(made))
    _sweep(store, made)
    return made


def _sweep(store: Store, made: Manifest) -> None:
    """Delete what attempts have left that came to nothing and cannot any more."""
    versions = [manifests.read(store, name) for name in store.names(manifests.VERSIONS)]
    counts = {version.audit.rpartition("/")[2] for version in versions}
    for folder in (staging.FOLDER, "shards", "audit"):
        for name in store.names(folder):
            found = _TAG.search(name)
            if found is None or int(found[1]) > made.version:
                continue
            if folder == staging.FOLDER or found[0] not in counts:
                store.delete(name)
