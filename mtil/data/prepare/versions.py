"""Versions of a data set, each as immutable as the first.

A version counts once `versions/000002.json` and the like exists, which only one writer can create;
`dataset.json` follows. Whoever finds it behind brings it up to date.
"""

import re
from collections.abc import Mapping

from mtil.data.audit import findings as audits
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.manifest import FILE_NAME, File, Manifest
from mtil.data.folds import splits
from mtil.data.folds.assign import Assignment, Place
from mtil.data.prepare import staging
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

_TAG = r"(?P<version>[0-9]{6})-[0-9a-f]{16}"
STAGED = re.compile(rf"(?:(?:new|known)/)?(?:{staging.OWN_FILE})")
"""The files in the folder in which an attempt stages."""
_WRITTEN = {
    staging.FOLDER: re.compile(rf"{staging.FOLDER}/(?:{_TAG}|[0-9a-f]{{16}})/{STAGED.pattern}"),
    "shards": re.compile(rf"shards/part-\d{{5,}}(?:-{_TAG})?\.parquet"),
    "audit": re.compile(
        rf"audit/(?:{_TAG}/)?"
        rf"(?:facts-\d{{5,}}\.parquet|{re.escape(audits.PAIRS)}|{re.escape(audits.IMAGES)})"
    ),
}
"""The names that attempts give to files, by folder."""


def newest(store: Store) -> Manifest:
    """Return the newest version, and have `dataset.json` say so and nothing else be left.

    Raises:
        DataError: if there is no data set.
    """
    return publish(store, manifests.load(store))


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
    publish(store, before)


def tag(version: int, key: str) -> str:
    """Return what an attempt at a version calls its files."""
    return f"{version:06d}-{key}"


def splits_text(made: Manifest, places: Mapping[str, Place]) -> bytes:
    """Return the text of a version's `splits.json`.

    Args:
        made: the version.
        places: by sample id of the images that it keeps.
    """
    where = {name: (place.fold, place.part) for name, place in places.items()}
    assignment = Assignment(made.fold_rule, made.num_folds, made.num_parts, where)
    return splits.to_json(assignment, {name: place.group for name, place in places.items()})


def publish(store: Store, made: Manifest) -> Manifest:
    """Have `splits.json` and `dataset.json` say what the newest version says, and return it.

    Args:
        store: the data set's.
        made: the newest version that is known.
    """
    first = made.version
    is_done = False
    while not is_done or _has_next(store, made):  # also one that came while this was published
        while _has_next(store, made):
            made = manifests.read(store, manifests.version_name(made.version + 1))
        if made.version > first or not _has_splits(store, made):
            store.write(splits.FILE_NAME, splits_text(made, _places(store, made)))
        if made.version > first:
            store.write(FILE_NAME, manifests.to_json(made))
        is_done = True
    _sweep(store, made)
    return made


def withdraw(store: Store, tag: str) -> None:
    """Delete the shards and the audit of an attempt that came to nothing."""
    for folder in ("shards", "audit"):
        for name in store.deletable(folder).sizes:
            if tag in name and _WRITTEN[folder].fullmatch(name):
                store.delete(name)


def repair(store: Store, made: Manifest) -> None:
    """Write the `splits.json` of the first version if an interrupted preparation has not."""
    if made.version == 1 and not _has_splits(store, made) and not _has_next(store, made):
        publish(store, made)


def check_splits(store: Store) -> None:
    """Make sure that a data set's `splits.json` is that of one of its versions.

    Raises:
        DataError: if it is not.
    """
    newest = manifests.read(store)
    names = store.names(manifests.VERSIONS)
    versions = [newest, *(manifests.read(store, name) for name in names)]
    said = [one.files.get(splits.FILE_NAME) for one in versions]
    if None not in said and _splits(store) not in said:
        raise DataError(
            f"{store.uri}/{splits.FILE_NAME} is not the one that was written with the data set; "
            "run the same `mtil prepare` again to write it anew, and keep edited splits elsewhere."
        )


def _has_next(store: Store, made: Manifest) -> bool:
    return store.exists(manifests.version_name(made.version + 1))


def _has_splits(store: Store, made: Manifest) -> bool:
    """Say whether `splits.json` is as a version says; an earlier program's says nothing."""
    said = made.files.get(splits.FILE_NAME)
    return said is None or _splits(store) == said


def _splits(store: Store) -> File | None:
    try:
        return manifests.file_of(store.read(splits.FILE_NAME))
    except NotFoundError:
        return None


def _places(store: Store, made: Manifest) -> dict[str, Place]:
    """Read where the images that a version keeps belong."""
    images = audits.read(store, made, audits.IMAGES)
    columns = (images.column(name).to_pylist() for name in ("sample_id", "group", "fold", "part"))
    return {
        name: Place(group, fold, part)
        for name, group, fold, part in zip(*columns, strict=True)
        if fold is not None
    }


def _sweep(store: Store, made: Manifest) -> None:
    """Delete what attempts have left that came to nothing and cannot any more.

    Only names that an attempt writes are looked at.
    """
    versions = [made, *(manifests.read(store, name) for name in store.names(manifests.VERSIONS))]
    counts = {
        name
        for one in versions
        for name in (
            *(shard.path for shard in one.shards),
            *one.facts,
            *(f"{one.audit}/{file}" for file in (audits.PAIRS, audits.IMAGES)),
        )
    }
    for folder, pattern in _WRITTEN.items():
        for name in store.deletable(folder).sizes:
            found = pattern.fullmatch(name)
            if found and int(found["version"] or 1) <= made.version and name not in counts:
                store.delete(name)
