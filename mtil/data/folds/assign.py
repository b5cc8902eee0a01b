"""Assign whole groups to folds and inner parts, stratified by class and reproducible by seed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtil.data.dataset.manifest import MAX_FOLDS as MAX_FOLDS
from mtil.data.dataset.manifest import DroppedImage
from mtil.data.dataset.shards import HOLDOUT, LABELS
from mtil.data.folds.balance import TUMOURS as TUMOURS
from mtil.data.folds.balance import (
    GroupCounts,
    StratumCount,
    balance_folds,
    balance_parts,
    count_groups,
    count_strata,
)
from mtil.data.layouts.record import Record
from mtil.errors import DataError

NUM_PARTS = 8
"""Inner parts of a fold; small collections get fewer."""
NOT_IN_PAPER_PROTOCOL = "the paper protocol is about tumour images"
GIVEN_RULE = "given"
"""Name of the rule for folds given by the sources."""
_HOLDOUT = 2
"""Stream of random numbers of the holdout; `balance` uses the streams 0 and 1."""
_BY_SIZE = "class and size"


# The field names are columns of the shards (`mtil.data.prepare.staging`).
@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Group, fold and inner part of an image."""

    group: str
    fold: int
    part: int


@dataclass(frozen=True)
class FoldAssignment:
    """Fold and inner part of every image."""

    rule: str
    """`grouped stratified`, `given` by the collection, `image-level` or `splits file`."""
    num_folds: int
    num_parts: int
    place: Mapping[str, tuple[int, int]]
    """Fold and inner part by sample id."""


def assign_folds(
    records: Sequence[Record],
    group: Mapping[str, str],
    area: Mapping[str, float] | None = None,
    *,
    num_folds: int,
    seed: int,
    holdout: Collection[str] = (),
    rule: str = "grouped stratified",
    dropped: Sequence[DroppedImage] = (),
) -> FoldAssignment:
    """Assign a fold and an inner part to every image, keeping groups whole.

    Folds given by the collection are used unchanged. Uses `NUM_PARTS` inner parts, or fewer if
    necessary for both tumour classes in every training and validation set.

    Args:
        records: the kept images.
        group: group by sample id.
        area: lesion area as a share of the image by sample id, to stratify by lesion size too.
        num_folds: number of folds, unless the collection gives folds.
        seed: seed of the assignment.
        holdout: groups reserved for a final test.
        rule: name of the rule, unless the collection gives folds.
        dropped: images not kept, named in the error about too few groups.

    Raises:
        DataError: if a class has too few groups, or a group lies in two given folds.
    """
    holdout_groups = frozenset(holdout)
    held_out = [record for record in records if group[record.sample_id] in holdout_groups]
    records = [record for record in records if group[record.sample_id] not in holdout_groups]
    groups = count_groups(records, group, area)
    has_given_folds = any(record.fold is not None for record in records)
    if has_given_folds:
        rule = GIVEN_RULE
        fold = _collect_given_folds(records, group)
        num_folds = max(fold.values()) + 1
    else:
        _check_num_groups(groups, num_folds, dropped)
        fold = balance_folds(groups, num_folds, seed)
    _check_folds(groups, fold, num_folds)
    # Fold k is validated on the rows of the other folds with part k modulo the number of parts.
    # Small parts of a small collection may lack a class: try ever fewer parts.
    for num_parts in range(NUM_PARTS, 1, -1):
        part = balance_parts(groups, fold, num_folds, num_parts, seed)
        if _is_usable(groups, fold, part, num_folds, num_parts):
            break
    else:
        raise DataError(
            "Every fold must leave both tumour classes for training and for inner validation, "
            f"but {len(groups)} groups in {num_folds} folds do not; add images or use fewer folds."
        )
    place = {
        record.sample_id: (fold[group[record.sample_id]], part[group[record.sample_id]])
        for record in records
    }
    place |= {record.sample_id: (HOLDOUT, 0) for record in held_out}
    return FoldAssignment(rule=rule, num_folds=num_folds, num_parts=num_parts, place=place)


def check_assignment(
    records: Sequence[Record], group: Mapping[str, str], given: FoldAssignment
) -> None:
    """Check the assignment of a splits file for use in training.

    Args:
        records: the kept images.
        group: group by sample id; every group lies in one fold and one part.
        given: fold and part of every image.

    Raises:
        DataError: if a fold lacks a tumour class, or leaves no images of a tumour class for
            training or for inner validation.
    """
    records = [record for record in records if given.place[record.sample_id][0] != HOLDOUT]
    groups = count_groups(records, group, None)
    fold = {group[record.sample_id]: given.place[record.sample_id][0] for record in records}
    part = {group[record.sample_id]: given.place[record.sample_id][1] for record in records}
    _check_folds(groups, fold, given.num_folds)
    if not _is_usable(groups, fold, part, given.num_folds, given.num_parts):
        raise DataError(
            "Every fold must leave both tumour classes for training and for inner validation, but "
            f"the {given.num_parts} given parts do not; spread both classes over the parts."
        )


def name_fold_rule(*, grouped: bool, by_size: bool) -> str:
    """Return the name of the rule for new folds."""
    kind = "grouped" if grouped else "image-level"
    return f"{kind} stratified by {_BY_SIZE}" if by_size else f"{kind} stratified"


def is_stratified_by_size(rule: str) -> bool:
    """Return whether a rule stratifies by lesion size."""
    return rule.endswith(_BY_SIZE)


def extend_assignment(
    before: Sequence[Record],
    added: Sequence[Record],
    group: Mapping[str, str],
    area: Mapping[str, float] | None = None,
    *,
    placed: Mapping[str, tuple[int, int]],
    num_folds: int,
    num_parts: int,
    seed: int,
) -> dict[str, tuple[int, int]]:
    """Assign a fold and an inner part to every added image; existing images do not move.

    An added image of an existing group joins the group's fold and part. New groups are balanced
    together with the existing groups.

    Args:
        before: the existing images.
        added: the added images.
        group: group by sample id, for existing and added images.
        area: lesion area as a share of the image by sample id, to stratify by lesion size too.
        placed: fold and part by existing group.
        num_folds: number of existing folds.
        num_parts: number of inner parts of a fold.
        seed: seed of the assignment.

    Returns:
        Fold and inner part by sample id of the added images.

    Raises:
        DataError: if an added image has a given fold outside the data set, or different
            from the group's fold.
    """
    fold = {name: place[0] for name, place in placed.items()}
    part = {name: place[1] for name, place in placed.items()}
    for record in added:
        if record.fold is None:
            continue
        if record.fold >= num_folds:
            raise DataError(
                f"A given fold must be one of the data set's, 0 to {num_folds - 1}, but "
                f"{record.sample_id!r} is given {str(record.fold)[:12]}; correct the table's folds."
            )
        group_fold = fold.setdefault(group[record.sample_id], record.fold)
        if group_fold != record.fold:
            where = "the holdout" if group_fold == HOLDOUT else f"fold {group_fold}"
            raise DataError(
                f"A group must lie in one fold, but the group of {record.sample_id!r} lies in "
                f"{where} and the image is given fold {record.fold}; correct the table's folds."
            )
    # Images of the holdout must not count in the balance of the folds.
    records = [r for r in (*before, *added) if fold.get(group[r.sample_id]) != HOLDOUT]
    groups = count_groups(records, group, area)
    fold |= balance_folds(groups, num_folds, seed, fold)
    part |= balance_parts(groups, fold, num_folds, num_parts, seed, part)
    return {
        record.sample_id: (fold[group[record.sample_id]], part[group[record.sample_id]])
        for record in added
    }


def choose_holdout(
    records: Sequence[Record],
    group: Mapping[str, str],
    area: Mapping[str, float] | None = None,
    *,
    share: float,
    seed: int,
) -> set[str]:
    """Choose groups for a final test set, about an equal share of every stratum.

    Args:
        records: the kept images.
        group: group by sample id.
        area: lesion area as a share of the image by sample id, to stratify by lesion size too.
        share: share of the images to hold out, between 0 and 1, both excluded.
        seed: seed of the choice.

    Returns:
        Names of the chosen groups.

    Raises:
        DataError: if the share is not between 0 and 1, or holds no group.
    """
    if not 0 < share < 1:
        raise DataError(f"A holdout must be a share between 0 and 1, or a file, but got {share}.")
    rng = np.random.default_rng((seed, _HOLDOUT))
    groups = count_groups(records, group, area)
    total = count_strata(groups)
    taken = Counter[tuple[int, int]]()
    chosen = set()

    def excess(kind: StratumCount) -> float:
        """Return the weighted excess over the share if half of the images were taken."""
        # With half of the size, a group of one class is taken if the result is nearer to the share
        # with the group than without.
        key = kind.label, kind.tercile
        num_over = taken[key] + kind.size / 2 - share * total[key]
        return num_over * kind.size / total[key] ** 2

    for index in rng.permutation(len(groups)):
        candidate = groups[index]
        if sum(excess(kind) for kind in candidate.kinds) <= 0:
            for kind in candidate.kinds:
                taken[kind.label, kind.tercile] += kind.size
            chosen.add(candidate.name)
    if not chosen:
        raise DataError(
            f"A holdout must hold images, but a share of {share:g} of {len(records)} images in "
            f"{len(groups)} groups holds none; give a larger share."
        )
    return chosen


def _collect_given_folds(records: Sequence[Record], group: Mapping[str, str]) -> dict[str, int]:
    """Return the given fold by group.

    Raises:
        DataError: if a group has two folds, or fold numbers have a gap or are too few or many.
    """
    fold: dict[str, int] = {}
    for record in records:
        assert record.fold is not None  # the table gives every fold or no fold
        name = group[record.sample_id]
        if fold.setdefault(name, record.fold) != record.fold:
            raise DataError(
                f"A group must lie in one fold, but the group of {record.sample_id!r} lies in "
                f"the folds {fold[name]} and {record.fold}; correct the table's folds."
            )
    used = sorted(set(fold.values()))
    if used != list(range(len(used))) or not 2 <= len(used) <= MAX_FOLDS:
        raise DataError(
            f"Given folds must be 2 to {MAX_FOLDS} folds numbered 0, 1, … without a gap, but the "
            f"table gives {', '.join(str(number) for number in used[:12])}."
        )
    return fold


def _check_num_groups(
    groups: Sequence[GroupCounts], num_folds: int, dropped: Sequence[DroppedImage]
) -> None:
    for label in TUMOURS:
        num_groups = sum(kind.label == label for group in groups for kind in group.kinds)
        if num_groups < num_folds:
            # Too many dropped images may be the reason; name an example.
            drops = f"; {len(dropped)} images were dropped, such as " if dropped else ""
            example = f"{dropped[0].sample_id!r}: {dropped[0].why}" if dropped else ""
            raise DataError(
                f"Every fold must hold {LABELS[label]} images, but {num_groups} groups with such "
                f"images are too few for {num_folds} folds; add images or use fewer "
                f"folds{drops}{example}."
            )


def _check_folds(groups: Sequence[GroupCounts], fold: Mapping[str, int], num_folds: int) -> None:
    present = {(fold[group.name], kind.label) for group in groups for kind in group.kinds}
    for fold_index in range(num_folds):
        for label in TUMOURS:
            if (fold_index, label) not in present:
                raise DataError(
                    f"Every fold must hold {LABELS[label]} images, but fold {fold_index} has none; "
                    "correct the folds or use fewer."
                )


def _is_usable(
    groups: Sequence[GroupCounts],
    fold: Mapping[str, int],
    part: Mapping[str, int],
    num_folds: int,
    num_parts: int,
) -> bool:
    """Return whether every fold has both tumour classes in training and in inner validation."""
    cells = {
        (fold[group.name], part[group.name], kind.label) for group in groups for kind in group.kinds
    }
    for fold_index in range(num_folds):
        for label in TUMOURS:
            parts = {
                cell_part
                for cell_fold, cell_part, cell_label in cells
                if cell_fold != fold_index and cell_label == label
            }
            # One part validates; a second part must be left for training.
            if fold_index % num_parts not in parts or len(parts) < 2:
                return False
    return True
