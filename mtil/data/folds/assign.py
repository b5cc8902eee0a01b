"""Folds that cannot leak: whole groups, every class spread evenly, the same for the same seed."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtil.data.dataset.manifest import MAX_FOLDS as MAX_FOLDS
from mtil.data.dataset.manifest import Dropped
from mtil.data.dataset.shards import HOLDOUT, LABELS
from mtil.data.folds.balance import TUMOURS as TUMOURS
from mtil.data.folds.balance import (
    Group,
    Kind,
    deal_folds,
    deal_parts,
    in_groups,
    totals,
)
from mtil.data.layouts.record import Record
from mtil.errors import DataError

NUM_PARTS = 8
"""Inner parts of a fold; a small collection gets fewer."""
NOT_IN_PAPER = "the paper protocol is about tumour images"
GIVEN = "given"
"""The rule of folds that the sources give."""
_HOLDOUT = 2
"""Its stream of random numbers, beside those of dealing."""
_BY_SIZE = "class and size"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image belongs."""

    group: str
    fold: int
    part: int


@dataclass(frozen=True)
class Assignment:
    """Where every image belongs."""

    rule: str
    """`grouped stratified`, `given` by the collection, `image-level` or `splits file`."""
    num_folds: int
    num_parts: int
    place: Mapping[str, tuple[int, int]]
    """Fold and inner part by sample id."""


def assign(
    records: Sequence[Record],
    group: Mapping[str, str],
    area: Mapping[str, float] | None = None,
    *,
    num_folds: int,
    seed: int,
    holdout: Collection[str] = (),
    rule: str = "grouped stratified",
    dropped: Sequence[Dropped] = (),
) -> Assignment:
    """Give every image a fold and an inner part, whole groups together.

    Folds that the collection gives are taken as they are. Fold k is validated on the rows of the
    other folds whose part is k modulo the number of parts, so every such set must hold both
    tumour classes: where eight parts are too many, there are fewer.

    Args:
        records: the images that are kept.
        group: group by sample id.
        area: the lesion's share of the image by sample id, to spread lesion sizes evenly as well.
        num_folds: how many folds to make.
        seed: the deal's seed.
        holdout: groups that are kept for a final test.
        rule: what to call the rule where folds are made.
        dropped: images that were not kept, for the error if too few are.

    Raises:
        DataError: if a class has too few groups, or a group lies in two given folds.
    """
    kept_apart = frozenset(holdout)
    held = [record for record in records if group[record.sample_id] in kept_apart]
    records = [record for record in records if group[record.sample_id] not in kept_apart]
    groups = in_groups(records, group, area)
    given = any(record.fold is not None for record in records)
    if given:
        rule = GIVEN
        fold = _given(records, group)
        num_folds = max(fold.values()) + 1
    else:
        _check_enough(groups, num_folds, dropped)
        fold = deal_folds(groups, num_folds, seed)
    _check_folds(groups, fold, num_folds)
    for num_parts in range(NUM_PARTS, 1, -1):
        part = deal_parts(groups, fold, num_folds, num_parts, seed)
        if _serves(groups, fold, part, num_folds, num_parts):
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
    place |= {record.sample_id: (HOLDOUT, 0) for record in held}
    return Assignment(rule=rule, num_folds=num_folds, num_parts=num_parts, place=place)


def check(records: Sequence[Record], group: Mapping[str, str], given: Assignment) -> None:
    """Refuse folds and parts that somebody wrote if no training can use them.

    Args:
        records: the images that are kept.
        group: group by sample id; each lies in one fold and one part.
        given: where the images are.

    Raises:
        DataError: if a fold lacks a tumour class, or leaves none to train or to validate on.
    """
    records = [record for record in records if given.place[record.sample_id][0] != HOLDOUT]
    groups = in_groups(records, group, None)
    fold = {group[record.sample_id]: given.place[record.sample_id][0] for record in records}
    part = {group[record.sample_id]: given.place[record.sample_id][1] for record in records}
    _check_folds(groups, fold, given.num_folds)
    if not _serves(groups, fold, part, given.num_folds, given.num_parts):
        raise DataError(
            "Every fold must leave both tumour classes for training and for inner validation, but "
            f"the {given.num_parts} given parts do not; spread both classes over the parts."
        )


def rule_name(*, grouped: bool, by_size: bool) -> str:
    """Return what folds are called that are made here."""
    kind = "grouped" if grouped else "image-level"
    return f"{kind} stratified by {_BY_SIZE}" if by_size else f"{kind} stratified"


def is_by_size(rule: str) -> bool:
    """Say whether a rule spreads lesion sizes over the folds."""
    return rule.endswith(_BY_SIZE)


def extend(
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
    """Give images that are added a fold and an inner part; those from before keep theirs.

    An image whose group has a place joins it; the others are dealt on top of what is there.

    Args:
        before: the images that are there.
        added: those that are added.
        group: group by sample id, of both.
        area: the lesion's share of the image by sample id, to spread lesion sizes evenly as well.
        placed: fold and part by group of the images that are there.
        num_folds: how many folds there are.
        num_parts: how many inner parts a fold has.
        seed: the deal's seed.

    Raises:
        DataError: if a fold that an added image is given is not there, or not its group's.
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
        own = fold.setdefault(group[record.sample_id], record.fold)
        if own != record.fold:
            where = "the holdout" if own == HOLDOUT else f"fold {own}"
            raise DataError(
                f"A group must lie in one fold, but the group of {record.sample_id!r} lies in "
                f"{where} and it is given fold {record.fold}; correct the table's folds."
            )
    records = [r for r in (*before, *added) if fold.get(group[r.sample_id]) != HOLDOUT]
    groups = in_groups(records, group, area)
    fold |= deal_folds(groups, num_folds, seed, fold)
    part |= deal_parts(groups, fold, num_folds, num_parts, seed, part)
    return {
        record.sample_id: (fold[group[record.sample_id]], part[group[record.sample_id]])
        for record in added
    }


def hold_out(
    records: Sequence[Record],
    group: Mapping[str, str],
    area: Mapping[str, float] | None = None,
    *,
    share: float,
    seed: int,
) -> set[str]:
    """Return the groups of a final test set: about this share of each kind of image.

    Raises:
        DataError: if the share is not between 0 and 1, or holds no group.
    """
    if not 0 < share < 1:
        raise DataError(f"A holdout must be a share between 0 and 1, or a file, but got {share}.")
    rng = np.random.default_rng((seed, _HOLDOUT))
    groups = in_groups(records, group, area)
    total = totals(groups)
    taken = Counter[tuple[int, int]]()
    chosen = set()

    def excess(kind: Kind) -> float:
        """Say by how much its half is over the share."""
        key = kind.label, kind.tercile
        over = taken[key] + kind.size / 2 - share * total[key]
        return over * kind.size / total[key] ** 2

    for index in rng.permutation(len(groups)):
        item = groups[index]
        if sum(excess(kind) for kind in item.kinds) <= 0:
            for kind in item.kinds:
                taken[kind.label, kind.tercile] += kind.size
            chosen.add(item.name)
    if not chosen:
        raise DataError(
            f"A holdout must hold images, but a share of {share:g} of {len(records)} images in "
            f"{len(groups)} groups holds none; give a larger share."
        )
    return chosen


def _given(records: Sequence[Record], group: Mapping[str, str]) -> dict[str, int]:
    fold: dict[str, int] = {}
    for record in records:
        assert record.fold is not None  # the table gives all folds or none
        name = group[record.sample_id]
        if fold.setdefault(name, record.fold) != record.fold:
            raise DataError(
                f"A group must lie in one fold, but the group of {record.sample_id!r} lies in "
                f"the folds {fold[name]} and {record.fold}; correct the table's folds."
            )
    used = sorted(set(fold.values()))
    if used != list(range(len(used))) or not 2 <= len(used) <= MAX_FOLDS:
        raise DataError(
            f"Given folds must be 0, 1, … without a gap, 2 to {MAX_FOLDS} of them, but the table "
            f"gives {', '.join(str(number) for number in used[:12])}."
        )
    return fold


def _check_enough(groups: Sequence[Group], num_folds: int, dropped: Sequence[Dropped]) -> None:
    for label in TUMOURS:
        count = sum(kind.label == label for group in groups for kind in group.kinds)
        if count < num_folds:
            first = f"; {len(dropped)} images were dropped, such as " if dropped else ""
            named = f"{dropped[0].sample_id!r}: {dropped[0].why}" if dropped else ""
            raise DataError(
                f"Every fold must hold {LABELS[label]} images, but there are {count} groups of "
                f"them for {num_folds} folds; add images or use fewer folds{first}{named}."
            )


def _check_folds(groups: Sequence[Group], fold: Mapping[str, int], num_folds: int) -> None:
    held = {(fold[group.name], kind.label) for group in groups for kind in group.kinds}
    for number in range(num_folds):
        for label in TUMOURS:
            if (number, label) not in held:
                raise DataError(
                    f"Every fold must hold {LABELS[label]} images, but fold {number} has none; "
                    "correct the folds or use fewer."
                )


def _serves(
    groups: Sequence[Group],
    fold: Mapping[str, int],
    part: Mapping[str, int],
    num_folds: int,
    num_parts: int,
) -> bool:
    """Say whether every fold has both tumour classes to validate on and to train on."""
    cells = {
        (fold[group.name], part[group.name], kind.label) for group in groups for kind in group.kinds
    }
    for number in range(num_folds):
        for label in TUMOURS:
            parts = {at for where, at, kind in cells if where != number and kind == label}
            if number % num_parts not in parts or len(parts) < 2:
                return False
    return True
