"""One shard: a Parquet file of pre-sized rows, verified against its sha256 when it is read.

Pixels are fixed-size binary, since Parquet stores 8-bit integers in four bytes each; reading an
image is then a copy, not a decode. Masks, a ninth of the pixels' bytes, shrink to almost nothing.
"""

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
from mtil.documents import shortened
from mtil.errors import DataError, NotFoundError
from mtil.storage import Store

ROW_GROUP_ROWS = 256

_OTHER_BYTES = 1536
"""What a row takes beside its pixels, the mask at the original size above all."""

_thread = threading.local()

_TYPES = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("fold", pa.int8(), nullable=False),
        pa.field("part", pa.int8(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("mask_png", pa.binary(), nullable=False),
    ]
)
"""Of the columns whose type does not depend on the images' size."""

LABELS = ("benign", "malignant", "normal")
"""Class names by label: 0 benign, 1 malignant, 2 normal."""
HOLDOUT = -1
"""The fold of images that are kept for a final test: no fold trains, validates or tests on them."""


def schema(image_size: int) -> pa.Schema:
    """Return the columns of a shard whose images are `image_size` pixels square."""
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


def row_bytes(image_size: int) -> int:
    """Return about how many bytes a row takes in memory."""
    return image_size**2 + image_size**2 // 8 + _OTHER_BYTES


class Encoder:
    """A Parquet file of rows, made a row group at a time; the same rows give the same bytes."""

    def __init__(self, schema: pa.Schema) -> None:
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression={
                name: "none" if name in ("image", "mask_png") else "zstd" for name in schema.names
            },
            use_dictionary=["label", "group", "fold", "part", "source"],
            write_statistics=["sample_id", "label", "fold", "part"],
        )
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def add(self, table: pa.Table) -> None:
        """Add rows; what does not fill a row group waits for more."""
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        if self._num_waiting >= ROW_GROUP_ROWS:
            self._write(self._num_waiting // ROW_GROUP_ROWS * ROW_GROUP_ROWS)

    def close(self) -> bytes:
        """Return the file."""
        if self._num_waiting:
            self._write(self._num_waiting)
        self._writer.close()
        return self._sink.getvalue()

    def _write(self, num_rows: int) -> None:
        table = pa.concat_tables(self._waiting).combine_chunks()
        self._writer.write_table(table.slice(0, num_rows), row_group_size=ROW_GROUP_ROWS)
        rest = table.slice(num_rows)
        self._waiting, self._num_waiting = [rest], rest.num_rows


def encode(table: pa.Table) -> bytes:
    """Return the Parquet file of a table of rows; the same rows give the same bytes."""
    encoder = Encoder(table.schema)
    encoder.add(table)
    return encoder.close()


def read(store: Store, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a shard's rows and verify its bytes.

    Raises:
        DataError: naming the shard, if it is missing or not the one that the manifest names.
    """
    data = _buffer(shard.bytes)
    found, size = hashlib.sha256(), 0
    try:
        for chunk in store.chunks(shard.path):
            found.update(chunk)
            data[size : size + len(chunk)] = chunk[: max(shard.bytes - size, 0)]
            size += len(chunk)
            if size > shard.bytes:
                break
    except NotFoundError:
        raise DataError(
            f"Shard {shard.path} of {store.uri} is missing; prepare the data again."
        ) from None
    if size != shard.bytes or found.hexdigest() != shard.sha256:
        raise DataError(
            f"Shard {shard.path} of {store.uri} must have {shard.bytes} bytes with sha256 "
            f"{shard.sha256[:12]}…, but its {size} bytes differ; prepare the data again."
        )
    try:
        table = parquet.read(data, columns, _TYPES)
        if table.num_rows != shard.rows:
            raise pa.ArrowInvalid(f"it has {table.num_rows} rows")
        _check_pixels(table)
    except pa.ArrowException as error:
        raise DataError(
            f"Shard {shard.path} of {store.uri} must be a Parquet file of {shard.rows} images, but "
            f"is not: {shortened(str(error))}; prepare the data again."
        ) from None
    return table


def _check_pixels(table: pa.Table) -> None:
    """Refuse images and masks that are not the bytes and the bits of one square."""
    for name, per_byte in (("image", 1), ("mask", 8)):
        if name in table.column_names:
            kind = table.schema.field(name).type
            num = kind.byte_width * per_byte if pa.types.is_fixed_size_binary(kind) else 0
            if not num or math.isqrt(num) ** 2 != num or table.column(name).null_count:
                raise pa.ArrowInvalid(f"column {name} must hold squares, but is {kind}")
    if {"image", "mask"} <= set(table.column_names):
        image, mask = (table.schema.field(name).type.byte_width for name in ("image", "mask"))
        if image != 8 * mask:
            raise pa.ArrowInvalid(f"a mask must have {image} bits, but has {8 * mask}")


def _buffer(size: int) -> memoryview:
    """Return bytes that this thread reuses: fresh pages for each shard cost more than the copy.

    Parsing copies the values out, so nothing looks at the buffer after `read` has returned.
    """
    held: bytearray | None = getattr(_thread, "buffer", None)
    if held is None or len(held) < size:
        held = _thread.buffer = bytearray(size)
    return memoryview(held)[:size]


def pixels(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.uint8]:
    """View a fixed-size binary column as a read-only array (rows, bytes)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # an empty column has no chunk
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    width = array.type.byte_width
    flat = np.frombuffer(array.buffers()[1] or b"", np.uint8)
    flat.flags.writeable = False
    start = array.offset * width
    return flat[start : start + len(array) * width].reshape(len(array), width)
