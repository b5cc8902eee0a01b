"""Preparation in two steps for each chunk of images: stage, then finish.

The first step decodes a chunk and stages two files in the target: the rows of the shard, and the
facts needed by the audit and the folds. After audit and folds, the second step turns each staged
chunk into a shard. An interrupted preparation resumes: staged chunks are not decoded again.
Chunks are independent, for processes or machines to work in parallel.
"""

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from mtil import parquet
from mtil.data.audit import duplicates
from mtil.data.dataset import shards
from mtil.data.dataset.manifest import Cell, FileDigest, Shard, describe_file, read_dataset_file
from mtil.data.folds.assign import SamplePlace
from mtil.data.layouts.record import Record
from mtil.data.parallel import ImagesListener
from mtil.data.prepare.samples import RefusedImage, Sample, read_samples
from mtil.documents import MIB, Document, shorten_text
from mtil.errors import DataError, NotFoundError, StorageError
from mtil.storage import PARTIAL_NAME_PATTERN, Store, open_store

STAGING_FOLDER = "staging"
"""Folder of staged chunks, relative to the target."""
STAGING_VERSION = 2
"""Version of the staged format; chunks of a different version are not reused."""
SEAL_VERSION = 1
"""Version of the seal at the end of a staged file; files of a different version are not reused."""
STAGED_FILE_PATTERN = rf"(?:rows|facts)-\d{{5,}}-[0-9a-f]{{8}}\.parquet|{PARTIAL_NAME_PATTERN}"
"""Regular expression of the file names in a staging folder."""
_SEAL_BYTES = 32
# Reads before a damaged chunk is discarded, to be decoded again.
_READ_ATTEMPTS = 2
# Column types of the facts by which later versions recognise images.
_KEPT_FACTS_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("mask_sha256", pa.binary(32), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("patient", pa.string()),
        pa.field("published", pa.string()),
        pa.field("given", pa.string()),
    ]
)
# Metadata keys of a facts file.
_REFUSED_KEY, _FORMAT_KEY, _DESCRIBED_KEY = b"refused", b"format", b"described"


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """A chunk of images to decode."""

    name: str
    """Index of the chunk and state of the files; a changed file gives the chunk a new name."""
    records: tuple[Record, ...]
    stores: Mapping[str, str]
    """URI of the files, by source."""
    target: str
    """URI of the store for the staged chunk."""
    folder: str
    """Folder of the staged chunks, relative to the target."""
    image_size: int
    """Side of the stored images in pixels."""
    keep_rows: bool
    """Whether to stage rows and facts, or only the facts for audit and fingerprint."""


@dataclass(frozen=True, kw_only=True)
class FinishJob:
    """A staged chunk to write as a shard."""

    name: str
    """Name of the chunk."""
    shard: str | None
    """Name of the shard; None if no image of the chunk is kept."""
    facts: str
    """Name of the facts file in the data set."""
    places: Mapping[str, SamplePlace]
    """Group, fold and part, by sample id; rows without a place are left out."""
    target: str
    """URI of the store with the staged chunk, and target of the shard."""
    folder: str
    """Folder of the staged chunks, relative to the target."""
    image_size: int
    """Side of the stored images in pixels."""


@dataclass(frozen=True)
class FinishedChunk:
    """The files written from a staged chunk."""

    shard: Shard | None
    """The shard; None if no image of the chunk is kept."""
    facts: FileDigest
    """Size and digest of the facts file."""


def stage_chunk(job: StageJob, listen: ImagesListener | None = None) -> int:
    """Decode and stage a chunk unless already staged; return the number of images in the chunk."""
    store = open_store(job.target)
    if not store.exists(make_facts_name(job.folder, job.name)):
        rows = shards.ShardEncoder(_make_row_schema(job.image_size))
        facts: list[pa.Table] = []
        refused: list[RefusedImage] = []
        stores = {source: open_store(uri) for source, uri in job.stores.items()}
        results = _report_progress(read_samples(stores, job.records, job.image_size), listen)
        # A row group at a time: few decoded samples are in memory, whatever the size of the chunk.
        while batch := list(itertools.islice(results, shards.ROW_GROUP_ROWS)):
            samples = [item for item in batch if isinstance(item, Sample)]
            refused += [item for item in batch if isinstance(item, RefusedImage)]
            if samples:
                facts.append(_make_facts(samples))
                if job.keep_rows:
                    rows.add(_make_rows(samples, job.image_size))
        if job.keep_rows:
            store.write(_rows_name(job.folder, job.name), _seal(rows.close()))
        table = pa.concat_tables(facts or [_make_facts([])]).replace_schema_metadata(
            {
                _REFUSED_KEY: json.dumps([asdict(item) for item in refused]).encode(),
                _FORMAT_KEY: str(STAGING_VERSION).encode(),
                _DESCRIBED_KEY: str(duplicates.DESCRIPTION_VERSION).encode(),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        # Last: the facts file marks the chunk as staged.
        store.write(make_facts_name(job.folder, job.name), _seal(sink.getvalue()))
    elif listen is not None:
        listen(len(job.records))
    return len(job.records)


def read_refused(store: Store, folder: str, name: str) -> list[RefusedImage]:
    """Return the unusable images of a staged chunk."""
    schema = pq.read_schema(pa.BufferReader(_read_facts(store, folder, name)))
    document = Document(
        f"{store.uri}/{make_facts_name(folder, name)}",
        "run the same command again",
        max_bytes=64 * MIB,
    )
    refused = document.json((schema.metadata or {}).get(_REFUSED_KEY, b""))
    return document.validate(_REFUSED_LIST, refused)


_REFUSED_LIST: TypeAdapter[list[RefusedImage]] = TypeAdapter(list[RefusedImage])


def read_facts(store: Store, folder: str, name: str) -> pa.Table:
    """Return the facts of the usable images of a staged chunk, a row per image."""
    table = parquet.read_parquet(_read_facts(store, folder, name))
    return table.replace_schema_metadata(None)


def read_kept_facts(
    store: Store, name: str, files: Mapping[str, FileDigest], columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the facts of images in an existing data set, a row per image.

    Args:
        store: store of the data set.
        name: name of the facts file.
        files: `Manifest.files`, with the digest to verify.
        columns: columns to read, all by default.

    Raises:
        DataError: if the file is missing, damaged, or written by an incompatible version of mtil.
    """
    try:
        table = parquet.read_parquet(
            read_dataset_file(store, name, files), columns, _KEPT_FACTS_SCHEMA
        )
    except NotFoundError:
        raise DataError(f"{store.uri} has lost {name}; prepare all images again.") from None
    except pa.ArrowException as error:
        raise DataError(
            f"{store.uri}/{name} is damaged ({shorten_text(str(error))}); prepare all images again."
        ) from None
    metadata = table.schema.metadata or {}
    if metadata.get(_FORMAT_KEY, b"") != str(STAGING_VERSION).encode():
        raise DataError(
            f"Images can be compared only with facts in format {STAGING_VERSION}, but {store.uri} "
            "was "
            "prepared by an incompatible version of mtil; prepare all images again, to another "
            "target."
        )
    table = table.replace_schema_metadata(None)
    return table if _DESCRIBED_KEY in metadata or columns is not None else _describe_again(table)


def _describe_again(table: pa.Table) -> pa.Table:
    """Return the facts with new hashes and thumbs, computed from the stored thumbs."""
    # An earlier version described images with their margins; the current version removes margins.
    side = duplicates.THUMB_SIDE
    thumbs = shards.pixels(table.column("thumb")).reshape(-1, side, side)
    descriptions = [duplicates.describe_image(thumb) for thumb in thumbs]
    for name, values in (
        ("hashes", [description.hashes.tobytes() for description in descriptions]),
        ("thumb", [description.thumb.tobytes() for description in descriptions]),
    ):
        index = table.schema.get_field_index(name)
        column = pa.array(values, table.schema.field(index).type)
        table = table.set_column(index, table.schema.field(index), column)
    return table


def finish_chunk(job: FinishJob, listen: ImagesListener | None = None) -> FinishedChunk:
    """Write the facts of a staged chunk and, if an image is kept, the shard.

    Raises:
        StorageError: if a staged file is missing or damaged.
        DataError: if the shard exists with different bytes, written for a different data set.
    """
    store = open_store(job.target)
    facts = bytes(_read_facts(store, job.folder, job.name))
    store.write(job.facts, facts)
    if job.shard is None:
        return FinishedChunk(None, describe_file(facts))
    staged = _read_staged(store, _rows_name(job.folder, job.name), job.folder, job.name)
    encoder = shards.ShardEncoder(shards.shard_schema(job.image_size))
    cells = Counter[tuple[int, int, int]]()
    staged_rows = pq.ParquetFile(pa.BufferReader(staged))
    for group_index in range(staged_rows.num_row_groups):
        table = _add_places(staged_rows.read_row_group(group_index, use_threads=False), job)
        encoder.add(table)
        columns = (table.column(name).to_pylist() for name in ("fold", "part", "label"))
        cells.update(zip(*columns, strict=True))
    data = encoder.close()
    # Equal bytes were written by an interrupted or concurrent run of the same preparation.
    if not store.create(job.shard, data) and store.read(job.shard) != data:
        raise DataError(
            f"{store.uri}/{job.shard} must have the rows of the same images, but the bytes differ; "
            "delete the file and run the same command again, or choose another target."
        )
    if listen is not None:
        listen(cells.total())
    shard = Shard(
        path=job.shard,
        rows=cells.total(),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        cells=tuple(
            Cell(fold=fold, part=part, label=label, rows=rows)
            for (fold, part, label), rows in sorted(cells.items())
        ),
    )
    return FinishedChunk(shard, describe_file(facts))


def digest_row(row: Mapping[str, object], place: SamplePlace, image_size: int) -> bytes:
    """Return the SHA-256 of a row: id, pixels, mask, class, place and size of the stored image."""
    sha256, mask_sha256 = row["sha256"], row["mask_sha256"]
    assert isinstance(sha256, bytes)
    assert isinstance(mask_sha256, bytes)
    values: list[object] = [
        row["sample_id"],
        sha256.hex(),
        mask_sha256.hex(),
        row["label"],
        place.group,
        place.fold,
        place.part,
        image_size,
    ]
    return hashlib.sha256(json.dumps(values).encode()).digest()


def combine_row_digests(digests: Iterable[bytes]) -> str:
    """Return the fingerprint of a data set: SHA-256 over the sorted digests of the rows."""
    # Sorted: the fingerprint does not depend on the order of rows or on the size of chunks.
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def rows_per_chunk(image_size: int, max_bytes: int) -> int:
    """Return the number of images in a chunk whose shard has about `max_bytes` bytes."""
    return max(1, max_bytes // shards.row_bytes(image_size))


def _report_progress(
    results: Iterator[Sample | RefusedImage], listen: ImagesListener | None
) -> Iterator[Sample | RefusedImage]:
    for result in results:
        if listen is not None:
            listen(1)
        yield result


def _add_places(table: pa.Table, job: FinishJob) -> pa.Table:
    """Return the staged rows of the kept images, with the columns group, fold and part."""
    ids = table.column("sample_id").to_pylist()
    kept = [row for row, sample_id in enumerate(ids) if sample_id in job.places]
    places = [job.places[ids[row]] for row in kept]
    table = table.take(pa.array(kept, pa.int64()))
    for name in ("group", "fold", "part"):
        values = [getattr(place, name) for place in places]
        table = table.append_column(
            name, pa.array(values, pa.string() if name == "group" else pa.int8())
        )
    schema = shards.shard_schema(job.image_size)
    return table.select(schema.names).cast(schema)


def _make_row_schema(image_size: int) -> pa.Schema:
    """Return the schema of staged rows: a shard's columns without group, fold and part."""
    decided_later = {"group", "fold", "part"}
    schema = shards.shard_schema(image_size)
    return pa.schema([field for field in schema if field.name not in decided_later])


def _make_rows(samples: Sequence[Sample], image_size: int) -> pa.Table:
    return pa.table(
        {
            "sample_id": [sample.record.sample_id for sample in samples],
            "image": [sample.image for sample in samples],
            "mask": [sample.mask for sample in samples],
            "label": [sample.record.label for sample in samples],
            "height": [sample.height for sample in samples],
            "width": [sample.width for sample in samples],
            "mask_png": [sample.mask_png for sample in samples],
            "sha256": [sample.sha256 for sample in samples],
            "source": [sample.record.source for sample in samples],
            "pixel_size": [sample.pixel_size for sample in samples],
            "meta": [sorted(sample.record.meta.items()) for sample in samples],
        },
        schema=_make_row_schema(image_size),
    )


def _make_facts(samples: Sequence[Sample]) -> pa.Table:
    num_hashes = len(samples[0].description.hashes) if samples else 0
    thumb = samples[0].description.thumb.size if samples else 0
    return pa.table(
        {
            "sample_id": pa.array([s.record.sample_id for s in samples], pa.string()),
            "label": pa.array([s.record.label for s in samples], pa.int8()),
            "sha256": pa.array([s.sha256 for s in samples], pa.binary(32)),
            "mask_sha256": pa.array([s.mask_sha256 for s in samples], pa.binary(32)),
            "hashes": pa.array(
                [s.description.hashes.tobytes() for s in samples], pa.binary(8 * num_hashes or 8)
            ),
            "thumb": pa.array(
                [s.description.thumb.tobytes() for s in samples], pa.binary(thumb or 1)
            ),
            "text": pa.array([s.marks.text for s in samples], pa.bool_()),
            "calipers": pa.array([s.marks.calipers for s in samples], pa.bool_()),
            "num_components": pa.array([s.mask_flags.num_components for s in samples], pa.int32()),
            "touches_border": pa.array([s.mask_flags.touches_border for s in samples], pa.bool_()),
            "area_share": pa.array([s.mask_flags.area_share for s in samples], pa.float32()),
            "num_holes": pa.array([s.mask_flags.num_holes for s in samples], pa.int32()),
            "implausible": pa.array([s.mask_flags.implausible for s in samples], pa.bool_()),
            "notes": pa.array([list(s.notes) for s in samples], pa.list_(pa.string())),
            "source": pa.array([s.record.source for s in samples], pa.string()),
            "patient": pa.array([s.record.patient for s in samples], pa.string()),
            "published": pa.array([s.record.published for s in samples], pa.string()),
            "given": pa.array([_to_text(s.record.fold) for s in samples], pa.string()),
        }
    )


def _to_text(number: int | None) -> str | None:
    # A given fold is not checked yet, and a number of any size fits no integer column.
    return None if number is None else str(number)


def _rows_name(folder: str, chunk: str) -> str:
    return f"{folder}/rows-{chunk}.parquet"


def make_facts_name(folder: str, chunk: str) -> str:
    """Return the name of a chunk's staged facts; an existing file marks the chunk as staged."""
    return f"{folder}/facts-{chunk}.parquet"


def _seal(data: bytes) -> bytes:
    """Return the bytes of a staged file: the content, then the SHA-256 of the content."""
    return data + hashlib.sha256(data).digest()


def _read_facts(store: Store, folder: str, chunk: str) -> memoryview:
    return _read_staged(store, make_facts_name(folder, chunk), folder, chunk)


def _read_staged(store: Store, name: str, folder: str, chunk: str) -> memoryview:
    """Return the content of a staged file after verifying the SHA-256 at the end.

    Raises:
        StorageError: if the file is missing, or the digest differs in two reads.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            data = memoryview(store.read(name))
        except NotFoundError:
            raise StorageError(
                f"Staged files of {store.uri} are missing; run the same command again."
            ) from None
        content, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if hashlib.sha256(content).digest() == seal:
            return content
    # Without facts the chunk counts as not staged, so the same command stages the chunk again.
    store.delete(make_facts_name(folder, chunk))
    raise StorageError(
        f"{store.uri}/{name} must have the staged bytes, but the SHA-256 differs; run the same "
        "command again."
    )
