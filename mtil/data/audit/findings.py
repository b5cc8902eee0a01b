"""What a collection hides: images that show the same, writing on images, masks that look wrong.

Written with the data set as `audit/duplicates.parquet` (a row per pair) and `audit/images.parquet`
(a row per image that was read, kept or not). A version to which images were appended has a folder
of its own.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtil import parquet
from mtil.data.audit.duplicates import NUM_HASHES, SIDE, OnDisk, find_pairs
from mtil.data.dataset.manifest import Dropped, File, Manifest, file_of, read_file
from mtil.data.dataset.shards import LABELS, pixels
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import Place
from mtil.data.folds.groups import Grouping
from mtil.data.layouts.record import Record
from mtil.documents import shortened
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

PAIRS = "duplicates.parquet"
IMAGES = "images.parquet"
_FLAGS = (
    "text",
    "calipers",
    "num_components",
    "touches_border",
    "area_share",
    "num_holes",
    "implausible",
)
_NOTES = "notes"
_TYPES = {
    PAIRS: pa.schema(
        [
            pa.field("sample_id_a", pa.string(), nullable=False),
            pa.field("sample_id_b", pa.string(), nullable=False),
            pa.field("distance", pa.int16(), nullable=False),
            pa.field("correlation", pa.float32(), nullable=False),
            pa.field("kind", pa.string(), nullable=False),
            pa.field("class_a", pa.string(), nullable=False),
            pa.field("class_b", pa.string(), nullable=False),
            pa.field("decision", pa.string(), nullable=False),
        ]
    ),
    IMAGES: pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("fold", pa.int8()),
            pa.field("part", pa.int8()),
            pa.field("dropped", pa.string()),
            pa.field("group", pa.string(), nullable=False),
            pa.field("twins", pa.string(), nullable=False),
            pa.field("text", pa.bool_(), nullable=False),
            pa.field("calipers", pa.bool_(), nullable=False),
            pa.field("num_components", pa.int32(), nullable=False),
            pa.field("touches_border", pa.bool_(), nullable=False),
            pa.field("num_holes", pa.int32(), nullable=False),
            pa.field("implausible", pa.bool_(), nullable=False),
        ]
    ),
}
"""Of the columns that are read back; earlier versions have written fewer others."""
_SMALL = ("sample_id", "label", "patient", "sha256", "mask_sha256", *_FLAGS)
_Found = tuple[int, int, int, float, str]
"""Two indices, the bits that differ, the correlation and the kind."""

_GIVEN = "left to the given folds"

Splits = Mapping[str, tuple[int, int]]
"""Fold and inner part by sample id, as a splits file gives them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images that show the same."""

    one: str
    other: str
    distance: int
    """Bits in which the nearest of their perceptual hashes differ."""
    correlation: float
    """Of their normalised pixels, once aligned."""
    kind: str
    decision: str


@dataclass(frozen=True)
class Audit:
    """What the audit of a collection found and decided."""

    grouping: Grouping
    pairs: tuple[Pair, ...]
    twins: dict[str, str]
    """By sample id, the first image that shows the same by pairs and published groups."""
    facts: pa.Table
    """What was noted of every image, in the order of its sample id."""

    def area(self) -> dict[str, float]:
        """Return the lesion's share of each image by sample id."""
        ids, shares = (self.facts.column(name).to_pylist() for name in ("sample_id", "area_share"))
        return dict(zip(ids, shares, strict=True))


def audit(
    records: Sequence[Record], facts: Iterable[pa.Table], splits: Splits | None = None
) -> Audit:
    """Find the images that show the same, and group the collection by what is known of it.

    Pairs, patients and published groups add up. Only folds that are given decide otherwise, by the
    collection or by a splits file: a pair of two such images is reported and left as it is, unless
    the splits file has them in one place. Of images with equal pixels and one class the first is
    kept.

    Args:
        records: the images whose pixels are usable.
        facts: what was staged of them, chunk by chunk, in the same order.
        splits: where a splits file has them, if there is one.
    """
    table, pairs, copies = look(records, facts, splits=splits)
    grouping = group_rules.group(records, joined(pairs))
    listed = ((record.sample_id, group_rules.published(record)) for record in records)
    twins = find_twins(listed, pairs)
    return Audit(_without_copies(grouping, copies), tuple(pairs), twins, table)


def look(
    records: Sequence[Record],
    facts: Iterable[pa.Table],
    num_known: int = 0,
    splits: Splits | None = None,
) -> tuple[pa.Table, list[Pair], dict[str, str]]:
    """Compare images with one another.

    Args:
        records: the images.
        facts: what was staged of them, chunk by chunk, in the same order; of equal images the
            first is kept.
        num_known: the first so many are not compared with one another again.
        splits: where a splits file has the images, if there is one.

    Returns:
        What is small of the facts, in their order; the pairs; and for an image with the pixels
        and the class of one before it, that one.
    """
    table, found = _find(facts, num_known)
    copies = _copies(records, pixels(table.column("sha256")), splits or {})
    pairs = []
    for i, j, distance, correlation, kind in found:
        one, other = records[i], records[j]
        decision = _decision(one, other, copies, splits or {})
        pairs.append(Pair(one.sample_id, other.sample_id, distance, correlation, kind, decision))
    return table, pairs, copies


def joined(pairs: Iterable[Pair]) -> list[tuple[str, str]]:
    """Return the pairs that belong to one group."""
    return [(pair.one, pair.other) for pair in pairs if "left" not in pair.decision]


def find_twins(
    listed: Iterable[tuple[str, Iterable[tuple[str, str]]]], pairs: Iterable[Pair]
) -> dict[str, str]:
    """Return, by sample id, the first image that shows the same.

    Args:
        listed: sample ids and what else says that they show the same.
        pairs: pairs of images.
    """
    same = [(pair.one, pair.other) for pair in pairs]
    return {
        sample_id: members[0] for members in group_rules.join(listed, same) for sample_id in members
    }


def write(store: Store, folder: str, made: Audit, places: Mapping[str, Place]) -> dict[str, File]:
    """Write the audit of a data set, and return what its files hold, by name.

    Args:
        store: the data set's.
        folder: the folder in it.
        made: the audit.
        places: by sample id of the images that are kept.
    """
    labels = dict(
        zip(*(made.facts.column(name).to_pylist() for name in ("sample_id", "label")), strict=True)
    )
    why = {item.sample_id: item.why for item in made.grouping.dropped}
    files = _write(
        store,
        f"{folder}/{PAIRS}",
        pa.table(
            {
                "sample_id_a": pa.array([pair.one for pair in made.pairs], pa.string()),
                "sample_id_b": pa.array([pair.other for pair in made.pairs], pa.string()),
                "distance": pa.array([pair.distance for pair in made.pairs], pa.int16()),
                "correlation": pa.array([pair.correlation for pair in made.pairs], pa.float32()),
                "kind": pa.array([pair.kind for pair in made.pairs], pa.string()),
                "class_a": pa.array([LABELS[labels[p.one]] for p in made.pairs], pa.string()),
                "class_b": pa.array([LABELS[labels[p.other]] for p in made.pairs], pa.string()),
                "decision": pa.array([pair.decision for pair in made.pairs], pa.string()),
            }
        ),
    )
    ids: list[str] = made.facts.column("sample_id").to_pylist()
    where = [places.get(name) for name in ids]
    columns = {
        "sample_id": made.facts.column("sample_id"),
        "label": made.facts.column("label"),
        "patient": made.facts.column("patient"),
        "fold": pa.array([None if at is None else at.fold for at in where], pa.int8()),
        "part": pa.array([None if at is None else at.part for at in where], pa.int8()),
        "dropped": pa.array([why.get(name) for name in ids], pa.string()),
        "group": pa.array([made.grouping.family[name] for name in ids], pa.string()),
        "twins": pa.array([made.twins[name] for name in ids], pa.string()),
    }
    columns |= {name: made.facts.column(name) for name in (*_FLAGS, _NOTES)}
    return files | _write(store, f"{folder}/{IMAGES}", pa.table(columns))


def read(store: Store, made: Manifest, name: str) -> pa.Table:
    """Read `PAIRS` or `IMAGES` of a data set's audit, and verify the bytes.

    Raises:
        DataError: if the file is missing or damaged.
    """
    folder = made.audit
    try:
        return parquet.read(read_file(store, f"{folder}/{name}", made.files), schema=_TYPES[name])
    except NotFoundError:
        raise DataError(
            f"{store.uri} has lost {folder}/{name}; delete it and prepare it again."
        ) from None
    except pa.ArrowException as error:
        raise DataError(
            f"{store.uri}/{folder}/{name} is damaged ({shortened(str(error))}); delete the data "
            "set and prepare it again."
        ) from None


def _write(store: Store, name: str, table: pa.Table) -> dict[str, File]:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.write(name, sink.getvalue())
    return {name: file_of(sink.getvalue())}


def _find(facts: Iterable[pa.Table], num_known: int) -> tuple[pa.Table, list[_Found]]:
    """Gather what is small of the facts, and find pairs by what is not, which lies on the disk."""
    small: list[pa.Table] = []
    with OnDisk((NUM_HASHES,), np.uint64) as hashes, OnDisk((SIDE, SIDE), np.uint8) as thumbs:
        for table in facts:
            if table.num_rows:
                hashes.append(pixels(table.column("hashes")).view(np.uint64))
                thumbs.append(pixels(table.column("thumb")).reshape(-1, SIDE, SIDE))
                small.append(_with_notes(table).select([*_SMALL, _NOTES]))
        whole = pa.concat_tables(small)
        pairs = find_pairs(hashes, thumbs, num_known, pixels(whole.column("sha256")))
    found = [(p.i, p.j, int(p.distance), float(p.correlation), str(p.kind)) for p in pairs]
    return whole, found


def _with_notes(facts: pa.Table) -> pa.Table:
    """Return facts with their notes; an earlier version of this program made none."""
    if _NOTES in facts.column_names:
        return facts
    none = pa.nulls(facts.num_rows, pa.list_(pa.string()))
    return facts.append_column(_NOTES, none)


def _copies(
    records: Sequence[Record], digests: npt.NDArray[np.uint8], splits: Splits
) -> dict[str, str]:
    """Return, for an image with the pixels and the class of one before it, that one.

    Args:
        records: the images.
        digests: (n, 32) sha256 of their pixels.
        splits: where a splits file has the images.
    """
    first: dict[tuple[bytes, int], Record] = {}
    copies: dict[str, str] = {}
    _, kinds, counts = np.unique(
        digests[:, :8].view(np.uint64).ravel(), return_inverse=True, return_counts=True
    )
    for at in np.flatnonzero(counts[kinds] > 1).tolist():  # few, so that others need no memory
        record = records[at]
        kept = first.setdefault((digests[at].tobytes(), record.label), record)
        if kept is not record and not _given(record, kept, splits):
            copies[record.sample_id] = kept.sample_id
    return copies


def _given(one: Record, other: Record, splits: Splits) -> bool:
    """Say whether two images have folds already."""
    by_collection = one.fold is not None and other.fold is not None
    return by_collection or (one.sample_id in splits and other.sample_id in splits)


def _decision(one: Record, other: Record, copies: dict[str, str], splits: Splits) -> str:
    if _given(one, other, splits):
        places = splits.get(one.sample_id), splits.get(other.sample_id)
        together = places[0] is not None and places[0] == places[1] and one.label == other.label
        return "joined" if together else _GIVEN
    if one.label != other.label:
        return "group dropped: two classes"
    if copies.get(other.sample_id) == one.sample_id or copies.get(one.sample_id) == other.sample_id:
        return "copy dropped"
    return "joined"


def _without_copies(grouping: Grouping, copies: dict[str, str]) -> Grouping:
    group = dict(grouping.group)
    dropped = list(grouping.dropped)
    for sample_id, kept in copies.items():
        if group.pop(sample_id, None) is not None:
            dropped.append(Dropped(sample_id=sample_id, why=f"its pixels are those of {kept}"))
    return Grouping(group, tuple(sorted(dropped, key=lambda item: item.sample_id)), grouping.family)
