"""Reading and writing of images and masks as arrays, and resizing to the working size."""

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
"""File name suffixes of image files, in lower case."""


class ImageFile(Protocol):
    """An image file with a checked header and undecoded pixels."""

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the image."""

    @property
    def lossy(self) -> bool:
        """Whether the format of the file alters pixels, so that edges may ring."""

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in millimetres; None if the file gives none."""

    @property
    def stray_regions(self) -> bool:
        """Whether ultrasound regions of the header do not fit the image; then no region is used."""

    def gray(self) -> Gray:
        """Decode the image as shown by a viewer: gray (h, w), 8 bits."""

    def bands(self) -> Bands:
        """Decode the stored values, (h, w) or (h, w, 3), as needed for a mask."""


def open_image(data: bytes, name: str) -> ImageFile:
    """Open an image file; check format, size and number of pages without decoding pixels.

    Args:
        data: bytes of the file.
        name: name of the file for error messages.

    Raises:
        DataError: if the file is damaged, too large, of an unsupported format, or has several
            pages or frames.
    """
    if dicom.is_dicom(data):
        return dicom.open_frame(data, name, max_pixels=max_pixels())
    return open_picture(data, name)


def read_gray(data: bytes, name: str) -> Gray:
    """Decode an image file to 8-bit gray pixels (h, w).

    Supported are gray, colour, palette, 1-bit and 16-bit images, and DICOM single frames. The image
    is turned upright by EXIF or TIFF orientation. Transparent pixels are black, unless the whole
    image is transparent. A 16-bit file is scaled from the smallest depth of 8, 10, 12, 14 and 16
    bits that fits the largest value; the pixels depend on no other file.

    Args:
        data: bytes of the file.
        name: name of the file for error messages.

    Raises:
        DataError: if the file is damaged, too large, of an unsupported format, or has several
            pages or frames.
    """
    return open_image(data, name).gray()


def read_mask(data: bytes, name: str) -> Mask:
    """Decode a mask file to a boolean mask (h, w). See `decode_mask`.

    Raises:
        DataError: if the file is damaged, too large, of an unsupported format, or has several
            pages or frames.
    """
    return decode_mask(open_image(data, name), name).mask


def decode_mask(
    image: ImageFile, name: str, *, colour: str | None = None, inverted: bool = False
) -> MaskReading:
    """Decode a mask (h, w), turned upright like an image.

    The brightness of a pixel is the maximum of its colour bands times its opacity;
    `masks.find_lesion` separates lesion from background.

    Args:
        image: opened mask file.
        name: name of the file for error messages.
        colour: `red` or `green` to keep the lesion of a class, None to keep every lesion. Pixels
            without a clear red or green are kept as well: a white mask remains unchanged.
        inverted: whether the lesion is the darker part.

    Raises:
        DataError: if the file is damaged, or the lesion has more pixels of the opposite colour.
    """
    bands = image.bands()
    levels = bands if bands.ndim == 2 else bands.max(axis=2)
    reading = masks.find_lesion(levels, lossy=image.lossy, inverted=inverted)
    if colour is None:
        return reading
    own, opposite = masks.split_colours(bands, colour)
    if (reading.mask & opposite).sum() > (reading.mask & own).sum():
        raise DataError(
            f"A lesion of this class must be {colour} in its mask, but {name} has more of the "
            "other class's colour; correct the mask or the label."
        )
    return MaskReading(reading.mask & ~opposite, reading.kind)


def resize_image(gray: Gray, size: int) -> Gray:
    """Resize gray pixels to (size, size), antialiased, as in training and prediction."""
    return np.array(Image.fromarray(gray).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: Mask, size: int) -> Mask:
    """Resize a mask to (size, size); a lesion too small to survive keeps one pixel."""
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = np.asarray(soft.resize((size, size), Image.Resampling.BILINEAR)) >= 128
    # A tumour image with an empty mask would contradict its class.
    if mask.any() and not resized.any():
        row, column = (
            int(np.median(positions) * size / side)
            for positions, side in zip(np.nonzero(mask), mask.shape, strict=True)
        )
        resized[row, column] = True
    return resized


def encode_mask_png(mask: Mask) -> bytes:
    """Return a mask (h, w) as a 1-bit PNG."""
    sink = io.BytesIO()
    Image.fromarray(mask).save(sink, format="PNG")
    return sink.getvalue()


def decode_mask_png(data: bytes) -> Mask:
    """Return the mask (h, w) of a 1-bit PNG."""
    return np.array(Image.open(io.BytesIO(data)), dtype=np.bool_)


def pack_mask(mask: Mask) -> bytes:
    """Return a mask as bits, row by row, eight pixels per byte."""
    return np.packbits(mask).tobytes()
