"""Image files to arrays and back: gray pixels, masks, and their working size."""

import io
import struct
import warnings
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mtil.data import dicom
from mtil.errors import DataError

# What is odd in a file is refused below in a sentence or does not matter; the decoders' own words
# about it would stand between. Here, since what sets filters for a while is not safe in threads.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
"""Formats that are tried; those that run programs, such as EPS, are not among them."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".dcm")
"""How the names of image files end."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that an image in a 16-bit file may have."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow raises on damaged files."""


def read_gray(data: bytes, name: str) -> Gray:
    """Decode an image file to gray pixels (h, w).

    Gray, colour, palette, 1-bit and 16-bit images are read, and DICOM single frames. What is
    transparent is black, unless nothing is opaque. Files of 16 bits often hold fewer: they are
    scaled to 8 by the least of 8, 10, 12, 14 and 16 bits that holds their largest value, so that
    an image always gives the same pixels, whatever stands beside it.

    Args:
        data: the file's bytes.
        name: what to call it in an error.

    Raises:
        DataError: if it is damaged, too large, or of another kind.
    """
    if dicom.is_dicom(data):
        frame = dicom.read_frame(data, name, max_pixels=_max_pixels())
        return np.array(Image.fromarray(frame).convert("L"))
    image = _open(data, name)
    if image.mode.startswith("I"):
        return _scaled(np.asarray(image))
    if image.mode == "F":
        raise DataError(
            f"An image must have integer pixels, but {name} has floating-point ones; "
            "convert it to 8 or 16 bits."
        )
    if image.has_transparency_data:
        return _on_black(image.convert("RGBA"))
    if image.mode == "P":
        image = image.convert("RGB")
    return np.array(image.convert("L"))


def read_mask(data: bytes, name: str) -> Mask:
    """Decode a mask file (h, w): whatever is neither black nor transparent is lesion.

    What is transparent counts, too, if nothing is opaque. In JPEG files, whose edges ring, lesion
    is whatever is brighter than half.

    Raises:
        DataError: if it is damaged, too large, or no image.
    """
    if dicom.is_dicom(data):
        frame = dicom.read_frame(data, name, max_pixels=_max_pixels())
        return np.asarray(frame.reshape(*frame.shape[:2], -1).any(axis=2))
    image = _open(data, name)
    if image.mode.startswith(("I", "F")):
        return np.asarray(image) > 0
    least = 128 if image.format == "JPEG" else 1
    bands = (image if image.mode in ("1", "L") else image.convert("RGB")).split()
    mask = np.asarray(np.logical_or.reduce([np.asarray(band) >= least for band in bands]))
    if image.has_transparency_data:
        opaque = np.asarray(image.convert("RGBA").getchannel("A")) > 0
        return mask & opaque if opaque.any() else mask
    return mask


def read_coloured_mask(data: bytes, name: str, colour: str) -> Mask:
    """Decode a mask file (h, w) that is red or green by the lesion's class, and take one of them.

    What is neither counts as well, so that a white mask is taken as it is.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        colour: `red` or `green`.

    Raises:
        DataError: if there is more of the other colour; see `read_mask` for others.
    """
    mask = read_mask(data, name)
    bands = np.asarray(_open(data, name).convert("RGB"), np.int16)
    lead = bands[..., 0] - bands[..., 1]
    own, other = (lead > 0, lead < 0) if colour == "red" else (lead < 0, lead > 0)
    if (mask & other).sum() > (mask & own).sum():
        raise DataError(
            f"A lesion of this class must be {colour} in its mask, but {name} has more of the "
            "other class's colour; correct the mask or the label."
        )
    return mask & ~other


def resize_image(gray: Gray, size: int) -> Gray:
    """Resize gray pixels to a square of `size`, antialiased: what training and prediction see."""
    return np.array(Image.fromarray(gray).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: Mask, size: int) -> Mask:
    """Resize a mask to a square of `size`; a lesion too small for it keeps one pixel."""
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(soft.resize((size, size), Image.Resampling.BILINEAR)) >= 128
    if mask.any() and not resized.any():
        row, column = (
            int(np.median(at) * size / side)
            for at, side in zip(np.nonzero(mask), mask.shape, strict=True)
        )
        resized[row, column] = True
    return resized


def encode_mask_png(mask: Mask) -> bytes:
    """Return a 1-bit PNG of a mask."""
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, format="PNG")
    return sink.getvalue()


def decode_mask_png(data: bytes) -> Mask:
    """Return the mask (h, w) of a 1-bit PNG."""
    return np.array(Image.open(io.BytesIO(data)), dtype=np.bool_)


def pack_mask(mask: Mask) -> bytes:
    """Return a mask as bits, row by row, eight pixels a byte."""
    return np.packbits(mask).tobytes()


def unpack_mask(data: bytes, size: int) -> Mask:
    """Return the square mask of `size` that `pack_mask` packed."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size * size)
    return bits.reshape(size, size).astype(np.bool_)


def _open(data: bytes, name: str) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            if image.format == "PNG":
                image.verify()  # checksums, which loading skips
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"An image must have at most {_max_pixels():,} pixels, but {name} claims more; "
            "make it smaller."
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be read: it is none of {', '.join(FORMATS)}, or is damaged; "
            "fetch or save it again."
        ) from None
    except DataError:
        raise
    except _BROKEN as error:
        raise DataError(
            f"{name} cannot be read: {_reason(error)}; fetch or save it again."
        ) from None
    return image


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > _max_pixels():
        raise DataError(
            f"An image must have at most {_max_pixels():,} pixels, but {name} has "
            f"{image.width} x {image.height}; make it smaller."
        )


def _max_pixels() -> int:
    return Image.MAX_IMAGE_PIXELS or 2**27


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _scaled(pixels: npt.NDArray[np.generic]) -> Gray:
    sixteen = np.clip(pixels.astype(np.int64), 0, 65535)
    largest = int(sixteen.max())
    full = 2 ** next(bits for bits in DEPTHS if largest < 2**bits) - 1
    return np.asarray((sixteen * 255 + full // 2) // full, dtype=np.uint8)


def _on_black(image: Image.Image) -> Gray:
    """Return the gray pixels of an RGBA image before black."""
    gray = np.array(image.convert("RGB").convert("L"))
    alpha = np.asarray(image.getchannel("A"), dtype=np.uint16)
    if not alpha.any():  # some programs leave it unset
        return gray
    return ((gray * alpha + 127) // 255).astype(np.uint8)
