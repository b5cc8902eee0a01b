"""The share of a collection that may be dropped before `mtil prepare` refuses to go on.

A few near-copies are usual. Many dropped images, or one group of near-copies that holds much of a
collection, most likely mean that the audit mistook different images for one another.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtil.data.dataset.manifest import Dropped
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import NOT_IN_PAPER
from mtil.data.layouts.record import Record
from mtil.errors import DataError

MAX_SHARE = 0.05
"""Share of a source's images that may be dropped by default. Of BUSI 2.4 per cent are."""
FEW = 2
"""So many dropped images pass by default whatever their share, as in a very small collection."""
MAX_GROUP_SHARE = 0.1
"""Share of a source's images that one group of near-copies may hold by default."""
MIN_GROUP = 8
"""Groups of fewer images pass whatever their share."""
_SHOWN = 3
_REASONS = (
    ("holds two classes", "of a group of two classes"),
    ("its pixels are those of", "with equal pixels"),
)
_INVALID, _OTHER = "that cannot be used", "of a group that cannot be kept"


@dataclass(frozen=True)
class Limits:
    """How much may be dropped."""

    dropped: float = MAX_SHARE
    """Share of a source's images."""
    group: float = MAX_GROUP_SHARE
    """Share of a source's images in one group of near-copies."""
    few: int = FEW
    """So many dropped images pass whatever their share."""


def limits(allowed: float | None) -> Limits:
    """Return the limits that `--allow-drops` sets.

    Args:
        allowed: the share of images that may be dropped, 0 to 1; None for the defaults.

    Raises:
        DataError: if the share is out of range.
    """
    if allowed is None:
        return Limits()
    if not 0 <= allowed <= 1:
        raise DataError(
            f"The share of images that may be dropped must be 0 to 1, but got {allowed}; "
            "choose another --allow-drops."
        )
    return Limits(allowed, max(allowed, MAX_GROUP_SHARE), few=0)


def check(
    records: Sequence[Record],
    dropped: Iterable[Dropped],
    invalid: Iterable[Dropped],
    pairs: Iterable[tuple[str, str]],
    limit: Limits,
    names: Mapping[str, str],
    before: Sequence[Record] = (),
) -> None:
    """Refuse to drop much of a source or of all images, or to group much of them as near-copies.

    Images that a protocol leaves out do not count as dropped. Near-copies of one patient do not
    count as a group, since the patient joins them already.

    Args:
        records: the images, with those that cannot be used.
        dropped: the images that the audit drops.
        invalid: the images that cannot be used.
        pairs: sample ids of near-copies that are joined.
        limit: how much may be dropped.
        names: each source's name by its prefix.
        before: images of an earlier version of the data set, which are not dropped.

    Raises:
        DataError: with the numbers by reason.
    """
    why = {item.sample_id: _reason(item.why) for item in dropped if item.why != NOT_IN_PAPER}
    why |= {item.sample_id: _INVALID for item in invalid}
    pairs = list(pairs)
    num_images = Counter(record.source for record in records)
    for source, count in num_images.items():
        lost = [r.sample_id for r in records if r.source == source and r.sample_id in why]
        _check_dropped(lost, why, count, names[source], limit)
    _check_dropped(sorted(why), why, len(records), "all sources", limit)
    _check_groups([*before, *records], pairs, {r.sample_id for r in records}, limit, names)


def _reason(why: str) -> str:
    return next((reason for part, reason in _REASONS if part in why), _OTHER)


def _check_dropped(
    lost: Sequence[str], why: Mapping[str, str], count: int, name: str, limit: Limits
) -> None:
    if len(lost) <= max(limit.dropped * count, limit.few):
        return
    reasons = Counter(why[sample_id] for sample_id in lost)
    by_reason = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
    raise DataError(
        f"At most {limit.dropped:.3g} of a source's images may be dropped, but {name} would lose "
        f"{len(lost)} of {count}: {by_reason}, such as {_some(lost)}; look at these images, or "
        f"allow it with --allow-drops {_rounded_up(len(lost), count)}."
    )


def _check_groups(
    records: Sequence[Record],
    pairs: Sequence[tuple[str, str]],
    new: Container[str],
    limit: Limits,
    names: Mapping[str, str],
) -> None:
    num_images = Counter(record.source for record in records)
    by_id = {record.sample_id: record for record in records}
    linked = sorted({name for pair in pairs for name in pair})
    for members in group_rules.join(((name, ()) for name in linked), pairs):
        if not any(name in new for name in members):
            continue
        if len({by_id[name].patient or (name,) for name in members}) == 1:
            continue
        for source, number in Counter(by_id[name].source for name in members).items():
            count = num_images[source]
            if number >= MIN_GROUP and number > limit.group * count:
                name = names.get(source, source)
                raise DataError(
                    f"One group of near-copies may hold at most {limit.group:.3g} of a source's "
                    f"images, but in {name} one holds {number} of {count}, such as "
                    f"{_some(members)}; look at these images, or allow it with --allow-drops "
                    f"{_rounded_up(number, count)}."
                )


def _some(sample_ids: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in sample_ids[:_SHOWN])


def _rounded_up(number: int, count: int) -> str:
    """Return the share in hundredths that is at least `number` of `count`."""
    return f"{-(-100 * number // count) / 100:g}"
