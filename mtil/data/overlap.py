"""Images that two data sets share: equal pixels, or near-copies."""

from collections.abc import Collection, Iterator

import numpy as np
import pyarrow as pa

from mtil.data.audit.duplicates import NUM_HASHES, THUMB_SIDE, DiskArray, find_near_copies
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import pixels, read_shard
from mtil.data.prepare import staging
from mtil.storage import Store

_FACT_COLUMNS = ("sample_id", "sha256", "hashes", "thumb")


def list_images(store: Store, manifest: Manifest, *, outside: int | None = None) -> dict[str, int]:
    """Return the fold of every image of a data set, by sample id.

    Args:
        store: store of the data set.
        manifest: the version.
        outside: leave out the images of this fold.

    Raises:
        DataError: if a shard is missing or damaged.
    """
    fold_of: dict[str, int] = {}
    for shard in manifest.shards:
        rows = read_shard(store, shard, ("sample_id", "fold"))
        fold_of |= dict(zip(rows["sample_id"].to_pylist(), rows["fold"].to_pylist(), strict=True))
    return {name: fold for name, fold in fold_of.items() if fold != outside}


def find_shared_images(
    first: tuple[Store, Manifest, Collection[str]],
    second: tuple[Store, Manifest, Collection[str]],
) -> list[tuple[str, str]]:
    """Return pairs of images of two data sets that show the same.

    Pixels are compared by sha256. Near-copies are found if both data sets have the facts of their
    audits, which `mtil prepare` writes. An image of `second` with several partners is named once.

    Args:
        first: store, version and sample ids of the images to compare.
        second: the other data set's.

    Returns:
        pairs of sample ids, sorted by the second.

    Raises:
        DataError: if shards or facts are missing or damaged.
    """
    pairs = _find_equal_images(first, second)
    if first[1].facts and second[1].facts:
        pairs = _find_near_copies(first, second) | pairs
    return [(one, other) for other, one in sorted(pairs.items())]


def _find_equal_images(
    first: tuple[Store, Manifest, Collection[str]],
    second: tuple[Store, Manifest, Collection[str]],
) -> dict[str, str]:
    """Return the image of `first` with equal pixels, by sample id of `second`."""
    name_of: dict[bytes, str] = {}
    for name, digest in _digests(*first):
        name_of.setdefault(digest, name)
    return {name: name_of[digest] for name, digest in _digests(*second) if digest in name_of}


def _digests(
    store: Store, manifest: Manifest, wanted: Collection[str]
) -> Iterator[tuple[str, bytes]]:
    for shard in manifest.shards:
        rows = read_shard(store, shard, ("sample_id", "sha256"))
        for name, digest in zip(
            rows["sample_id"].to_pylist(), rows["sha256"].to_pylist(), strict=True
        ):
            if name in wanted:
                yield name, digest


def _find_near_copies(
    first: tuple[Store, Manifest, Collection[str]],
    second: tuple[Store, Manifest, Collection[str]],
) -> dict[str, str]:
    """Return a near-copy in `first`, by sample id of `second`."""
    names: list[str] = []
    contents: list[np.ndarray] = []
    counts: list[int] = []
    with (
        DiskArray((NUM_HASHES,), np.uint64) as hashes,
        DiskArray((THUMB_SIDE, THUMB_SIDE), np.uint8) as thumbs,
    ):
        for store, manifest, wanted in (first, second):
            for facts in _read_facts(store, manifest, wanted):
                hashes.append(pixels(facts.column("hashes")).view(np.uint64))
                thumbs.append(pixels(facts.column("thumb")).reshape(-1, THUMB_SIDE, THUMB_SIDE))
                contents.append(pixels(facts.column("sha256")))
                names += facts["sample_id"].to_pylist()
            counts.append(len(names))
        if not 0 < counts[0] < counts[1]:
            return {}
        found = find_near_copies(hashes, thumbs, counts[0], np.concatenate(contents))
    return {names[pair.j]: names[pair.i] for pair in found if pair.i < counts[0]}


def _read_facts(store: Store, manifest: Manifest, wanted: Collection[str]) -> Iterator[pa.Table]:
    for name in manifest.facts:
        facts = staging.read_kept_facts(store, name, manifest.files)
        chosen = [
            index for index, own in enumerate(facts["sample_id"].to_pylist()) if own in wanted
        ]
        if chosen:
            yield facts.select(_FACT_COLUMNS).take(pa.array(chosen))
