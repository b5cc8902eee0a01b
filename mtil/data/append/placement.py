"""Place appended images: match them against existing images, then choose group and fold.

Decisions about existing images stay. A new image joins the group of an existing near-copy, of an
existing image of its patient, or of its published group, in any fold. New images that
would join groups in different places are dropped. New near-copies of an image of a different class
or of a dropped image are dropped too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import pyarrow as pa

from mtil.data.append.existing import ExistingImages
from mtil.data.audit import findings as audits
from mtil.data.audit.findings import Audit, NearCopyPair
from mtil.data.dataset.manifest import DroppedImage
from mtil.data.dataset.shards import HOLDOUT
from mtil.data.folds import assign as fold_rules
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import SamplePlace
from mtil.data.folds.groups import Grouping
from mtil.data.layouts.record import Record


@dataclass(frozen=True)
class AppendPlacement:
    """All images of the new version, and the appended images among them."""

    audit: Audit
    places: Mapping[str, SamplePlace]
    """Group, fold and part of all kept images, by sample id."""
    kept: tuple[Record, ...]
    """Appended images, kept."""
    dropped: tuple[DroppedImage, ...]
    """Appended images, dropped."""


def place_new_images(
    known: ExistingImages,
    records: Sequence[Record],
    again: Sequence[Record],
    facts: Iterable[pa.Table],
) -> AppendPlacement:
    """Audit new images together with existing images, and place the new images.

    Args:
        known: the existing images.
        records: the new images.
        again: records of existing images, as the collections give them now.
        facts: staged facts of the new images, chunk by chunk.

    Raises:
        DataError: if given folds of the new images contradict the data set.
    """
    audit = _audit_together(known, records, again, facts)
    group = audit.grouping.group
    reason_by_id = {item.sample_id: item.why for item in audit.grouping.dropped}
    # The paper protocol places single tumour images, without groups.
    if known.manifest.protocol == "paper":
        group = {record.sample_id: record.sample_id for record in records} | {
            name: name for name in known.places
        }
        reason_by_id = dict.fromkeys(
            (r.sample_id for r in records if r.label not in fold_rules.TUMOURS),
            fold_rules.NOT_IN_PAPER_PROTOCOL,
        )
    kept = tuple(record for record in records if record.sample_id not in reason_by_id)
    manifest = known.manifest
    place = fold_rules.extend_assignment(
        [known.records[name] for name in known.places],
        kept,
        group,
        audit.area() if fold_rules.is_stratified_by_size(manifest.fold_rule) else None,
        placed={
            group[name]: (old_place.fold, old_place.part)
            for name, old_place in known.places.items()
        },
        num_folds=manifest.num_folds,
        num_parts=manifest.num_parts,
        seed=manifest.seed,
    )
    family = audit.grouping.family
    new_places = {
        name: SamplePlace(family[name], fold, part) for name, (fold, part) in place.items()
    }
    return AppendPlacement(
        audit=audit,
        places={**known.places, **new_places},
        kept=kept,
        dropped=tuple(
            DroppedImage(sample_id=record.sample_id, why=reason_by_id[record.sample_id])
            for record in records
            if record.sample_id in reason_by_id
        ),
    )


def _audit_together(
    known: ExistingImages,
    records: Sequence[Record],
    again: Sequence[Record],
    facts: Iterable[pa.Table],
) -> Audit:
    all_records = [*known.records.values(), *records]
    table, pairs, copies = audits.compare_images(
        all_records, chain(known.facts(), facts), len(known.records)
    )
    pairs = [_decide_for_new(pair, known) for pair in pairs]
    keys = {record.sample_id: group_rules.list_group_keys(record) for record in all_records}
    # A collection may now give an existing image a patient or a published group. Both join new
    # images too.
    for record in again:
        keys[record.sample_id] += group_rules.list_group_keys(record)
    # Only published groups and near-copies show the same tissue. A patient may have images of two
    # classes.
    published = {
        name: [key for key in record_keys if key[0] == "group"]
        for name, record_keys in keys.items()
    }
    for name, twin in known.twins.items():
        published[name].append(("twins", twin))
    joined = audits.select_joined_pairs(pairs)
    label_by_id = {record.sample_id: record.label for record in all_records}
    reason_by_id = _find_reasons_to_drop(
        known, group_rules.find_components(published.items(), joined), label_by_id
    )
    reason_by_id |= {
        name: f"its pixels are those of {kept}"
        for name, kept in copies.items()
        if name not in reason_by_id
    }
    return Audit(
        grouping=_join_groups(known, keys, joined, reason_by_id),
        pairs=(*known.pairs, *pairs),
        twins=audits.find_first_copies(published.items(), pairs),
        facts=table.sort_by("sample_id"),
    )


def _decide_for_new(pair: NearCopyPair, known: ExistingImages) -> NearCopyPair:
    both_new = pair.one not in known.records and pair.other not in known.records
    # An existing image stays, so only the new image of the pair is dropped.
    if both_new or "two classes" not in pair.decision:
        return pair
    return replace(pair, decision="new images dropped: two classes")


def _find_reasons_to_drop(
    known: ExistingImages, near_copy_groups: Iterable[Sequence[str]], label_by_id: Mapping[str, int]
) -> dict[str, str]:
    """Return the reason for each new image dropped for its content, by sample id."""
    reason_by_id: dict[str, str] = {}
    for names in near_copy_groups:
        existing = [name for name in names if name in known.records]
        if existing and not any(name in known.places for name in existing):
            reason = f"its group holds {existing[0]}, which was dropped before"
            reason_by_id |= dict.fromkeys(names, reason)
        else:
            reason_by_id |= group_rules.find_contradictions([names], label_by_id)
    return reason_by_id


def _join_groups(
    known: ExistingImages,
    keys: Mapping[str, list[tuple[str, str]]],
    pairs: Sequence[tuple[str, str]],
    reason_by_id: Mapping[str, str],
) -> Grouping:
    """Join new images with each other and with existing groups. Existing groups stay."""
    items = {name: list(record_keys) for name, record_keys in keys.items()}
    for name, family in known.family.items():
        items[name].append(("family", family))
    dropped_before = [name for name in known.family if name not in known.places]
    dropped_twins = {known.twins[name] for name in dropped_before}
    for name, twin in known.twins.items():
        # A dropped image still links its near-copies with its patient.
        if twin in dropped_twins:
            items[name].append(("twins", twin))
    group = {name: place.group for name, place in known.places.items()}
    family_of = dict(known.family)
    dropped = list(known.dropped)
    kept_member = {place.group: name for name, place in known.places.items()}
    for members in group_rules.find_components(items.items(), pairs):
        new_ids = [name for name in members if name not in known.records]
        if not new_ids:
            continue
        existing = [name for name in members if name in known.records]
        # Prefer the group of a kept image, so that new images join a group with a place.
        kept = [name for name in existing if known.family[name] in kept_member]
        conflict = _find_place_conflict(known, kept, kept_member)
        family = (
            known.family[(kept or existing)[0]] if existing and conflict is None else new_ids[0]
        )
        for name in new_ids:
            family_of[name] = family
            reason = reason_by_id.get(name) or conflict
            if reason is None:
                group[name] = family
            else:
                dropped.append(DroppedImage(sample_id=name, why=reason))
    return Grouping(group, tuple(sorted(dropped, key=lambda item: item.sample_id)), family_of)


def _find_place_conflict(
    known: ExistingImages, existing: Sequence[str], kept_member: Mapping[str, str]
) -> str | None:
    """Return why new images cannot join the existing images; None if all lie in one place."""
    id_by_place: dict[tuple[int, int], str] = {}
    for name in existing:
        place = known.places[kept_member[known.family[name]]]
        id_by_place.setdefault((place.fold, place.part), name)
    if len(id_by_place) > 1:
        (place_a, id_a), (place_b, id_b), *_ = id_by_place.items()
        return (
            f"its group would join {id_a} in {_describe_place(*place_a)} and {id_b} in "
            f"{_describe_place(*place_b)}, which stay where they are"
        )
    return None


def _describe_place(fold: int, part: int) -> str:
    return "the holdout" if fold == HOLDOUT else f"fold {fold}, part {part}"
