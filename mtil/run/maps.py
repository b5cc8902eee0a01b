"""Map shards: what a model says of a data shard's images, kept for the next round's training.

A map shard is a Parquet file of ids and maps, aligned one to one with a shard of the data set, so
that maps join their images inside the task that reads the shard. It names its origin and verifies
itself: no other file, and no damaged one, is taken for it.

A map is lesion probability at the network's finest stride, which its logits are doubled from, in
`NUM_LEVELS` levels. On BUSI at 256 pixels that is 2.9 KiB a map, less than as PNG (3.5) or with 256
levels (3.9), a core decodes and verifies twenty thousand a second, and the rounding (0.0015 on
average) stays below what halving the map costs (0.0017).
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from pydantic import Field, TypeAdapter

from mtil import __version__, parquet
from mtil.data.dataset.shards import ROW_GROUP_ROWS, pixels
from mtil.documents import Document, shown
from mtil.errors import MapError, NotFoundError, RunError, TooLargeError
from mtil.storage import Store

STRIDE = 2
"""Of the network's finest logits."""
NUM_LEVELS = 128
MAX_BYTES = 2**30
"""Of a map shard, which is held in memory."""

_FORMAT = 2
_KEY = b"mtil_map"
_COMPRESSION, _COMPRESSION_LEVEL = "zstd", 6


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the maps of a shard come from. Two origins are equal whatever version wrote them."""

    fingerprint: str
    """The data set's."""
    shard: str
    """Path of the data set's shard."""
    model_sha256: str
    config_digest: str
    round: int
    fold: int
    part: int | None = None
    """The inner part that the model has not seen; None for the fold's main model."""
    size: Annotated[int, Field(ge=1, le=4096)]
    """Side of the maps in pixels."""
    version: str = field(default=__version__, compare=False)


_ORIGINS: TypeAdapter[Origin] = TypeAdapter(Origin)
_TYPES = pa.schema([pa.field("sample_id", pa.string(), nullable=False)])


def default_size(image_size: int) -> int:
    """Return the side of the maps of a network with square inputs of a side."""
    return image_size // STRIDE


def quantised(probability: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return probabilities as bytes, rounded to the nearest of the levels; 0 is 0 and 1 is 255."""
    levels = np.rint(probability * (NUM_LEVELS - 1))
    rounded: npt.NDArray[np.uint8] = np.rint(levels * (255 / (NUM_LEVELS - 1))).astype(np.uint8)
    return rounded


def encode(sample_ids: Sequence[str], maps: npt.NDArray[np.uint8], origin: Origin) -> bytes:
    """Return a map shard; the same maps give the same bytes.

    Args:
        sample_ids: of the images, in the order of the data shard.
        maps: (rows, size, size) as `quantised` makes them.
        origin: where they come from.
    """
    assert maps.shape == (len(sample_ids), origin.size, origin.size)
    flat = np.ascontiguousarray(maps).reshape(len(maps), origin.size**2)
    about = {
        "format": _FORMAT,
        "origin": asdict(origin),
        "sha256": _digest(origin, sample_ids, flat),
    }
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("map", pa.binary(origin.size**2), nullable=False),
        ],
        metadata={_KEY: json.dumps(about)},
    )
    columns = [pa.array(sample_ids, pa.string()), _fixed_size(flat)]
    sink = io.BytesIO()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=schema),
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression=_COMPRESSION,
        compression_level=_COMPRESSION_LEVEL,
        use_dictionary=False,
        write_statistics=False,
    )
    return sink.getvalue()


def decode(data: bytes) -> tuple[Origin, pa.Table]:
    """Return a map shard's origin and its columns `sample_id` and `map`.

    Raises:
        ValueError: if the bytes are not a whole map shard of this format.
    """
    try:
        table = parquet.read(data, schema=_TYPES)
        document = Document("A map shard", "write it again")
        about = document.object((table.schema.metadata or {})[_KEY])
        if about["format"] != _FORMAT:
            raise ValueError(f"format {shown(about['format'])}")
        origin = document.validate(_ORIGINS, about["origin"])
        if table.schema.field("map").type != pa.binary(origin.size**2):
            raise ValueError("maps of another size")
        found = _digest(origin, table.column("sample_id").to_pylist(), pixels(table.column("map")))
        if found != about["sha256"]:
            raise ValueError("another digest")
    except (pa.ArrowException, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return origin, table.replace_schema_metadata()


def read(
    store: Store, path: str, expected: Origin, sample_ids: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """Read a map shard that must have an origin and the maps of some images, in any order.

    Args:
        store: the run's.
        path: the map shard's.
        expected: its origin.
        sample_ids: of the data shard's rows that it must hold maps of, and no others.

    Returns:
        its columns `sample_id` and `map`.

    Raises:
        MapError: if it is missing, damaged, of another origin, or holds maps of other images.
    """
    name = f"Map shard {path} of {store.uri}"
    try:
        data = store.read(path, max_bytes=MAX_BYTES)
    except NotFoundError:
        raise MapError(f"{name} is missing; it must be written again.") from None
    except TooLargeError:
        data = b""
    try:
        origin, table = decode(data)
    except ValueError:
        raise MapError(f"{name} is damaged; it must be written again.") from None
    for item in fields(Origin):
        found, wanted = getattr(origin, item.name), getattr(expected, item.name)
        if item.compare and found != wanted:
            raise MapError(
                f"{name} must have the {item.name} {wanted!r}, but has {found!r}; "
                "it must be written again."
            )
    held, rows = table.column("sample_id").to_pylist(), sample_ids.to_pylist()
    if len(held) != len(rows) or set(held) != set(rows):
        odd = next(iter(sorted(set(held) ^ set(rows))), "one twice")
        raise MapError(
            f"{name} must hold the maps of {len(rows)} images, but holds {len(held)} "
            f"({odd} differs); it must be written again."
        )
    return table


def join(
    table: pa.Table, maps: Sequence[pa.Table], needed: npt.NDArray[np.integer[Any]]
) -> pa.Table:
    """Return a data shard's rows with the map of each as a column `prior`.

    Maps are found by id within this one shard; rows stay where they are.

    Args:
        table: rows of a data shard with at least `sample_id`.
        maps: of its map shards, as `read` returns them: one, or one for each inner part.
        needed: positions of the rows that must have a map, as those of the training role; any
            other row without one gets zeros, which means that it has none.

    Raises:
        RunError: if a needed row has no map, a row has two, or a map has no row.
    """
    ids = table.column("sample_id")
    width = maps[0].schema.field("map").type.byte_width
    map_ids = pa.concat_arrays(
        [chunk for part in maps for chunk in part.column("sample_id").chunks] or [_NO_IDS]
    )
    places = pa.compute.index_in(ids, value_set=map_ids).combine_chunks()  # null: no map
    num_joined = len(places) - places.null_count
    if num_joined != len(map_ids) or len(places.unique().drop_null()) != num_joined:
        raise RunError(
            f"Every map must belong to one row of its data shard, but of {len(map_ids)} maps "
            f"{num_joined} found theirs; name another --run."
        )
    missing = np.flatnonzero(places.is_null().to_numpy(zero_copy_only=False)[needed])
    if len(missing):
        first = ids[int(needed[missing[0]])].as_py()
        raise RunError(
            f"Every image that is trained on must have a map of the round before, but "
            f"{len(missing)} of {len(needed)} have none (the first is {first}); name another --run."
        )
    none = np.zeros((1, width), np.uint8)
    held = np.concatenate([*(pixels(part.column("map")) for part in maps), none])
    prior = held[places.fill_null(len(map_ids)).to_numpy()]
    joined = table.append_column("prior", _fixed_size(prior))
    assert joined.num_rows == table.num_rows
    return joined


_NO_IDS = pa.nulls(0, pa.string())  # an array of a list would have pyarrow look for pandas


def _fixed_size(rows: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """Return bytes (rows, width) as a column, without a copy."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )


def _digest(origin: Origin, sample_ids: Sequence[str], maps: npt.NDArray[np.uint8]) -> str:
    head = json.dumps([asdict(origin), list(sample_ids)], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(maps).data)
    return digest.hexdigest()
