"""Preparation in two passes over chunks of images, each chunk on its own and as often as needed.

The first pass decodes a chunk and stages it in the target: rows as they will be stored, and beside
them what the audit and the folds need. Once those have decided, the second pass turns each staged
chunk into a shard. A staged chunk is not decoded again, so that an interrupted preparation goes on
where it was; chunks are independent, so that processes or machines can share them.
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
from mtil.data.dataset.manifest import Cell, File, Shard, file_of, read_file
from mtil.data.folds.assign import Place
from mtil.data.layouts.record import Record
from mtil.data.parallel import Listener
from mtil.data.prepare.samples import Refused, Sample, read_all
from mtil.documents import MIB, Document, shortened
from mtil.errors import DataError, NotFoundError, StorageError
from mtil.storage import PARTIAL_NAME, Store, open_store

FOLDER = "staging"
FORMAT = 2
"""Of staged chunks; another version's are not taken up."""
SEALED = 1
"""Format of the seal at the end of a staged file; files with another are not taken up."""
OWN_FILE = rf"(?:rows|facts)-\d{{5,}}-[0-9a-f]{{8}}\.parquet|{PARTIAL_NAME}"
"""A regular expression for the files of a staging folder."""
_SEAL_BYTES = 32
_READ_ATTEMPTS = 2
_FACTS = pa.schema(
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
"""Types of the facts by which images are known again."""
_REFUSED, _FORMAT, _DESCRIBED = b"refused", b"format", b"described"


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """A chunk of images to decode."""

    name: str
    """Its number and the state of its files, so that a chunk is decoded again if one changes."""
    records: tuple[Record, ...]
    stores: Mapping[str, str]
    """URI of each source's files."""
    target: str
    folder: str
    image_size: int
    keep_rows: bool
    """Whether rows are staged too, or only what the audit and the fingerprint need."""


@dataclass(frozen=True, kw_only=True)
class FinishJob:
    """A staged chunk to be written as a shard."""

    name: str
    """Of the chunk."""
    shard: str | None
    """The shard's name; None if no image of the chunk is kept."""
    facts: str
    """Where the chunk's facts are kept."""
    places: Mapping[str, Place]
    """By sample id; other rows are left out."""
    target: str
    folder: str
    image_size: int


@dataclass(frozen=True)
class FinishedChunk:
    """The files that were written of a staged chunk."""

    shard: Shard | None
    """None if no image of the chunk is kept."""
    facts: File


def stage(job: StageJob, listen: Listener | None = None) -> int:
    """Decode a chunk and stage it, unless that is done already; return how many images it has."""
    store = open_store(job.target)
    if not store.exists(facts_name(job.folder, job.name)):
        rows = shards.Encoder(_row_schema(job.image_size))
        facts: list[pa.Table] = []
        refused: list[Refused] = []
        stores = {source: open_store(uri) for source, uri in job.stores.items()}
        read = _heard(read_all(stores, job.records, job.image_size), listen)
        while found := list(itertools.islice(read, shards.ROW_GROUP_ROWS)):
            samples = [item for item in found if isinstance(item, Sample)]
            refused += [item for item in found if isinstance(item, Refused)]
            if samples:
                facts.append(_facts(samples))
                if job.keep_rows:
                    rows.add(_rows(samples, job.image_size))
        if job.keep_rows:
            store.write(_rows_name(job.folder, job.name), _sealed(rows.close()))
        table = pa.concat_tables(facts or [_facts([])]).replace_schema_metadata(
            {
                _REFUSED: json.dumps([asdict(item) for item in refused]).encode(),
                _FORMAT: str(FORMAT).encode(),
                _DESCRIBED: str(duplicates.VERSION).encode(),
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd")
        # last: it commits
        store.write(facts_name(job.folder, job.name), _sealed(sink.getvalue()))
    elif listen is not None:
        listen(len(job.records))
    return len(job.records)


def read_refused(store: Store, folder: str, name: str) -> list[Refused]:
    """Return the images of a staged chunk that cannot be used."""
    schema = pq.read_schema(pa.BufferReader(_read_facts(store, folder, name)))
    document = Document(
        f"{store.uri}/{facts_name(folder, name)}", "run the same command again", max_bytes=64 * MIB
    )
    refused = document.json((schema.metadata or {}).get(_REFUSED, b""))
    return document.validate(_ALL_REFUSED, refused)


_ALL_REFUSED: TypeAdapter[list[Refused]] = TypeAdapter(list[Refused])


def read_facts(store: Store, folder: str, name: str) -> pa.Table:
    """Return what a staged chunk's images are like, without those that cannot be used."""
    table = parquet.read(_read_facts(store, folder, name))
    return table.replace_schema_metadata(None)


def read_kept_facts(
    store: Store, name: str, files: Mapping[str, File], columns: Sequence[str] | None = None
) -> pa.Table:
    """Return the facts of images that a data set has already.

    Args:
        store: the data set's.
        name: the file.
        files: `Manifest.files`, by which the bytes are verified.
        columns: what to read of them, all by default.

    Raises:
        DataError: if the file is missing, damaged, or of another version of this program.
    """
    try:
        table = parquet.read(read_file(store, name, files), columns, _FACTS)
    except NotFoundError:
        raise DataError(f"{store.uri} has lost {name}; prepare all images again.") from None
    except pa.ArrowException as error:
        raise DataError(
            f"{store.uri}/{name} is damaged ({shortened(str(error))}); prepare all images again."
        ) from None
    noted = table.schema.metadata or {}
    if noted.get(_FORMAT, b"") != str(FORMAT).encode():
        raise DataError(
            f"Images can be compared with what this version of mtil has noted, but {store.uri} was "
            "prepared by another; prepare all images again, to another target."
        )
    table = table.replace_schema_metadata(None)
    return table if _DESCRIBED in noted or columns is not None else _described_again(table)


def _described_again(table: pa.Table) -> pa.Table:
    """Describe the images of facts again that an earlier version described with their margins."""
    side = duplicates.SIDE
    thumbs = shards.pixels(table.column("thumb")).reshape(-1, side, side)
    found = [duplicates.describe(thumb) for thumb in thumbs]
    for name, values in (
        ("hashes", [description.hashes.tobytes() for description in found]),
        ("thumb", [description.thumb.tobytes() for description in found]),
    ):
        index = table.schema.get_field_index(name)
        column = pa.array(values, table.schema.field(index).type)
        table = table.set_column(index, table.schema.field(index), column)
    return table


def finish(job: FinishJob, listen: Listener | None = None) -> FinishedChunk:
    """Keep the facts of a staged chunk and write its shard, unless it has no image to keep.

    Raises:
        StorageError: if staged files have gone, or their bytes are not those that were staged.
        DataError: if another data set is being written to the target.
    """
    store = open_store(job.target)
    kept = bytes(_read_facts(store, job.folder, job.name))
    store.write(job.facts, kept)
    if job.shard is None:
        return FinishedChunk(None, file_of(kept))
    staged = _read_staged(store, _rows_name(job.folder, job.name), job.folder, job.name)
    encoder = shards.Encoder(shards.schema(job.image_size))
    cells = Counter[tuple[int, int, int]]()
    groups = pq.ParquetFile(pa.BufferReader(staged))
    for number in range(groups.num_row_groups):
        table = _placed(groups.read_row_group(number, use_threads=False), job)
        encoder.add(table)
        columns = (table.column(name).to_pylist() for name in ("fold", "part", "label"))
        cells.update(zip(*columns, strict=True))
    data = encoder.close()
    if not store.create(job.shard, data) and store.read(job.shard) != data:
        raise DataError(
            f"{store.uri}/{job.shard} must have the rows of the same images, but its bytes differ; "
            "delete it and run the same command again, or choose another target."
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
    return FinishedChunk(shard, file_of(kept))


def digest(row: Mapping[str, object], place: Place, image_size: int) -> bytes:
    """Return what an image contributes to the data set's fingerprint."""
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


def fingerprint(digests: Iterable[bytes]) -> str:
    """Return the data set's fingerprint: sha256 over the sorted row digests."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()


def rows_per_chunk(image_size: int, max_bytes: int) -> int:
    """Return how many images a chunk has, so that a shard is about as large as it may be."""
    return max(1, max_bytes // shards.row_bytes(image_size))


def _heard(read: Iterator[Sample | Refused], listen: Listener | None) -> Iterator[Sample | Refused]:
    for found in read:
        if listen is not None:
            listen(1)
        yield found


def _placed(table: pa.Table, job: FinishJob) -> pa.Table:
    """Return the staged rows that are kept, with what has been decided about them."""
    ids = table.column("sample_id").to_pylist()
    kept = [row for row, sample_id in enumerate(ids) if sample_id in job.places]
    places = [job.places[ids[row]] for row in kept]
    table = table.take(pa.array(kept, pa.int64()))
    for name in ("group", "fold", "part"):
        values = [getattr(place, name) for place in places]
        table = table.append_column(
            name, pa.array(values, pa.string() if name == "group" else pa.int8())
        )
    schema = shards.schema(job.image_size)
    return table.select(schema.names).cast(schema)


def _row_schema(image_size: int) -> pa.Schema:
    """Return the columns of staged rows."""
    decided_later = {"group", "fold", "part"}
    schema = shards.schema(image_size)
    return pa.schema([field for field in schema if field.name not in decided_later])


def _rows(samples: Sequence[Sample], image_size: int) -> pa.Table:
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
        schema=_row_schema(image_size),
    )


def _facts(samples: Sequence[Sample]) -> pa.Table:
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
            "given": pa.array([_text(s.record.fold) for s in samples], pa.string()),
        }
    )


def _text(number: int | None) -> str | None:
    """Return a number of any size, which is not checked yet, as what a column can hold."""
    return None if number is None else str(number)


def _rows_name(folder: str, chunk: str) -> str:
    return f"{folder}/rows-{chunk}.parquet"


def facts_name(folder: str, chunk: str) -> str:
    """Return the name of a staged chunk's facts; the chunk is staged once they are there."""
    return f"{folder}/facts-{chunk}.parquet"


def _sealed(data: bytes) -> bytes:
    """Return the bytes of a staged file: what it holds, and the sha256 of that."""
    return data + hashlib.sha256(data).digest()


def _read_facts(store: Store, folder: str, chunk: str) -> memoryview:
    return _read_staged(store, facts_name(folder, chunk), folder, chunk)


def _read_staged(store: Store, name: str, folder: str, chunk: str) -> memoryview:
    """Return what a staged file holds, once its sha256 is that of its bytes.

    Raises:
        StorageError: if the file has gone, or has other bytes twice. Its chunk counts as not
            staged then, so that the same command stages it again.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            data = memoryview(store.read(name))
        except NotFoundError:
            raise StorageError(
                f"Staged rows of {store.uri} have gone; run the same command again."
            ) from None
        held, seal = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
        if hashlib.sha256(held).digest() == seal:
            return held
    store.delete(facts_name(folder, chunk))
    raise StorageError(
        f"{store.uri}/{name} must have the bytes that were staged, but they differ; run the same "
        "command again."
    )
