"""What the images of a data set come to: counts by fold and class, and the fingerprint."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from mtil.data.dataset.shards import HOLDOUT, LABELS
from mtil.data.folds.assign import Place
from mtil.data.layouts.record import Record
from mtil.data.prepare import staging


@dataclass(frozen=True)
class Tally:
    """How many images there are where, by class; see `Manifest`."""

    num_groups: int
    kept: dict[str, int]
    folds: dict[str, dict[str, int]]
    holdout: dict[str, int]


def count(
    kept: Iterable[Record], places: Mapping[str, Place], num_folds: int, *, whole_groups: bool
) -> Tally:
    """Count the images that are kept.

    Args:
        kept: the images.
        places: where each belongs, by sample id.
        num_folds: how many folds there are.
        whole_groups: whether a group lies in one fold.
    """
    folds = {str(fold): dict.fromkeys(LABELS, 0) for fold in range(num_folds)}
    holdout = dict.fromkeys(LABELS, 0)
    fold_of: dict[str, int] = {}
    for record in kept:
        place = places[record.sample_id]
        counts = holdout if place.fold == HOLDOUT else folds[str(place.fold)]
        counts[LABELS[record.label]] += 1
        before = fold_of.setdefault(place.group, place.fold)
        assert before == place.fold or not whole_groups, "a group in two folds"
    return Tally(
        num_groups=len(fold_of),
        kept={name: holdout[name] + sum(fold[name] for fold in folds.values()) for name in LABELS},
        folds=folds,
        holdout=holdout,
    )


def fingerprint(facts: pa.Table, places: Mapping[str, Place], image_size: int) -> str:
    """Return the fingerprint of the images that have a place.

    Args:
        facts: what was noted of every image.
        places: by sample id.
        image_size: side of the stored images.
    """
    table = facts.select(["sample_id", "sha256", "mask_sha256", "label"])
    return staging.fingerprint(
        staging.digest(row, places[row["sample_id"]], image_size)
        for batch in table.to_batches()
        for row in batch.to_pylist()
        if row["sample_id"] in places
    )
