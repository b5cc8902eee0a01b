"""Read the stored images of a data set."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mtil.data.dataset.batches import to_squares
from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import pixels, read_shard
from mtil.storage import Store

_COLUMNS = ("sample_id", "image", "mask", "label", "source", "height", "width")


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as the data set holds it: squeezed to a square."""

    sample_id: str
    label: int
    source: str
    """Name of the collection; empty in a data set of a single one."""
    height: int
    width: int
    gray: npt.NDArray[np.uint8]
    """(s, s) gray values."""
    mask: npt.NDArray[np.bool_]
    """(s, s) reference mask."""


def read_images(
    store: Store, manifest: Manifest, wanted: Collection[str] | None = None
) -> Iterator[StoredImage]:
    """Yield images of a data set, shard by shard.

    Args:
        store: the data set.
        manifest: the version.
        wanted: sample ids; None for all images.

    Raises:
        DataError: if a shard is missing or damaged.
    """
    for shard in manifest.shards:
        table = read_shard(store, shard, _COLUMNS)
        names = table["sample_id"].to_pylist()
        chosen = [index for index, name in enumerate(names) if wanted is None or name in wanted]
        table = table.take(pa.array(chosen, pa.int64()))
        images, masks = (pixels(table[name]) for name in ("image", "mask"))
        squares = to_squares(images)
        bits = np.unpackbits(masks, axis=1).reshape(squares.shape).astype(bool)
        facts = table.drop_columns(["image", "mask"]).to_pylist()
        for row, gray, mask in zip(facts, squares, bits, strict=True):
            source = manifest.name_source(row.pop("source"))
            yield StoredImage(gray=np.array(gray), mask=mask, source=source, **row)
