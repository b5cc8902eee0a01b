"""A collection to a data set: groups and folds first, then shards of pixels, the manifest last."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from mtil.data import folds as fold_rules
from mtil.data import groups as group_rules
from mtil.data import manifest as manifests
from mtil.data.layouts import Record, busi, scan, table
from mtil.data.manifest import FILE_NAME, Dropped, Manifest
from mtil.data.samples import Place, read_all
from mtil.data.shards import LABELS
from mtil.data.writer import ShardWriter, fingerprint
from mtil.errors import DataError
from mtil.storage import Store, open_store

MAX_SHARD_BYTES = 64 * 2**20
SIZE_STEP = 32
MAX_IMAGE_SIZE = 2048
SETTINGS = ("image_size", "fold_rule", "num_folds", "num_parts", "seed", "num_groups", "kept")
"""What must agree, beside the fingerprint, for a target to hold the same data."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Plan:
    """All that is decided before a pixel is read."""

    name: str
    licence: str
    citation: str
    read: int
    records: list[Record]
    places: dict[str, Place]
    assignment: fold_rules.Assignment
    dropped: tuple[Dropped, ...]


def prepare(
    source: str,
    to: str,
    *,
    layout: str,
    groups: str | None = None,
    image_size: int = 256,
    num_folds: int = 5,
    seed: int = 0,
    name: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> Manifest:
    """Write a collection as a data set and return its manifest.

    A target that already holds the same data is left alone, and its manifest returned. When
    anything goes wrong, everything that was written is deleted again.

    Args:
        source: a folder, a table, or an `s3://` URI of either.
        to: where the data set goes, a folder or an `s3://` URI.
        layout: how the source is laid out, one of `mtil.data.layouts.LAYOUTS`.
        groups: a CSV file with the images' published groups.
        image_size: side of the stored images.
        num_folds: how many folds to make, unless the source gives them.
        seed: the folds' seed.
        name: what to call the data set; the collection's name if none is given.
        max_shard_bytes: about how large a shard may get.
        progress: called with the images done and their number.

    Raises:
        DataError: if the source is wrong or the target holds something else.
    """
    _check_settings(image_size, num_folds, seed)
    target = open_store(to)
    existing = _existing(target)
    collection, records = scan(source, layout)
    plan = _plan(source, layout, list(records), groups, num_folds, seed, name)
    draft = _draft(plan, image_size, seed)
    if existing is not None:
        _refuse_other(target, existing, draft, SETTINGS)
    writer = ShardWriter(None if existing else target, image_size, max_shard_bytes)
    try:
        digests = []
        places = [plan.places[record.sample_id] for record in plan.records]
        for sample in read_all(collection, plan.records, places, image_size):
            writer.add(sample)
            digests.append(sample.digest())
            if progress is not None:
                progress(len(digests), len(plan.records))
        made = replace(draft, shards=writer.close(), fingerprint=fingerprint(digests))
        if existing is not None:
            _refuse_other(target, existing, made, ("fingerprint",))
            return _whole(target, existing)
        _commit(target, made)
    except BaseException:
        writer.undo()
        raise
    return made


def _check_settings(image_size: int, num_folds: int, seed: int) -> None:
    if image_size % SIZE_STEP or not SIZE_STEP <= image_size <= MAX_IMAGE_SIZE:
        raise DataError(
            f"The image size must be a multiple of {SIZE_STEP} from {SIZE_STEP} to "
            f"{MAX_IMAGE_SIZE}, but got {image_size}."
        )
    if not 2 <= num_folds <= fold_rules.MAX_FOLDS:
        raise DataError(
            f"There must be 2 to {fold_rules.MAX_FOLDS} folds, but num_folds is {num_folds}."
        )
    if seed < 0:
        raise DataError(f"A seed must not be negative, but got {seed}.")


def _existing(target: Store) -> Manifest | None:
    if target.exists(FILE_NAME):
        return manifests.load(target)
    others = target.names()
    if others:
        raise DataError(
            f"A target must be empty, but {target.uri} holds {len(others)} files and no "
            f"{FILE_NAME}, such as {others[0]}; empty it or choose another."
        )
    return None


def _plan(
    source: str,
    layout: str,
    records: list[Record],
    groups: str | None,
    num_folds: int,
    seed: int,
    name: str | None,
) -> _Plan:
    published = None if groups is None else group_rules.read_file(groups, records)
    grouping = group_rules.group(records, published)
    kept = [record for record in records if record.sample_id in grouping.group]
    assignment = fold_rules.assign(kept, grouping.group, num_folds=num_folds, seed=seed)
    places = {
        sample_id: Place(grouping.group[sample_id], fold, part)
        for sample_id, (fold, part) in assignment.place.items()
    }
    described = busi if layout == "busi" else table
    if name is None:
        stem = PurePosixPath(re.sub(r"^\w+://", "", source)).stem
        name = busi.NAME if layout == "busi" else stem
    return _Plan(
        name=name,
        licence=described.LICENCE,
        citation=described.CITATION,
        read=len(records),
        records=kept,
        places=places,
        assignment=assignment,
        dropped=grouping.dropped,
    )


def _draft(plan: _Plan, image_size: int, seed: int) -> Manifest:
    """Return the manifest without what the pixels will tell."""
    assignment = plan.assignment
    folds = {str(fold): dict.fromkeys(LABELS, 0) for fold in range(assignment.num_folds)}
    for record in plan.records:
        folds[str(plan.places[record.sample_id].fold)][LABELS[record.label]] += 1
    fold_of: dict[str, int] = {}
    for place in plan.places.values():
        assert fold_of.setdefault(place.group, place.fold) == place.fold, "a group in two folds"
    return Manifest(
        name=plan.name,
        licence=plan.licence,
        citation=plan.citation,
        image_size=image_size,
        fold_rule=assignment.rule,
        num_folds=assignment.num_folds,
        num_parts=assignment.num_parts,
        seed=seed,
        num_groups=len(fold_of),
        read=plan.read,
        kept={name: sum(fold[name] for fold in folds.values()) for name in LABELS},
        folds=folds,
        dropped=plan.dropped,
        shards=(),
        fingerprint="",
    )


def _refuse_other(
    target: Store, existing: Manifest, made: Manifest, settings: tuple[str, ...]
) -> None:
    for setting in settings:
        old, new = getattr(existing, setting), getattr(made, setting)
        if old != new:
            raise DataError(
                f"A target must be empty or hold the same data, but {target.uri} holds a data set "
                f"whose {setting} is {str(old)[:60]} where this one's is {str(new)[:60]}; "
                "choose another target."
            )


def _whole(target: Store, existing: Manifest) -> Manifest:
    for shard in existing.shards:
        if not target.exists(shard.path):
            raise DataError(
                f"The data set at {target.uri} has lost {shard.path}; "
                "delete it and prepare it again."
            )
    return existing


def _commit(target: Store, made: Manifest) -> None:
    data = manifests.to_json(made)
    if not target.create(FILE_NAME, data) and target.read(FILE_NAME) != data:
        raise DataError(
            f"Another data set was written to {target.uri} meanwhile; choose another target."
        )
