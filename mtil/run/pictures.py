"""Pictures of scored images for people: masks, maps and contributions. Needs no PyTorch.

A table of pictures lies beside the table of scores, with a row per image and pass.
"""

import hashlib
import io

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from mtil import parquet
from mtil.documents import shorten_text
from mtil.errors import DataError, NotFoundError, TooLargeError
from mtil.storage import Store

MAX_IMAGES = 2000
"""Approximate number of images with pictures in a larger data set. A gallery needs no more."""
MASK_SIDE = 256
"""Side of a mask in pixels; like stored images, masks are squeezed to a square."""
MAP_SIDE = 96
"""Side of a lesion map in pixels."""
_LEVELS = 15
"""Steps of probability in a map: coarse enough to compress, fine enough for the eye."""
_MAX_BYTES = 2**30

PICTURE_FIELDS = (
    pa.field("mask_png", pa.binary()),
    pa.field("map_png", pa.binary()),
    pa.field("evidence_png", pa.binary()),
)
"""Columns of pictures. `mask_png` is the predicted mask, a 1-bit PNG; `map_png` the lesion
probability, an 8-bit PNG; `evidence_png` what each place adds to the malignancy logit, an 8-bit PNG
in which 128 is nothing and 255 the largest contribution of the image. Null without a picture."""

PICTURES_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string(), nullable=False),
        pa.field("pass", pa.int8(), nullable=False),
        *PICTURE_FIELDS,
    ]
)


def has_picture(sample_id: str, num_images: int) -> bool:
    """Return whether an image of a data set of `num_images` gets pictures.

    The choice depends on the id alone: about `MAX_IMAGES` images of a larger data set.
    """
    if num_images <= MAX_IMAGES:
        return True
    number = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:8])
    return number < MAX_IMAGES / num_images * 2**64


def draw_mask(mask: npt.NDArray[np.bool_]) -> bytes:
    """Return a mask (h, w) as a square 1-bit PNG."""
    picture = Image.fromarray(mask).resize((MASK_SIDE, MASK_SIDE), Image.Resampling.NEAREST)
    return _encode(picture)


def draw_map(lesion: npt.NDArray[np.float32]) -> bytes:
    """Return a map of probabilities (h, w) as a square 8-bit PNG."""
    picture = Image.fromarray(lesion.astype(np.float32)).resize((MAP_SIDE, MAP_SIDE))
    levels = np.rint(np.asarray(picture).clip(0, 1) * _LEVELS) * (255 // _LEVELS)
    return _encode(Image.fromarray(levels.astype(np.uint8)))


def draw_evidence(contributions: npt.NDArray[np.float32]) -> bytes:
    """Return contributions (h, w) of either sign as an 8-bit PNG; 128 is nothing."""
    largest = float(np.abs(contributions).max()) or 1.0
    levels = np.rint(128 + contributions / largest * 127)
    return _encode(Image.fromarray(levels.astype(np.uint8)))


def decode(png: bytes) -> npt.NDArray[np.uint8]:
    """Return the pixels (h, w) of a picture; a mask has 0 and 255."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def read_pictures(store: Store, name: str) -> pa.Table | None:
    """Read a table of pictures; None if the file does not exist.

    Raises:
        DataError: if the file is damaged.
    """
    try:
        return parquet.read_parquet(store.read(name, max_bytes=_MAX_BYTES), schema=PICTURES_SCHEMA)
    except NotFoundError:
        return None
    except (pa.ArrowException, TooLargeError) as error:
        raise DataError(
            f"{store.uri}/{name} must hold pictures of scored images, but does not "
            f"({shorten_text(str(error))}); delete it and evaluate again."
        ) from None


def _encode(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, format="PNG", optimize=True)
    return sink.getvalue()
