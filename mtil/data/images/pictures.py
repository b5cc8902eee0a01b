"""Image files other than DICOM: opened and checked first, decoded on demand."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mtil.errors import DataError

# An oddity in a file is refused below with a message, or harmless: decoder warnings are noise. The
# filter is global because `warnings.catch_warnings` is not safe in threads.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")

Gray = npt.NDArray[np.uint8]
Bands = npt.NDArray[Any]
"""Gray (h, w) or colours (h, w, 3)."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
"""Pillow formats tried; formats that run programs, such as EPS, are left out."""
DEPTHS = (8, 10, 12, 14, 16)
"""Possible bit depths of an image in a 16-bit file."""

_LOSSY = ("JPEG", "MPO", "WEBP")
# A TIFF file with more pages counts as a file of several images without a further look.
_MAX_PAGES = 1000
# TIFF tags NewSubfileType, SubfileType, TileWidth and TileLength.
_PAGE_KIND_TAG, _OLD_PAGE_KIND_TAG, _TILE_WIDTH_TAG, _TILE_HEIGHT_TAG = 254, 255, 322, 323
# Bits of NewSubfileType: a page of reduced resolution, a transparency mask.
_PREVIEW_OR_MASK = 0b101
# SubfileType of a page of reduced resolution.
_OLD_PREVIEW = 2
_MPO_ENTRIES_TAG, _MPO_PREVIEW = 0xB002, "Large Thumbnail"
_ORIENTATION_TAG = 0x0112
# Operation that turns an image upright, by EXIF orientation.
_UPRIGHT_METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Exceptions raised by Pillow on damaged files.
_DAMAGED_FILE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    AttributeError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True)
class Picture:
    """An image file with one page, a checked size and undecoded pixels.

    Call `gray` or `bands`, and only once: decoding closes the file.
    """

    name: str
    """Name for error messages."""
    image: Image.Image

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the image."""
        return self.image.width * self.image.height

    @property
    def lossy(self) -> bool:
        """Whether the format is lossy, so that edges may ring."""
        return self.image.format in _LOSSY

    @property
    def pixel_size(self) -> None:
        """Always None: only DICOM headers give a pixel size."""
        return

    @property
    def stray_regions(self) -> bool:
        """Always False: only DICOM headers have ultrasound regions."""
        return False

    def gray(self) -> Gray:
        """Decode the pixels as upright 8-bit gray (h, w). See `read.read_gray`.

        Raises:
            DataError: if the file is damaged.
        """
        with _data_errors(self.name), self._upright() as image:
            if image.mode.startswith("I"):
                return _scale_to_8_bits(np.asarray(image))
            if image.mode == "F":
                raise DataError(
                    f"An image must have integer pixels, but {self.name} has floating-point ones; "
                    "convert it to 8 or 16 bits."
                )
            if image.has_transparency_data:
                return _blend_on_black(image.convert("RGBA"))
            colours = image.convert("RGB") if image.mode == "P" else image
            return np.array(colours.convert("L"))

    def bands(self) -> Bands:
        """Decode the stored values, upright: gray (h, w) or colours (h, w, 3), non-negative.

        Values of an image with transparency are multiplied by the alpha channel (0...255), unless
        the alpha channel is 0 everywhere.

        Raises:
            DataError: if the file is damaged.
        """
        with _data_errors(self.name), self._upright() as image:
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image)
                if not np.isfinite(values).all():
                    raise ValueError("it has pixels that are no numbers")
                return np.asarray(np.maximum(values, 0))
            if image.has_transparency_data:
                rgba = np.asarray(image.convert("RGBA"))
                alpha = rgba[..., 3:]
                if alpha.any():
                    return np.asarray(rgba[..., :3].astype(np.uint16) * alpha)
                # Some programs leave the alpha channel unset.
                return rgba[..., :3]
            return np.asarray(image if image.mode in ("1", "L") else image.convert("RGB"))

    @contextmanager
    def _upright(self) -> Iterator[Image.Image]:
        """Decode the pixels and turn the image upright; close the image after the block."""
        # Read the orientation after loading: Pillow turns TIFF upright on loading.
        self.image.load()
        method = _UPRIGHT_METHODS.get(_read_orientation(self.image) or 1)
        image = self.image
        if method is not None:
            image = image.transpose(method)
            self.image.close()
        try:
            yield image
        finally:
            image.close()


def open_picture(data: bytes, name: str) -> Picture:
    """Open an image file; check format, size and number of pages, and the checksums of PNG.

    Raises:
        DataError: if the file is damaged or too large, has a format not in `FORMATS`, or has
            several pages.
    """
    with _data_errors(name):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            if image.format == "PNG":
                # Loading skips the checksums, and an image cannot be loaded after `verify`.
                image.verify()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.seek(_find_only_page(image, name))
        # Pages may differ in size: check the chosen page as well.
        _check_size(image, name)
        return Picture(name, image)


def max_pixels() -> int:
    """Return the most pixels of an image: Pillow's limit on decompression bombs."""
    return Image.MAX_IMAGE_PIXELS or 2**27


@contextmanager
def _data_errors(name: str) -> Iterator[None]:
    """Turn errors of Pillow into a `DataError` naming the file."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"An image must have at most {max_pixels():,} pixels, but {name} claims more; "
            "reduce its size."
        ) from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name} cannot be read: it is none of {', '.join(FORMATS)}, or is damaged; "
            "download or export the file again."
        ) from None
    except DataError:
        raise
    except _DAMAGED_FILE_ERRORS as error:
        raise DataError(
            f"{name} cannot be read: {_shorten_reason(error)}; download or export the file again."
        ) from None


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > max_pixels():
        raise DataError(
            f"An image must have at most {max_pixels():,} pixels, but {name} has "
            f"{image.width} x {image.height}; reduce its size."
        )
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        tile = int(tags.get(_TILE_WIDTH_TAG, 0)) * int(tags.get(_TILE_HEIGHT_TAG, 0))
        # libtiff allocates a whole tile even for a small image.
        if tile > max_pixels():
            raise DataError(
                f"An image must have at most {max_pixels():,} pixels, but the tiles of {name} have "
                f"{tile:,}; export the file without tiles."
            )


def _find_only_page(image: Image.Image, name: str) -> int:
    """Return the index of the only page, not counting previews and transparency masks.

    Raises:
        DataError: if the file has several pages.
    """
    if image.format == "TIFF":
        pages = _find_tiff_pages(image)
    elif image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[_MPO_ENTRIES_TAG]]  # type: ignore[attr-defined]
        pages = [page for page, kind in enumerate(kinds) if not kind.startswith(_MPO_PREVIEW)]
    else:
        pages = [0, 1] if getattr(image, "is_animated", False) else [0]
    if len(pages) != 1:
        raise DataError(
            f"An image file must hold a single page or frame, but {name} holds several; save the "
            "pages you need as separate files."
        )
    return pages[0]


def _find_tiff_pages(image: Image.Image) -> list[int]:
    """Return the indices of up to two full-resolution pages, or the only page of the file."""
    pages: list[int] = []
    index = 0
    while len(pages) < 2:
        try:
            image.seek(index)
        except EOFError:
            break
        tags = image.tag_v2  # type: ignore[attr-defined]
        kind, old_kind = tags.get(_PAGE_KIND_TAG, 0), tags.get(_OLD_PAGE_KIND_TAG)
        if not (isinstance(kind, int) and kind & _PREVIEW_OR_MASK) and old_kind != _OLD_PREVIEW:
            pages.append(index)
        index += 1
        if index == _MAX_PAGES:
            return [0, 1]
    # The only page of a file is the image, even if marked as a preview.
    return [0] if index == 1 else pages


def _read_orientation(image: Image.Image) -> int | None:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DAMAGED_FILE_ERRORS:
        # Damaged metadata does not affect the pixels: keep the image as stored.
        return None
    return orientation if isinstance(orientation, int) else None


def _shorten_reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _scale_to_8_bits(pixels: npt.NDArray[Any]) -> Gray:
    """Scale pixels of up to 16 bits to 8 bits, (h, w)."""
    # A 16-bit file often holds a 10- or 12-bit image. The smallest depth in `DEPTHS` that fits the
    # largest value is a property of the image alone: pixels never depend on further files.
    sixteen = np.clip(pixels, 0, 65535).astype(np.uint16)
    largest = int(sixteen.max())
    white = 2 ** next(bits for bits in DEPTHS if largest < 2**bits) - 1
    # Integer arithmetic rounds half up, identically on every machine.
    table = (np.arange(largest + 1, dtype=np.int64) * 255 + white // 2) // white
    return np.asarray(table.astype(np.uint8)[sixteen])


def _blend_on_black(image: Image.Image) -> Gray:
    """Return the gray pixels (h, w) of an RGBA image blended onto black."""
    gray = np.array(image.convert("RGB").convert("L"))
    alpha = np.asarray(image.getchannel("A"), dtype=np.uint16)
    # Some programs leave the alpha channel unset.
    if not alpha.any():
        return gray
    return ((gray * alpha + 127) // 255).astype(np.uint8)
