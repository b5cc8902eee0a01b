"""Images that are added to a data set: what they show, and the groups and folds that gives them.

What was decided about the images from before stays. New images join the group of an old one that
shows the same, is of the same patient or of the same published group, wherever it lies; where that
cannot be, the new ones are dropped, as are those that show the same as one of another class or as
one that was dropped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import pyarrow as pa

from mtil.data.append.existing import Known
from mtil.data.audit import findings as audits
from mtil.data.audit.findings import Audit, Pair
from mtil.data.dataset.manifest import Dropped
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds import assign as fold_rules
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import Place
from mtil.data.folds.groups import Grouping
from mtil.data.layouts.record import Record


@dataclass(frozen=True)
class Growth:
    """All images of the new version, and which of them are new."""

    audit: Audit
    places: Mapping[str, Place]
    """By sample id of all images that are kept."""
    kept: tuple[Record, ...]
    """The new ones that are kept."""
    dropped: tuple[Dropped, ...]
    """The new ones that are not."""


def grow(
    known: Known, records: Sequence[Record], again: Sequence[Record], facts: Iterable[pa.Table]
) -> Growth:
    """Audit images together with those from before, and place them.

    Args:
        known: the images from before.
        records: the new ones.
        again: what the collections say now about images from before.
        facts: what was staged of the new images, chunk by chunk.

    Raises:
        DataError: if folds that the new images are given do not fit.
    """
    audit = _audit(known, records, again, facts)
    group, why = audit.grouping.group, {d.sample_id: d.why for d in audit.grouping.dropped}
    if known.manifest.protocol == "paper":
        group = {record.sample_id: record.sample_id for record in records} | {
            name: name for name in known.places
        }
        why = dict.fromkeys(
            (r.sample_id for r in records if r.label not in fold_rules.TUMOURS),
            fold_rules.NOT_IN_PAPER,
        )
    kept = tuple(record for record in records if record.sample_id not in why)
    made = known.manifest
    place = fold_rules.extend(
        [known.records[name] for name in known.places],
        kept,
        group,
        audit.area() if fold_rules.is_by_size(made.fold_rule) else None,
        placed={group[name]: (at.fold, at.part) for name, at in known.places.items()},
        num_folds=made.num_folds,
        num_parts=made.num_parts,
        seed=made.seed,
    )
    family = audit.grouping.family
    new = {name: Place(family[name], fold, part) for name, (fold, part) in place.items()}
    return Growth(
        audit=audit,
        places={**known.places, **new},
        kept=kept,
        dropped=tuple(
            Dropped(sample_id=record.sample_id, why=why[record.sample_id])
            for record in records
            if record.sample_id in why
        ),
    )


def _audit(
    known: Known, records: Sequence[Record], again: Sequence[Record], facts: Iterable[pa.Table]
) -> Audit:
    everything = [*known.records.values(), *records]
    table, pairs, copies = audits.look(everything, chain(known.facts(), facts), len(known.records))
    pairs = [_of_new(pair, known) for pair in pairs]
    keys = {record.sample_id: group_rules.keys(record) for record in everything}
    for record in again:
        keys[record.sample_id] += group_rules.keys(record)
    published = {name: [key for key in of if key[0] == "group"] for name, of in keys.items()}
    for name, twin in known.twins.items():
        published[name].append(("twins", twin))
    joined = audits.joined(pairs)
    label = {record.sample_id: record.label for record in everything}
    why = _not_kept(known, group_rules.join(published.items(), joined), label)
    why |= {name: f"its pixels are those of {of}" for name, of in copies.items() if name not in why}
    return Audit(
        grouping=_join(known, keys, joined, why),
        pairs=(*known.pairs, *pairs),
        twins=audits.find_twins(published.items(), pairs),
        facts=table.sort_by("sample_id"),
    )


def _of_new(pair: Pair, known: Known) -> Pair:
    both_new = pair.one not in known.records and pair.other not in known.records
    if both_new or "two classes" not in pair.decision:
        return pair
    return replace(pair, decision="new images dropped: two classes")


def _not_kept(
    known: Known, same: Iterable[Sequence[str]], label: Mapping[str, int]
) -> dict[str, str]:
    """Say why new images are dropped for what they show, by sample id."""
    why: dict[str, str] = {}
    for names in same:
        before = [name for name in names if name in known.records]
        if before and not any(name in known.places for name in before):
            lost = f"its group holds {before[0]}, which was dropped before"
            why |= dict.fromkeys(names, lost)
        else:
            why |= group_rules.contradictions([names], label)
    return why


def _join(
    known: Known,
    keys: Mapping[str, list[tuple[str, str]]],
    pairs: Sequence[tuple[str, str]],
    why: Mapping[str, str],
) -> Grouping:
    """Join new images with one another and with the groups from before, which stay as they are."""
    items = {name: list(of) for name, of in keys.items()}
    for name, family in known.family.items():
        items[name].append(("family", family))
    dropped_before = [name for name in known.family if name not in known.places]
    bridges = {known.twins[name] for name in dropped_before}
    for name, twin in known.twins.items():
        if twin in bridges:  # what an image shows that is not there binds its patient all the same
            items[name].append(("twins", twin))
    group = {name: place.group for name, place in known.places.items()}
    family_of = dict(known.family)
    dropped = list(known.dropped)
    kept_member = {place.group: name for name, place in known.places.items()}
    for members in group_rules.join(items.items(), pairs):
        added = [name for name in members if name not in known.records]
        if not added:
            continue
        before = [name for name in members if name in known.records]
        kept = [name for name in before if known.family[name] in kept_member]
        parted = _parted(known, kept, kept_member)
        family = known.family[(kept or before)[0]] if before and parted is None else added[0]
        for name in added:
            family_of[name] = family
            reason = why.get(name) or parted
            if reason is None:
                group[name] = family
            else:
                dropped.append(Dropped(sample_id=name, why=reason))
    return Grouping(group, tuple(sorted(dropped, key=lambda item: item.sample_id)), family_of)


def _parted(known: Known, before: Sequence[str], kept_member: Mapping[str, str]) -> str | None:
    """Say why new images cannot join those from before that they belong with."""
    at: dict[tuple[int, int], str] = {}
    for name in before:
        place = known.places[kept_member[known.family[name]]]
        at.setdefault((place.fold, place.part), name)
    if len(at) > 1:
        (one, first), (other, second), *_ = at.items()
        return (
            f"its group would join {first} in {_where(*one)} and {second} in {_where(*other)}, "
            "which stay where they are"
        )
    return None


def _where(fold: int, part: int) -> str:
    return "the holdout" if fold == HOLDOUT else f"fold {fold}, part {part}"
