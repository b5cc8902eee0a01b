"""Groups dealt to folds and to their inner parts.

Each class is dealt by itself, and within it, if asked for, each tercile of lesion size: largest
group first, to where its kind has fewest images and, of those, its class. The terciles are those of
all tumours together. Groups of several classes, a patient's, are dealt before the others, to where
their kinds, each as a share of all of its images, have least.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mtil.data.dataset.shards import LABELS
from mtil.data.layouts.record import Record

TUMOURS = (LABELS.index("benign"), LABELS.index("malignant"))
_FOLDS, _PARTS = 0, 1
"""Streams of random numbers."""
_TERCILES = 3


@dataclass(frozen=True, slots=True)
class Kind:
    """A group's images of one class."""

    label: int
    tercile: int
    """Of all tumours' lesion sizes; 0 for normals, and if sizes do not matter."""
    size: int


@dataclass(frozen=True, slots=True)
class Group:
    """Images that share a fold and a part."""

    name: str
    kinds: tuple[Kind, ...]
    """One, or several if it is a patient's."""

    @property
    def order(self) -> tuple[int, int, int]:
        """When it is dealt: those of several classes first, then by class and from the largest."""
        if len(self.kinds) > 1:
            return -1, -sum(kind.size for kind in self.kinds), 0
        (kind,) = self.kinds
        return kind.label, -kind.size, kind.tercile


def in_groups(
    records: Sequence[Record], group: Mapping[str, str], area: Mapping[str, float] | None
) -> list[Group]:
    """Return the groups of images, with terciles of lesion size if areas are given."""
    sizes = Counter((group[record.sample_id], record.label) for record in records)
    areas: dict[tuple[str, int], float] = defaultdict(float)
    for record in records:
        key = (group[record.sample_id], record.label)
        areas[key] += area[record.sample_id] / sizes[key] if area else 0.0
    tumours = [key for key in sizes if key[1] in TUMOURS] if area else []
    tumours.sort(key=lambda key: (areas[key], key))
    tercile = {key: rank * _TERCILES // len(tumours) for rank, key in enumerate(tumours)}
    kinds: dict[str, list[Kind]] = defaultdict(list)
    for name, label in sorted(sizes):
        key = (name, label)
        kinds[name].append(Kind(label, tercile.get(key, 0), sizes[key]))
    return [Group(name, tuple(found)) for name, found in kinds.items()]


def totals(groups: Sequence[Group]) -> Counter[tuple[int, int]]:
    """Return how many images there are by class and tercile."""
    total = Counter[tuple[int, int]]()
    for group in groups:
        for kind in group.kinds:
            total[kind.label, kind.tercile] += kind.size
    return total


def deal_folds(
    groups: Sequence[Group], num_folds: int, seed: int, placed: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Deal the groups that are not placed yet to folds; return their fold by name."""
    by_kind: Counter[tuple[int, int, int]] = Counter()
    by_class: Counter[tuple[int, int]] = Counter()
    total: Counter[int] = Counter()
    of_class = _of_class(groups)

    def load(group: Group, where: int) -> tuple[float, ...]:
        return (
            _fill(group, lambda kind: by_kind[where, kind.label, kind.tercile], of_class),
            _fill(group, lambda kind: by_class[where, kind.label], of_class),
            total[where],
        )

    def put(group: Group, where: int) -> None:
        for kind in group.kinds:
            by_kind[where, kind.label, kind.tercile] += kind.size
            by_class[where, kind.label] += kind.size
            total[where] += kind.size

    return _deal(groups, num_folds, np.random.default_rng((seed, _FOLDS)), load, put, placed or {})


def deal_parts(
    groups: Sequence[Group],
    fold: Mapping[str, int],
    num_folds: int,
    num_parts: int,
    seed: int,
    placed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Deal each fold's groups to its parts; ties go to the part that is behind over all folds."""
    here: Counter[tuple[int, int, int]] = Counter()
    overall: Counter[tuple[int, int]] = Counter()
    total: Counter[tuple[int, int]] = Counter()
    part: dict[str, int] = {}
    inside: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        inside[fold[group.name]].append(group)
    of_class = _of_class(groups)
    for number in range(num_folds):

        def load(group: Group, where: int, number: int = number) -> tuple[float, ...]:
            return (
                _fill(group, lambda kind: here[number, where, kind.label], of_class),
                _fill(group, lambda kind: overall[where, kind.label], of_class),
                total[number, where],
            )

        def put(group: Group, where: int, number: int = number) -> None:
            for kind in group.kinds:
                here[number, where, kind.label] += kind.size
                overall[where, kind.label] += kind.size
                total[number, where] += kind.size

        rng = np.random.default_rng((seed, _PARTS, number))
        part |= _deal(inside[number], num_parts, rng, load, put, placed or {})
    return part


def _of_class(groups: Sequence[Group]) -> Counter[int]:
    """Return how many images there are by class."""
    total = Counter[int]()
    for (label, _), size in totals(groups).items():
        total[label] += size
    return total


def _fill(group: Group, count: Callable[[Kind], int], of_class: Mapping[int, int]) -> float:
    """Return how full a place is of a group's kinds, each as a share of its class.

    Where there is one kind, the order of places is that of its images there.
    """
    return sum(kind.size * count(kind) / of_class[kind.label] ** 2 for kind in group.kinds)


def _deal(
    groups: Sequence[Group],
    num_places: int,
    rng: np.random.Generator,
    load: Callable[[Group, int], tuple[float, ...]],
    put: Callable[[Group, int], None],
    placed: Mapping[str, int],
) -> dict[str, int]:
    """Deal groups to where the load is least, on top of those that are placed already."""
    for group in groups:
        if group.name in placed:
            put(group, placed[group.name])
    waiting = [group for group in groups if group.name not in placed]
    shuffled = [waiting[index] for index in rng.permutation(len(waiting))]
    place: dict[str, int] = {}
    for group in sorted(shuffled, key=lambda group: group.order):
        where = min(range(num_places), key=lambda where: load(group, where))
        put(group, where)
        place[group.name] = where
    return place
