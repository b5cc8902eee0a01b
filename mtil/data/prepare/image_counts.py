"""Counts of a data set's images by fold and class, and the fingerprint of the images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from mtil.data.dataset.shards import HOLDOUT, LABELS
from mtil.data.folds.assign import SamplePlace
from mtil.data.layouts.record import Record
from mtil.data.prepare import staging


@dataclass(frozen=True)
class ImageCounts:
    """Numbers of groups and of images, by class; see the fields of `Manifest`."""

    num_groups: int
    kept: dict[str, int]
    folds: dict[str, dict[str, int]]
    holdout: dict[str, int]


def count_kept_images(
    kept: Iterable[Record], places: Mapping[str, SamplePlace], num_folds: int, *, whole_groups: bool
) -> ImageCounts:
    """Count the kept images by fold and class.

    Args:
        kept: records of the kept images.
        places: group, fold and part, by sample id.
        num_folds: number of folds.
        whole_groups: whether every group must lie in a single fold.

    Raises:
        AssertionError: if `whole_groups` and a group lies in two folds.
    """
    folds = {str(fold): dict.fromkeys(LABELS, 0) for fold in range(num_folds)}
    holdout = dict.fromkeys(LABELS, 0)
    fold_of: dict[str, int] = {}
    for record in kept:
        place = places[record.sample_id]
        counts = holdout if place.fold == HOLDOUT else folds[str(place.fold)]
        counts[LABELS[record.label]] += 1
        group_fold = fold_of.setdefault(place.group, place.fold)
        assert group_fold == place.fold or not whole_groups, "a group in two folds"
    return ImageCounts(
        num_groups=len(fold_of),
        kept={name: holdout[name] + sum(fold[name] for fold in folds.values()) for name in LABELS},
        folds=folds,
        holdout=holdout,
    )


def compute_fingerprint(facts: pa.Table, places: Mapping[str, SamplePlace], image_size: int) -> str:
    """Return the fingerprint of all placed images.

    Args:
        facts: facts of all images.
        places: group, fold and part, by sample id.
        image_size: side of the stored images in pixels.
    """
    table = facts.select(["sample_id", "sha256", "mask_sha256", "label"])
    return staging.combine_row_digests(
        staging.digest_row(row, places[row["sample_id"]], image_size)
        for batch in table.to_batches()
        for row in batch.to_pylist()
        if row["sample_id"] in places
    )
