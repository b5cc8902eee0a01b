"""Limits on the share of a collection dropped or grouped by `mtil prepare`.

A few near-copies are usual. Many dropped images, or a large group of near-copies, most likely mean
that the audit mistook different images for near-copies.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtil.data.dataset.manifest import DroppedImage
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import NOT_IN_PAPER_PROTOCOL
from mtil.data.layouts.record import Record
from mtil.errors import DataError

MAX_DROPPED_SHARE = 0.05
"""Share of a source's images dropped at most by default. BUSI loses 2.4 per cent."""
NUM_ALWAYS_ALLOWED = 2
"""Number of dropped images allowed by default at any share, for very small collections."""
MAX_GROUP_SHARE = 0.1
"""Share of a source's images in one group of near-copies, at most, by default."""
MIN_CHECKED_GROUP_SIZE = 8
"""Smaller groups of near-copies pass at any share."""
_NUM_EXAMPLES = 3
# Fragments of stored reasons (`Dropped.why`), with the wording in error messages.
_REASON_TEXTS = (
    ("holds two classes", "of a group of two classes"),
    ("its pixels are those of", "with equal pixels"),
)
_REASON_INVALID, _REASON_OTHER = "that cannot be used", "of a group that cannot be kept"


@dataclass(frozen=True)
class DropLimits:
    """Limits on dropped images and on groups of near-copies."""

    dropped: float = MAX_DROPPED_SHARE
    """Largest share of a source's images dropped."""
    group: float = MAX_GROUP_SHARE
    """Largest share of a source's images in one group of near-copies."""
    few: int = NUM_ALWAYS_ALLOWED
    """Number of dropped images allowed at any share."""


def make_drop_limits(allowed: float | None) -> DropLimits:
    """Return the limits set by `--allow-drops`.

    Args:
        allowed: largest share of images dropped, 0 to 1; None for the defaults.

    Raises:
        DataError: if the share is out of range.
    """
    if allowed is None:
        return DropLimits()
    if not 0 <= allowed <= 1:
        raise DataError(
            f"The share of images to drop must be 0 to 1, but got {allowed}. "
            "Choose a value in range for --allow-drops."
        )
    # An explicit share applies to very small collections too, so `few` is 0. A share below the
    # default does not tighten the limit on groups.
    return DropLimits(allowed, max(allowed, MAX_GROUP_SHARE), few=0)


def check_drops(
    records: Sequence[Record],
    dropped: Iterable[DroppedImage],
    invalid: Iterable[DroppedImage],
    pairs: Iterable[tuple[str, str]],
    limit: DropLimits,
    names: Mapping[str, str],
    before: Sequence[Record] = (),
) -> None:
    """Raise if too many images are dropped or grouped as near-copies.

    The limits apply to every source and to all sources together. Images left out by a protocol do
    not count as dropped. Near-copies of one patient do not count as a group: the patient already
    joins these images.

    Args:
        records: the images, including unusable images.
        dropped: the images dropped by the audit.
        invalid: the unusable images.
        pairs: sample ids of near-copies joined into groups.
        limit: the limits.
        names: source name by sample id prefix.
        before: images of an earlier version of the data set; not dropped, but counted in groups.

    Raises:
        DataError: if a limit is exceeded; names the count by reason.
    """
    reason_by_id = {
        item.sample_id: _summarise_reason(item.why)
        for item in dropped
        if item.why != NOT_IN_PAPER_PROTOCOL
    }
    reason_by_id |= {item.sample_id: _REASON_INVALID for item in invalid}
    pairs = list(pairs)
    num_images = Counter(record.source for record in records)
    for source, source_size in num_images.items():
        dropped_ids = [
            r.sample_id for r in records if r.source == source and r.sample_id in reason_by_id
        ]
        _check_dropped(dropped_ids, reason_by_id, source_size, names[source], limit)
    _check_dropped(sorted(reason_by_id), reason_by_id, len(records), "all sources", limit)
    _check_groups([*before, *records], pairs, {r.sample_id for r in records}, limit, names)


def _summarise_reason(why: str) -> str:
    return next((reason for fragment, reason in _REASON_TEXTS if fragment in why), _REASON_OTHER)


def _check_dropped(
    dropped_ids: Sequence[str],
    reason_by_id: Mapping[str, str],
    source_size: int,
    name: str,
    limit: DropLimits,
) -> None:
    if len(dropped_ids) <= max(limit.dropped * source_size, limit.few):
        return
    reasons = Counter(reason_by_id[sample_id] for sample_id in dropped_ids)
    by_reason = ", ".join(f"{num_images} {reason}" for reason, num_images in reasons.most_common())
    raise DataError(
        f"At most {limit.dropped:.3g} of a source's images may be dropped, but {name} would lose "
        f"{len(dropped_ids)} of {source_size}: {by_reason}, such as {_examples(dropped_ids)}. "
        f"Check the images, or allow the drops with --allow-drops "
        f"{_share_rounded_up(len(dropped_ids), source_size)}."
    )


def _check_groups(
    records: Sequence[Record],
    pairs: Sequence[tuple[str, str]],
    new: Container[str],
    limit: DropLimits,
    names: Mapping[str, str],
) -> None:
    num_images = Counter(record.source for record in records)
    by_id = {record.sample_id: record for record in records}
    linked = sorted({sample_id for pair in pairs for sample_id in pair})
    for members in group_rules.find_components(((sample_id, ()) for sample_id in linked), pairs):
        # An earlier version of the data set settled the groups without a new image.
        if not any(sample_id in new for sample_id in members):
            continue
        # An image without a patient counts as a patient with a single image.
        if len({by_id[sample_id].patient or (sample_id,) for sample_id in members}) == 1:
            continue
        for source, group_size in Counter(by_id[sample_id].source for sample_id in members).items():
            source_size = num_images[source]
            if group_size >= MIN_CHECKED_GROUP_SIZE and group_size > limit.group * source_size:
                name = names.get(source, source)
                raise DataError(
                    f"A group of near-copies may hold at most {limit.group:.3g} of a source's "
                    f"images, but in {name} a group holds {group_size} of {source_size}, "
                    f"such as {_examples(members)}. Check the images, or allow the group with "
                    f"--allow-drops {_share_rounded_up(group_size, source_size)}."
                )


def _examples(sample_ids: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in sample_ids[:_NUM_EXAMPLES])


def _share_rounded_up(part: int, total: int) -> str:
    """Return `part` / `total` as text, rounded up to hundredths."""
    return f"{-(-100 * part // total) / 100:g}"
