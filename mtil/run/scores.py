"""The table of scored test images: a row an image and pass. No Ray, no torch."""

import pyarrow as pa

from mtil import parquet
from mtil.documents import shortened
from mtil.errors import DataError, TooLargeError
from mtil.storage import Store

MAX_BYTES = 2**30

PREDICTIONS = pa.schema(
    [
        ("sample_id", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("label", pa.int8()),
        ("fold", pa.int8()),
        ("pass", pa.int8()),
        ("logit", pa.float64()),
        ("probability", pa.float64()),
        ("predicted", pa.bool_()),
        ("tp", pa.int64()),
        ("fp", pa.int64()),
        ("fn", pa.int64()),
        ("dice", pa.float64()),
        ("iou", pa.float64()),
        ("hd95", pa.float64()),
        ("assd", pa.float64()),
        ("missed", pa.bool_()),
        ("false_positive_area", pa.float64()),
        ("hd95_mm", pa.float64()),
        ("assd_mm", pa.float64()),
        ("model_sha256", pa.string()),
        ("fingerprint", pa.string()),
        ("config_digest", pa.string()),
        ("version", pa.string()),
    ]
)
"""A row per image and pass; distances are in pixels of the original image.

In millimetres they are given where the collection says how large a pixel is.
"""

_ORIGINS = {
    "sample_id", "pass", "probability", "fold", "model_sha256", "fingerprint", "config_digest",
    "version",
}  # fmt: skip
"""Columns that every row has a value in, whoever wrote it."""
_TYPES = pa.schema([field.with_nullable(field.name not in _ORIGINS) for field in PREDICTIONS])


def decode(data: bytes) -> pa.Table:
    """Return the table of a file's bytes.

    Raises:
        pyarrow.ArrowException: if they are none, or columns are missing, empty or of other types.
    """
    return parquet.read(data, schema=_TYPES)


def read(store: Store, name: str) -> pa.Table:
    """Read a table of scored images.

    Raises:
        NotFoundError: if there is none.
        DataError: if the file is damaged.
    """
    try:
        return decode(store.read(name, max_bytes=MAX_BYTES))
    except (pa.ArrowException, TooLargeError) as error:
        raise DataError(
            f"{store.uri}/{name} must hold scored images, but does not "
            f"({shortened(str(error))}); delete it and evaluate again."
        ) from None
