"""The table of scored test images: a row per image and pass. Needs neither Ray nor PyTorch."""

import pyarrow as pa

from mtil import parquet
from mtil.documents import shorten_text
from mtil.errors import DataError, TooLargeError
from mtil.storage import Store

MAX_BYTES = 2**30
"""Upper bound on a file of scores, which is held in memory."""

PREDICTIONS_SCHEMA = pa.schema(
    [
        ("sample_id", pa.string()),
        ("group", pa.string()),
        ("source", pa.string()),
        ("objection", pa.string()),
        ("label", pa.int8()),
        ("fold", pa.int8()),
        ("pass", pa.int8()),
        ("logit", pa.float64()),
        ("probability", pa.float64()),
        ("predicted", pa.bool_()),
        ("presence_logit", pa.float64()),
        ("lesion_probability", pa.float64()),
        ("mask_spread", pa.float64()),
        ("probability_spread", pa.float64()),
        ("tp", pa.int64()),
        ("fp", pa.int64()),
        ("fn", pa.int64()),
        ("dice", pa.float64()),
        ("iou", pa.float64()),
        ("hd95", pa.float64()),
        ("assd", pa.float64()),
        ("missed", pa.bool_()),
        ("false_positive_area", pa.float64()),
        ("peak", pa.float64()),
        ("peak_inside", pa.bool_()),
        ("best_threshold", pa.float64()),
        ("best_dice", pa.float64()),
        ("half_peak_dice", pa.float64()),
        ("half_dice", pa.float64()),
        ("half_empty", pa.bool_()),
        ("hd95_mm", pa.float64()),
        ("assd_mm", pa.float64()),
        ("model_sha256", pa.string()),
        ("fingerprint", pa.string()),
        ("config_digest", pa.string()),
        ("version", pa.string()),
    ]
)
"""A row per image and pass, with the fields of `MaskScores` and `MapScores`.

Distances are in pixels of the original image.

`mask_spread` and `probability_spread` are the disagreement of several models, and NaN for one.

`objection` says why a published review objects to the image; empty without an objection.

`hd95_mm` and `assd_mm` are in millimetres, and null if the collection states no pixel size.
"""

_REQUIRED = {
    "sample_id", "pass", "probability", "fold", "model_sha256", "fingerprint", "config_digest",
    "version",
}  # fmt: skip
"""Columns without nulls in files of every version."""
_TYPES = pa.schema(
    [field.with_nullable(field.name not in _REQUIRED) for field in PREDICTIONS_SCHEMA]
)


def decode_scores(data: bytes) -> pa.Table:
    """Parse the bytes of a predictions file.

    Raises:
        pyarrow.ArrowException: if the bytes are no Parquet file, or a column is missing, has nulls
            or has a different type.
    """
    return parquet.read_parquet(data, schema=_TYPES)


def read_scores(store: Store, name: str) -> pa.Table:
    """Read a table of scored images.

    Raises:
        NotFoundError: if the file does not exist.
        DataError: if the file is damaged.
    """
    try:
        return decode_scores(store.read(name, max_bytes=MAX_BYTES))
    except (pa.ArrowException, TooLargeError) as error:
        raise DataError(
            f"{store.uri}/{name} must hold scored images, but does not "
            f"({shorten_text(str(error))}); delete it and evaluate again."
        ) from None
