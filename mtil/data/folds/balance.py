"""Balance groups over folds, and over the inner parts of every fold, by class and lesion size.

A stratum is a class, or a class and a tercile of lesion size. Terciles are computed over the
tumours of both classes together. Groups are assigned greedily, class by class, from the largest
group down. A group goes to the fold with the fewest images of the stratum; ties go to the fold with
the fewest images of the class. Groups of several classes (patients) are assigned first, to the fold
with the smallest sum of shares over the strata of the group.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.record import Record

TUMOURS = (LABELS.index("benign"), LABELS.index("malignant"))
_FOLDS, _PARTS = 0, 1
"""Streams of random numbers; `assign` uses stream 2."""
_TERCILES = 3


@dataclass(frozen=True, slots=True)
class StratumCount:
    """Number of a group's images of a class, with the tercile of lesion size."""

    label: int
    tercile: int
    """Tercile of the lesion size among all tumours, 0 to 2; 0 for normals and without areas."""
    size: int


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """A group of images for one fold and part, by class."""

    name: str
    kinds: tuple[StratumCount, ...]
    """One entry per class; only patients may have several."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key of the assignment: groups of several classes, then by class, largest first."""
        if len(self.kinds) > 1:
            return -1, -sum(kind.size for kind in self.kinds), 0
        (kind,) = self.kinds
        return kind.label, -kind.size, kind.tercile


def count_groups(
    records: Sequence[Record], group: Mapping[str, str], area: Mapping[str, float] | None
) -> list[GroupCounts]:
    """Return the groups of the images, with terciles of lesion size if `area` is given."""
    sizes = Counter((group[record.sample_id], record.label) for record in records)
    areas: dict[tuple[str, int], float] = defaultdict(float)
    for record in records:
        key = (group[record.sample_id], record.label)
        areas[key] += area[record.sample_id] / sizes[key] if area else 0.0
    tumours = [key for key in sizes if key[1] in TUMOURS] if area else []
    tumours.sort(key=lambda key: (areas[key], key))
    tercile = {key: rank * _TERCILES // len(tumours) for rank, key in enumerate(tumours)}
    kinds: dict[str, list[StratumCount]] = defaultdict(list)
    # Sorted, since the result must not depend on the order of the records.
    for name, label in sorted(sizes):
        key = (name, label)
        kinds[name].append(StratumCount(label, tercile.get(key, 0), sizes[key]))
    return [GroupCounts(name, tuple(group_kinds)) for name, group_kinds in kinds.items()]


def count_strata(groups: Sequence[GroupCounts]) -> Counter[tuple[int, int]]:
    """Return the number of images by class and tercile."""
    total = Counter[tuple[int, int]]()
    for group in groups:
        for kind in group.kinds:
            total[kind.label, kind.tercile] += kind.size
    return total


def balance_folds(
    groups: Sequence[GroupCounts],
    num_folds: int,
    seed: int,
    placed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Assign groups to folds, keeping the folds of placed groups; return fold by new group."""
    by_stratum: Counter[tuple[int, int, int]] = Counter()
    by_class: Counter[tuple[int, int]] = Counter()
    total: Counter[int] = Counter()
    class_totals = _count_classes(groups)

    # A tuple: a later entry only decides between folds with equal earlier entries.
    def load(group: GroupCounts, fold: int) -> tuple[float, ...]:
        return (
            _weigh(group, lambda kind: by_stratum[fold, kind.label, kind.tercile], class_totals),
            _weigh(group, lambda kind: by_class[fold, kind.label], class_totals),
            total[fold],
        )

    def add(group: GroupCounts, fold: int) -> None:
        for kind in group.kinds:
            by_stratum[fold, kind.label, kind.tercile] += kind.size
            by_class[fold, kind.label] += kind.size
            total[fold] += kind.size

    rng = np.random.default_rng((seed, _FOLDS))
    return _assign_greedily(groups, num_folds, rng, load, add, placed or {})


def balance_parts(
    groups: Sequence[GroupCounts],
    fold: Mapping[str, int],
    num_folds: int,
    num_parts: int,
    seed: int,
    placed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Assign the groups of every fold to inner parts; return part by new group.

    Args:
        groups: all groups.
        fold: fold by group.
        num_folds: number of folds.
        num_parts: number of inner parts of a fold.
        seed: seed of the assignment.
        placed: part by existing group, kept unchanged.
    """
    by_class: Counter[tuple[int, int, int]] = Counter()
    by_class_overall: Counter[tuple[int, int]] = Counter()
    total: Counter[tuple[int, int]] = Counter()
    part_of: dict[str, int] = {}
    groups_of_fold: dict[int, list[GroupCounts]] = defaultdict(list)
    for group in groups:
        groups_of_fold[fold[group.name]].append(group)
    class_totals = _count_classes(groups)
    for fold_index in range(num_folds):
        # A validation set joins equal parts of several folds: ties within a fold go to the part
        # with the fewest images over all folds.
        def load(group: GroupCounts, part: int, fold_index: int = fold_index) -> tuple[float, ...]:
            return (
                _weigh(group, lambda kind: by_class[fold_index, part, kind.label], class_totals),
                _weigh(group, lambda kind: by_class_overall[part, kind.label], class_totals),
                total[fold_index, part],
            )

        def add(group: GroupCounts, part: int, fold_index: int = fold_index) -> None:
            for kind in group.kinds:
                by_class[fold_index, part, kind.label] += kind.size
                by_class_overall[part, kind.label] += kind.size
                total[fold_index, part] += kind.size

        rng = np.random.default_rng((seed, _PARTS, fold_index))
        part_of |= _assign_greedily(
            groups_of_fold[fold_index], num_parts, rng, load, add, placed or {}
        )
    return part_of


def _count_classes(groups: Sequence[GroupCounts]) -> Counter[int]:
    """Return the number of images by class."""
    class_totals = Counter[int]()
    for (label, _), size in count_strata(groups).items():
        class_totals[label] += size
    return class_totals


def _weigh(
    group: GroupCounts, count: Callable[[StratumCount], int], class_totals: Mapping[int, int]
) -> float:
    """Return the load of a fold or part for a group: over classes, group share times load share.

    Shares are relative to all images of the class. For a group of one class, the load grows with
    the number of images counted by `count`.
    """
    return sum(kind.size * count(kind) / class_totals[kind.label] ** 2 for kind in group.kinds)


def _assign_greedily(
    groups: Sequence[GroupCounts],
    num_bins: int,
    rng: np.random.Generator,
    load: Callable[[GroupCounts, int], tuple[float, ...]],
    add: Callable[[GroupCounts, int], None],
    placed: Mapping[str, int],
) -> dict[str, int]:
    """Assign every group to the bin (fold or part) with the least load; return bin by new group.

    Args:
        groups: all groups; placed groups only add to the load.
        num_bins: number of folds or parts.
        rng: source of the order among equal groups.
        load: returns the load of a bin for a group.
        add: adds a group to the load of a bin.
        placed: bin by group already assigned.
    """
    for group in groups:
        if group.name in placed:
            add(group, placed[group.name])
    unplaced = [group for group in groups if group.name not in placed]
    # The sort below is stable: the shuffle decides the order of groups with equal keys.
    shuffled = [unplaced[index] for index in rng.permutation(len(unplaced))]
    bin_of: dict[str, int] = {}
    for group in sorted(shuffled, key=lambda group: group.order):
        best_bin = min(range(num_bins), key=lambda index: load(group, index))
        add(group, best_bin)
        bin_of[group.name] = best_bin
    return bin_of
