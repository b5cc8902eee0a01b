"""Audit findings of a collection: near-copies, burnt-in marks and odd masks.

The audit is stored with the data set. `audit/duplicates.parquet` has a row per pair of near-copies.
`audit/images.parquet` has a row per image read, kept or dropped. Each version with appended images
has a separate audit folder.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtil import parquet
from mtil.data.audit.duplicates import NUM_HASHES, THUMB_SIDE, DiskArray, find_near_copies
from mtil.data.dataset.manifest import (
    DroppedImage,
    FileDigest,
    Manifest,
    describe_file,
    read_dataset_file,
)
from mtil.data.dataset.shards import LABELS, pixels
from mtil.data.folds import groups as group_rules
from mtil.data.folds.assign import SamplePlace
from mtil.data.folds.groups import Grouping
from mtil.data.layouts.record import Record
from mtil.documents import shorten_text
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

PAIRS_FILE = "duplicates.parquet"
IMAGES_FILE = "images.parquet"
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
_SCHEMAS = {
    PAIRS_FILE: pa.schema(
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
    IMAGES_FILE: pa.schema(
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
"""Required columns of the stored tables. Earlier versions of mtil wrote fewer of the remaining
columns."""
_KEPT_COLUMNS = ("sample_id", "label", "patient", "sha256", "mask_sha256", *_FLAGS)
_PairTuple = tuple[int, int, int, float, str]
"""Two indices, the number of differing hash bits, the correlation and the kind."""

_LEFT_TO_FOLDS = "left to the given folds"

Splits = Mapping[str, tuple[int, int]]
"""Fold and inner part by sample id, as given in a splits file."""


@dataclass(frozen=True, slots=True)
class NearCopyPair:
    """A pair of near-copies."""

    one: str
    other: str
    distance: int
    """Number of differing bits between the nearest perceptual hashes."""
    correlation: float
    """Correlation of the normalised pixels after alignment."""
    kind: str
    decision: str


@dataclass(frozen=True)
class Audit:
    """Findings and decisions of the audit of a collection."""

    grouping: Grouping
    pairs: tuple[NearCopyPair, ...]
    twins: dict[str, str]
    """First near-copy of each image, by sample id. Pairs and published groups both count."""
    facts: pa.Table
    """Facts of every image, in the order of the sample ids."""

    def area(self) -> dict[str, float]:
        """Return each lesion's share of the image area, by sample id."""
        ids, shares = (self.facts.column(name).to_pylist() for name in ("sample_id", "area_share"))
        return dict(zip(ids, shares, strict=True))


def audit_images(
    records: Sequence[Record], facts: Iterable[pa.Table], splits: Splits | None = None
) -> Audit:
    """Find near-copies, and group the images of a collection.

    Pairs, patients and published groups are combined into groups. Folds given by the collection or
    by a splits file take precedence: a pair with given folds is reported but not joined, unless the
    splits file puts both images into one fold and part. Of images with equal pixels and class only
    the first is kept.

    Args:
        records: the usable images.
        facts: staged facts of the images, chunk by chunk, in the same order.
        splits: fold and part by sample id from a splits file; None without a splits file.
    """
    table, pairs, copies = compare_images(records, facts, splits=splits)
    grouping = group_rules.group_images(records, select_joined_pairs(pairs))
    listed = ((record.sample_id, group_rules.list_published_keys(record)) for record in records)
    twins = find_first_copies(listed, pairs)
    return Audit(_drop_copies(grouping, copies), tuple(pairs), twins, table)


def compare_images(
    records: Sequence[Record],
    facts: Iterable[pa.Table],
    num_known: int = 0,
    splits: Splits | None = None,
) -> tuple[pa.Table, list[NearCopyPair], dict[str, str]]:
    """Compare images with each other.

    Args:
        records: the images.
        facts: staged facts of the images, chunk by chunk, in the same order. Of equal images the
            first is kept.
        num_known: number of leading images already compared in an earlier version; pairs of two
            known images are skipped.
        splits: fold and part by sample id from a splits file; None without a splits file.

    Returns:
        The facts without hashes and thumbs, in order; the pairs; and, by sample id of each copy
        with equal pixels and class, the sample id of the first such image.
    """
    table, pair_tuples = _find_pairs_on_disk(facts, num_known)
    copies = _find_copies(records, pixels(table.column("sha256")), splits or {})
    pairs = []
    for i, j, distance, correlation, kind in pair_tuples:
        first, second = records[i], records[j]
        decision = _decide(first, second, copies, splits or {})
        pairs.append(
            NearCopyPair(first.sample_id, second.sample_id, distance, correlation, kind, decision)
        )
    return table, pairs, copies


def select_joined_pairs(pairs: Iterable[NearCopyPair]) -> list[tuple[str, str]]:
    """Return the pairs with both images in one group."""
    # Decisions are stored texts. "left to the given folds" is the only decision that keeps a pair
    # apart.
    return [(pair.one, pair.other) for pair in pairs if "left" not in pair.decision]


def find_first_copies(
    listed: Iterable[tuple[str, Iterable[tuple[str, str]]]], pairs: Iterable[NearCopyPair]
) -> dict[str, str]:
    """Return the first near-copy of each image, by sample id.

    Args:
        listed: sample ids, each with keys shared by near-copies.
        pairs: pairs of near-copies.
    """
    same = [(pair.one, pair.other) for pair in pairs]
    return {
        sample_id: members[0]
        for members in group_rules.find_components(listed, same)
        for sample_id in members
    }


def write_audit_tables(
    store: Store, folder: str, made: Audit, places: Mapping[str, SamplePlace]
) -> dict[str, FileDigest]:
    """Write the audit of a data set.

    Args:
        store: the store of the data set.
        folder: the audit folder in the store.
        made: the audit.
        places: group, fold and part of the kept images, by sample id.

    Returns:
        Size and digest of the written files, by file name.
    """
    labels = dict(
        zip(*(made.facts.column(name).to_pylist() for name in ("sample_id", "label")), strict=True)
    )
    reason_by_id = {item.sample_id: item.why for item in made.grouping.dropped}
    files = _write_table(
        store,
        f"{folder}/{PAIRS_FILE}",
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
    kept_places = [places.get(name) for name in ids]
    columns = {
        "sample_id": made.facts.column("sample_id"),
        "label": made.facts.column("label"),
        "patient": made.facts.column("patient"),
        "fold": pa.array(
            [None if place is None else place.fold for place in kept_places], pa.int8()
        ),
        "part": pa.array(
            [None if place is None else place.part for place in kept_places], pa.int8()
        ),
        "dropped": pa.array([reason_by_id.get(name) for name in ids], pa.string()),
        "group": pa.array([made.grouping.family[name] for name in ids], pa.string()),
        "twins": pa.array([made.twins[name] for name in ids], pa.string()),
    }
    columns |= {name: made.facts.column(name) for name in (*_FLAGS, _NOTES)}
    return files | _write_table(store, f"{folder}/{IMAGES_FILE}", pa.table(columns))


def read_audit_table(store: Store, made: Manifest, name: str) -> pa.Table:
    """Read the `PAIRS_FILE` or `IMAGES_FILE` table of an audit, and verify the bytes.

    Raises:
        DataError: if the file is missing or damaged.
    """
    folder = made.audit
    try:
        return parquet.read_parquet(
            read_dataset_file(store, f"{folder}/{name}", made.files), schema=_SCHEMAS[name]
        )
    except NotFoundError:
        raise DataError(
            f"{store.uri} has lost {folder}/{name}. Delete the data set and prepare it again."
        ) from None
    except pa.ArrowException as error:
        raise DataError(
            f"{store.uri}/{folder}/{name} is damaged ({shorten_text(str(error))}). Delete the data "
            "set and prepare it again."
        ) from None


def _write_table(store: Store, name: str, table: pa.Table) -> dict[str, FileDigest]:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.write(name, sink.getvalue())
    return {name: describe_file(sink.getvalue())}


def _find_pairs_on_disk(
    facts: Iterable[pa.Table], num_known: int
) -> tuple[pa.Table, list[_PairTuple]]:
    """Return the facts without hashes and thumbs, and the pairs of near-copies."""
    small_tables: list[pa.Table] = []
    # Hashes and thumbs take 5 kB an image, so both wait on disk; only the small columns stay in
    # memory.
    with (
        DiskArray((NUM_HASHES,), np.uint64) as hashes,
        DiskArray((THUMB_SIDE, THUMB_SIDE), np.uint8) as thumbs,
    ):
        for table in facts:
            if table.num_rows:
                hashes.append(pixels(table.column("hashes")).view(np.uint64))
                thumbs.append(pixels(table.column("thumb")).reshape(-1, THUMB_SIDE, THUMB_SIDE))
                small_tables.append(_with_notes(table).select([*_KEPT_COLUMNS, _NOTES]))
        small_facts = pa.concat_tables(small_tables)
        pairs = find_near_copies(hashes, thumbs, num_known, pixels(small_facts.column("sha256")))
    pair_tuples = [
        (pair.i, pair.j, int(pair.distance), float(pair.correlation), str(pair.kind))
        for pair in pairs
    ]
    return small_facts, pair_tuples


def _with_notes(facts: pa.Table) -> pa.Table:
    """Return facts with a `notes` column."""
    # Facts written by earlier versions of mtil have no notes.
    if _NOTES in facts.column_names:
        return facts
    none = pa.nulls(facts.num_rows, pa.list_(pa.string()))
    return facts.append_column(_NOTES, none)


def _find_copies(
    records: Sequence[Record], digests: npt.NDArray[np.uint8], splits: Splits
) -> dict[str, str]:
    """Return the first equal image of each copy, by sample id. Equal means pixels and class.

    Args:
        records: the images.
        digests: (n, 32) SHA-256 of the images' pixels.
        splits: fold and part by sample id from a splits file.
    """
    first_by_content: dict[tuple[bytes, int], Record] = {}
    copies: dict[str, str] = {}
    _, prefix_index, counts = np.unique(
        digests[:, :8].view(np.uint64).ravel(), return_inverse=True, return_counts=True
    )
    # Only images with a repeated digest prefix become Python objects, which saves memory. The first
    # eight bytes find candidates; the full digest decides below.
    for index in np.flatnonzero(counts[prefix_index] > 1).tolist():
        record = records[index]
        kept = first_by_content.setdefault((digests[index].tobytes(), record.label), record)
        if kept is not record and not _have_given_folds(record, kept, splits):
            copies[record.sample_id] = kept.sample_id
    return copies


def _have_given_folds(first: Record, second: Record, splits: Splits) -> bool:
    """Return whether both images have given folds."""
    by_collection = first.fold is not None and second.fold is not None
    return by_collection or (first.sample_id in splits and second.sample_id in splits)


def _decide(first: Record, second: Record, copies: dict[str, str], splits: Splits) -> str:
    if _have_given_folds(first, second, splits):
        places = splits.get(first.sample_id), splits.get(second.sample_id)
        is_together = (
            places[0] is not None and places[0] == places[1] and first.label == second.label
        )
        return "joined" if is_together else _LEFT_TO_FOLDS
    if first.label != second.label:
        return "group dropped: two classes"
    if (
        copies.get(second.sample_id) == first.sample_id
        or copies.get(first.sample_id) == second.sample_id
    ):
        return "copy dropped"
    return "joined"


def _drop_copies(grouping: Grouping, copies: dict[str, str]) -> Grouping:
    group = dict(grouping.group)
    dropped = list(grouping.dropped)
    for sample_id, kept in copies.items():
        if group.pop(sample_id, None) is not None:
            dropped.append(DroppedImage(sample_id=sample_id, why=f"its pixels are those of {kept}"))
    return Grouping(group, tuple(sorted(dropped, key=lambda item: item.sample_id)), grouping.family)
