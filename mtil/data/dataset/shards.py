"""Shards: Parquet files of pre-sized rows, verified by sha256 on every read."""

import hashlib
import io
import math
import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtil import parquet
from mtil.data.dataset.manifest import Shard
from mtil.documents import shorten_text
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

ROW_GROUP_ROWS = 256

_OTHER_BYTES = 1536
"""Bytes of a row without its pixels; mostly the mask at the original size."""

_thread = threading.local()

LABELS = ("benign", "malignant", "normal")
"""Class names by label: 0 benign, 1 malignant, 2 normal."""
HOLDOUT = -1
"""Fold number of images reserved for a final test and used by no fold."""

OBJECTION = "objection"
"""Key of `meta`: why a published review of the collection objects to the image."""


def shard_schema(image_size: int) -> pa.Schema:
    """Return the schema of a shard with images of `image_size` by `image_size` pixels."""
    # Pixels are fixed-size binary: Parquet stores 8-bit integers in four bytes, and reading an
    # image is then a copy instead of a decode.
    return pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("image", pa.binary(image_size**2), nullable=False),
            pa.field("mask", pa.binary(image_size**2 // 8), nullable=False),
            pa.field("label", pa.int8(), nullable=False),
            pa.field("group", pa.string(), nullable=False),
            pa.field("fold", pa.int8(), nullable=False),
            pa.field("part", pa.int8(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("mask_png", pa.binary(), nullable=False),
            pa.field("sha256", pa.binary(32), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("pixel_size", pa.float32()),
            pa.field("meta", pa.map_(pa.string(), pa.string()), nullable=False),
        ]
    )


_TYPES = pa.schema(
    field
    for field in shard_schema(8)
    if field.name in {"sample_id", "label", "group", "fold", "part", "height", "width", "mask_png"}
)
"""Types of the required columns that do not depend on the image size."""


def row_bytes(image_size: int) -> int:
    """Return the approximate size of a row in memory, in bytes."""
    return image_size**2 + image_size**2 // 8 + _OTHER_BYTES


class ShardEncoder:
    """Encodes rows as a Parquet file, one row group at a time; equal rows give equal bytes."""

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = io.BytesIO()
        # Images stay uncompressed: reading is a copy. `mask_png` is compressed already. The bit
        # masks, a ninth of the pixel bytes, shrink to almost nothing.
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression={
                name: "none" if name in ("image", "mask_png") else "zstd" for name in schema.names
            },
            use_dictionary=["label", "group", "fold", "part", "source"],
            write_statistics=["sample_id", "label", "fold", "part"],
        )
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def add(self, table: pa.Table) -> None:
        """Add rows; an incomplete row group is held until the next call."""
        self._pending.append(table)
        self._num_pending += table.num_rows
        if self._num_pending >= ROW_GROUP_ROWS:
            self._write(self._num_pending // ROW_GROUP_ROWS * ROW_GROUP_ROWS)

    def close(self) -> bytes:
        """Write the remaining rows and return the file."""
        if self._num_pending:
            self._write(self._num_pending)
        self._writer.close()
        return self._sink.getvalue()

    def _write(self, num_rows: int) -> None:
        table = pa.concat_tables(self._pending).combine_chunks()
        self._writer.write_table(table.slice(0, num_rows), row_group_size=ROW_GROUP_ROWS)
        rest = table.slice(num_rows)
        self._pending, self._num_pending = [rest], rest.num_rows


def encode_shard(table: pa.Table) -> bytes:
    """Return the Parquet file of a table; equal rows give equal bytes."""
    encoder = ShardEncoder(table.schema)
    encoder.add(table)
    return encoder.close()


def read_shard(store: Store, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of a shard, verified against size and digest in the manifest.

    Args:
        store: store of the data set.
        shard: the manifest entry.
        columns: names of the columns to return; all columns if None.

    Raises:
        DataError: if the shard is missing or differs from the manifest.
    """
    data = _thread_buffer(shard.bytes)
    digest, size = hashlib.sha256(), 0
    try:
        for chunk in store.chunks(shard.path):
            digest.update(chunk)
            data[size : size + len(chunk)] = chunk[: max(shard.bytes - size, 0)]
            size += len(chunk)
            # A longer file is already wrong; the rest need not be downloaded.
            if size > shard.bytes:
                break
    except NotFoundError:
        raise DataError(
            f"Shard {shard.path} of {store.uri} is missing; prepare the data again."
        ) from None
    if size != shard.bytes or digest.hexdigest() != shard.sha256:
        raise DataError(
            f"Shard {shard.path} of {store.uri} must have {shard.bytes} bytes with sha256 "
            f"{shard.sha256[:12]}…, but the {size} bytes differ; prepare the data again."
        )
    try:
        table = parquet.read_parquet(data, columns, _TYPES)
        if table.num_rows != shard.rows:
            raise pa.ArrowInvalid(f"it has {table.num_rows} rows")
        _check_pixels(table)
    except pa.ArrowException as error:
        raise DataError(
            f"Shard {shard.path} of {store.uri} must be a Parquet file of {shard.rows} images, but "
            f"is not: {shorten_text(str(error))}; prepare the data again."
        ) from None
    return table


def _check_pixels(table: pa.Table) -> None:
    """Raise `ArrowInvalid` unless images and masks are squares of equal side."""
    for name, per_byte in (("image", 1), ("mask", 8)):
        if name in table.column_names:
            column_type = table.schema.field(name).type
            num_pixels = (
                column_type.byte_width * per_byte
                if pa.types.is_fixed_size_binary(column_type)
                else 0
            )
            if (
                not num_pixels
                or math.isqrt(num_pixels) ** 2 != num_pixels
                or table.column(name).null_count
            ):
                raise pa.ArrowInvalid(f"column {name} must hold squares, but is {column_type}")
    if {"image", "mask"} <= set(table.column_names):
        image_bytes, mask_bytes = (
            table.schema.field(name).type.byte_width for name in ("image", "mask")
        )
        if image_bytes != 8 * mask_bytes:
            raise pa.ArrowInvalid(f"a mask must have {image_bytes} bits, but has {8 * mask_bytes}")


def _thread_buffer(size: int) -> memoryview:
    """Return a view of `size` bytes, overwritten by the next call in the thread."""
    # Fresh memory pages for every shard cost more than the copy. Reuse is safe: parsing copies the
    # values, and nothing refers to the buffer after `read` has returned.
    buffer: bytearray | None = getattr(_thread, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _thread.buffer = bytearray(size)
    return memoryview(buffer)[:size]


def pixels(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as a read-only array (rows, bytes)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    # `combine_chunks` returns a chunked array for an empty column, which has no chunk.
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width = array.type.byte_width
    flat = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    flat.flags.writeable = False
    start = array.offset * width
    return flat[start : start + len(array) * width].reshape(len(array), width)
