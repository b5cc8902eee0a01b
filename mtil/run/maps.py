"""Map shards: lesion-probability maps of the images in a data shard, read by the next round.

A map shard is a Parquet file of ids and maps. A map shard belongs to a data shard, and the
reader of the data shard joins the maps by id. A map shard contains origin and digest: readers
reject a damaged file and a file of a different origin.

A map holds the lesion probability at `STRIDE`, the finest stride of the network, in `NUM_LEVELS`
levels.
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
from mtil.documents import Document, format_value
from mtil.errors import MapError, NotFoundError, RunError, TooLargeError
from mtil.storage import Store

# The network interpolates the finest logits to the input size. Storing a map at half the input size
# therefore costs only 0.0017 on average.
STRIDE = 2
"""Stride of a map: the finest stride of the network's logits."""
# On BUSI at 256 pixels a map takes 2.9 KiB, against 3.5 as PNG and 3.9 with 256 levels. A core
# decodes and verifies 20,000 maps a second. The rounding error, 0.0015 on average, is smaller than
# the loss by halving the map.
NUM_LEVELS = 128
"""Number of probability levels in a map."""
MAX_BYTES = 2**30
"""Upper bound on a map shard, which is held in memory."""

_FORMAT = 2
_KEY = b"mtil_map"
_COMPRESSION, _COMPRESSION_LEVEL = "zstd", 6


@dataclass(frozen=True, kw_only=True)
class MapOrigin:
    """The source of the maps in a shard. The version of mtil is ignored in comparisons."""

    fingerprint: str
    """Fingerprint of the data set."""
    shard: str
    """Path of the data shard."""
    model_sha256: str
    config_digest: str
    round: int
    fold: int
    part: int | None = None
    """The inner part held out from the model; None for the main model of the fold."""
    size: Annotated[int, Field(ge=1, le=4096)]
    """Side length of the maps, in pixels."""
    version: str = field(default=__version__, compare=False)


_ORIGINS: TypeAdapter[MapOrigin] = TypeAdapter(MapOrigin)
_TYPES = pa.schema([pa.field("sample_id", pa.string(), nullable=False)])


def default_map_size(image_size: int) -> int:
    """Return the side length of the maps for network inputs of `image_size` pixels."""
    return image_size // STRIDE


def quantise_probabilities(probability: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Convert probabilities in [0, 1] to bytes from 0 to 255, rounded to `NUM_LEVELS` levels."""
    levels = np.rint(probability * (NUM_LEVELS - 1))
    rounded: npt.NDArray[np.uint8] = np.rint(levels * (255 / (NUM_LEVELS - 1))).astype(np.uint8)
    return rounded


def encode_maps(sample_ids: Sequence[str], maps: npt.NDArray[np.uint8], origin: MapOrigin) -> bytes:
    """Return the bytes of a map shard; equal arguments give equal bytes.

    Args:
        sample_ids: ids of the images, in the order of the data shard.
        maps: (rows, size, size), from `quantise_probabilities`.
        origin: source of the maps.
    """
    assert maps.shape == (len(sample_ids), origin.size, origin.size)
    flat = np.ascontiguousarray(maps).reshape(len(maps), origin.size**2)
    header = {
        "format": _FORMAT,
        "origin": asdict(origin),
        "sha256": _digest(origin, sample_ids, flat),
    }
    schema = pa.schema(
        [
            pa.field("sample_id", pa.string(), nullable=False),
            pa.field("map", pa.binary(origin.size**2), nullable=False),
        ],
        metadata={_KEY: json.dumps(header)},
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


def decode_maps(data: bytes) -> tuple[MapOrigin, pa.Table]:
    """Return the origin of a map shard and a table of `sample_id` and `map`.

    Raises:
        ValueError: if the bytes are not a complete map shard of the current format.
    """
    try:
        table = parquet.read_parquet(data, schema=_TYPES)
        document = Document("A map shard", "write it again")
        header = document.object((table.schema.metadata or {})[_KEY])
        if header["format"] != _FORMAT:
            raise ValueError(f"format {format_value(header['format'])}")
        origin = document.validate(_ORIGINS, header["origin"])
        if table.schema.field("map").type != pa.binary(origin.size**2):
            raise ValueError("maps of another size")
        digest = _digest(origin, table.column("sample_id").to_pylist(), pixels(table.column("map")))
        if digest != header["sha256"]:
            raise ValueError("another digest")
    except (pa.ArrowException, OSError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    return origin, table.replace_schema_metadata()


def read_maps(
    store: Store, path: str, expected: MapOrigin, sample_ids: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """Read a map shard and verify origin and images.

    Args:
        store: store of the run.
        path: path of the map shard.
        expected: the origin required.
        sample_ids: the ids required, in any order; all further ids are refused.

    Returns:
        A table of `sample_id` and `map`.

    Raises:
        MapError: if the map shard is missing or damaged, or has a different origin or other images.
    """
    name = f"Map shard {path} of {store.uri}"
    try:
        data = store.read(path, max_bytes=MAX_BYTES)
    except NotFoundError:
        raise MapError(f"{name} is missing; it must be written again.") from None
    except TooLargeError:
        data = b""
    try:
        origin, table = decode_maps(data)
    except ValueError:
        raise MapError(f"{name} is damaged; it must be written again.") from None
    for item in fields(MapOrigin):
        value, expected_value = getattr(origin, item.name), getattr(expected, item.name)
        if item.compare and value != expected_value:
            raise MapError(
                f"{name} must have the {item.name} {expected_value!r}, but has {value!r}; "
                "it must be written again."
            )
    map_ids, row_ids = table.column("sample_id").to_pylist(), sample_ids.to_pylist()
    if len(map_ids) != len(row_ids) or set(map_ids) != set(row_ids):
        differing_id = next(iter(sorted(set(map_ids) ^ set(row_ids))), "one twice")
        raise MapError(
            f"{name} must hold the maps of {len(row_ids)} images, but holds {len(map_ids)} "
            f"({differing_id} differs); it must be written again."
        )
    return table


def join_maps(
    table: pa.Table, maps: Sequence[pa.Table], needed: npt.NDArray[np.integer[Any]]
) -> pa.Table:
    """Add the maps of a data shard's rows as a column `prior`, joined by id. Row order is kept.

    Args:
        table: rows of a data shard, with at least `sample_id`.
        maps: tables from `read`: a single table, or a table per inner part.
        needed: positions of rows that must have a map, such as training rows. A row without a map
            elsewhere gets zeros, which the network reads as no prior.

    Raises:
        RunError: if a needed row has no map, a row has two maps, or a map has no row.
    """
    ids = table.column("sample_id")
    width = maps[0].schema.field("map").type.byte_width
    map_ids = pa.concat_arrays(
        [chunk for part in maps for chunk in part.column("sample_id").chunks] or [_NO_IDS]
    )
    positions = pa.compute.index_in(ids, value_set=map_ids).combine_chunks()  # null: no map
    num_joined = len(positions) - positions.null_count
    if num_joined != len(map_ids) or len(positions.unique().drop_null()) != num_joined:
        raise RunError(
            f"Every map must belong to one row of its data shard, but of {len(map_ids)} maps "
            f"{num_joined} found theirs; name another --run."
        )
    missing = np.flatnonzero(positions.is_null().to_numpy(zero_copy_only=False)[needed])
    if len(missing):
        first = ids[int(needed[missing[0]])].as_py()
        raise RunError(
            f"Every image that is trained on must have a map of the round before, but "
            f"{len(missing)} of {len(needed)} have none (the first is {first}); name another --run."
        )
    # Null positions point to the last row, all zeros.
    no_map = np.zeros((1, width), np.uint8)
    all_maps = np.concatenate([*(pixels(part.column("map")) for part in maps), no_map])
    prior = all_maps[positions.fill_null(len(map_ids)).to_numpy()]
    joined = table.append_column("prior", _fixed_size(prior))
    assert joined.num_rows == table.num_rows
    return joined


# `pa.array([])` would make pyarrow look for pandas.
_NO_IDS = pa.nulls(0, pa.string())


def _fixed_size(rows: npt.NDArray[np.uint8]) -> pa.FixedSizeBinaryArray:
    """View bytes (rows, width) as a column, without a copy."""
    return pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(rows.shape[1]), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))]
    )


def _digest(origin: MapOrigin, sample_ids: Sequence[str], maps: npt.NDArray[np.uint8]) -> str:
    head = json.dumps([asdict(origin), list(sample_ids)], sort_keys=True)
    digest = hashlib.sha256(head.encode())
    digest.update(np.ascontiguousarray(maps).data)
    return digest.hexdigest()
