"""Image files to arrays and back: gray pixels, masks, and their working size."""

import io
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtil.data.images import dicom, masks
from mtil.data.images.masks import MaskReading
from mtil.data.images.pictures import Bands, max_pixels, open_picture
from mtil.errors import DataError

Gray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".dcm")
"""How the names of image files end."""


class ImageFile(Protocol):
    """An image file whose header is checked and whose pixels are not decoded yet."""

    @property
    def num_pixels(self) -> int:
        """Pixels of the image."""

    @property
    def lossy(self) -> bool:
        """Whether the file's format alters pixels, so that edges may ring."""

    @property
    def pixel_size(self) -> float | None:
        """Millimetres a pixel, where the file says so."""

    @property
    def stray_regions(self) -> bool:
        """Whether the header's ultrasound regions do not fit the image, and are not used."""

    def gray(self) -> Gray:
        """Decode the gray pixels (h, w) that people see."""

    def bands(self) -> Bands:
        """Decode the values (h, w) or (h, w, 3) that are stored, as of a mask."""


def open_image(data: bytes, name: str) -> ImageFile:
    """Open an image file: its kind, its size and its pages are checked, no pixel is decoded.

    Args:
        data: the file's bytes.
        name: what to call it in an error.

    Raises:
        DataError: if it is damaged, too large, of another kind, or has several pages or frames.
    """
    if dicom.is_dicom(data):
        return dicom.open_frame(data, name, max_pixels=max_pixels())
    return open_picture(data, name)


def read_gray(data: bytes, name: str) -> Gray:
    """Decode an image file to gray pixels (h, w).

    Gray, colour, palette, 1-bit and 16-bit images are read, and DICOM single frames. They are
    turned upright as their EXIF or TIFF orientation says. What is transparent is black, unless
    nothing is opaque. Files of 16 bits often hold fewer: they are scaled to 8 by the least of 8,
    10, 12, 14 and 16 bits that holds their largest value, so that an image always gives the same
    pixels, whatever stands beside it.

    Args:
        data: the file's bytes.
        name: what to call it in an error.

    Raises:
        DataError: if it is damaged, too large, of another kind, or has several pages or frames.
    """
    return open_image(data, name).gray()


def read_mask(data: bytes, name: str) -> Mask:
    """Decode a mask file (h, w). See `decode_mask`.

    Raises:
        DataError: if it is damaged, too large, no image, or has several pages or frames.
    """
    return decode_mask(open_image(data, name), name).mask


def read_coloured_mask(data: bytes, name: str, colour: str) -> Mask:
    """Decode a mask file (h, w) that is red or green by the lesion's class, and take one of them.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        colour: `red` or `green`.

    Raises:
        DataError: if there is more of the other colour; see `read_mask` for others.
    """
    return decode_mask(open_image(data, name), name, colour=colour).mask


def decode_mask(
    image: ImageFile, name: str, *, colour: str | None = None, inverted: bool = False
) -> MaskReading:
    """Decode a mask (h, w), upright as an image is.

    A pixel is as bright as the brightest of its colours, times its opacity. Which brightness is
    lesion, `masks.read_levels` says.

    Args:
        image: the file.
        name: what to call it in an error.
        colour: `red` or `green`, if one of them is wanted; what is neither counts as well, so that
            a white mask is taken as it is.
        inverted: whether the lesion is the darker part.

    Raises:
        DataError: if the file is damaged, or more of the mask is of the other colour.
    """
    bands = image.bands()
    levels = bands if bands.ndim == 2 else bands.max(axis=2)
    found = masks.read_levels(levels, lossy=image.lossy, inverted=inverted)
    if colour is None:
        return found
    own, other = masks.of_colour(bands, colour)
    if (found.mask & other).sum() > (found.mask & own).sum():
        raise DataError(
            f"A lesion of this class must be {colour} in its mask, but {name} has more of the "
            "other class's colour; correct the mask or the label."
        )
    return MaskReading(found.mask & ~other, found.kind)


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
