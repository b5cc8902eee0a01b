"""Image files other than DICOM: opened and checked first, decoded when that is asked for."""

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

# What is odd in a file is refused below in a sentence or does not matter; the decoders' own words
# about it would stand between. Here, since what sets filters for a while is not safe in threads.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom)\.")

Gray = npt.NDArray[np.uint8]
Bands = npt.NDArray[Any]
"""Gray (h, w) or colours (h, w, 3)."""

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")
"""Formats that are tried; those that run programs, such as EPS, are not among them."""
DEPTHS = (8, 10, 12, 14, 16)
"""Bits that an image in a 16-bit file may have."""

_LOSSY = ("JPEG", "MPO", "WEBP")
_MAX_PAGES = 1000
"""Pages of a TIFF file that are looked at; a file of more has several in any case."""
_PAGE_KIND, _OLD_PAGE_KIND, _TILE_WIDTH, _TILE_HEIGHT = 254, 255, 322, 323
"""Tags of TIFF files."""
_COPY_OR_MASK = 0b101
"""Bits of the tag NewSubfileType: a page of reduced resolution, a transparency mask."""
_OLD_COPY = 2
"""Of the tag SubfileType."""
_MPO_KINDS, _MPO_PREVIEW = 0xB002, "Large Thumbnail"
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

_BROKEN = (
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
"""What Pillow raises on damaged files."""


@dataclass(frozen=True)
class Picture:
    """An image file with one page, whose size is known and whose pixels are not decoded yet.

    They are decoded once, by `gray` or by `bands`.
    """

    name: str
    """What the file is called in an error."""
    image: Image.Image

    @property
    def num_pixels(self) -> int:
        """Pixels of the image."""
        return self.image.width * self.image.height

    @property
    def lossy(self) -> bool:
        """Whether edges may ring."""
        return self.image.format in _LOSSY

    @property
    def pixel_size(self) -> None:
        """None: these files do not say it."""
        return

    @property
    def stray_regions(self) -> bool:
        """False: these files have no ultrasound regions."""
        return False

    def gray(self) -> Gray:
        """Decode the pixels, upright and of 8 bits (h, w). See `read_gray`.

        Raises:
            DataError: if the file is damaged.
        """
        with _sentences(self.name), self._upright() as image:
            if image.mode.startswith("I"):
                return _scaled(np.asarray(image))
            if image.mode == "F":
                raise DataError(
                    f"An image must have integer pixels, but {self.name} has floating-point ones; "
                    "convert it to 8 or 16 bits."
                )
            if image.has_transparency_data:
                return _on_black(image.convert("RGBA"))
            colours = image.convert("RGB") if image.mode == "P" else image
            return np.array(colours.convert("L"))

    def bands(self) -> Bands:
        """Decode the stored values, upright: gray (h, w) or colours (h, w, 3), not negative.

        The values of what is partly transparent are multiplied by its opacity, unless nothing is
        opaque.

        Raises:
            DataError: if the file is damaged.
        """
        with _sentences(self.name), self._upright() as image:
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
                return rgba[..., :3]  # some programs leave it unset
            return np.asarray(image if image.mode in ("1", "L") else image.convert("RGB"))

    @contextmanager
    def _upright(self) -> Iterator[Image.Image]:
        """Decode the pixels, turn them upright and forget them; Pillow turns TIFF by itself."""
        self.image.load()
        method = _TURNS.get(_orientation(self.image) or 1)
        image = self.image
        if method is not None:
            image = image.transpose(method)
            self.image.close()
        try:
            yield image
        finally:
            image.close()


def open_picture(data: bytes, name: str) -> Picture:
    """Open an image file and check its kind, its size, its pages and, of PNG, its checksums.

    Raises:
        DataError: if the file is damaged, too large, of another kind, or has several pages.
    """
    with _sentences(name):
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, name)
            if image.format == "PNG":
                image.verify()  # checksums, which loading skips
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.seek(_only_page(image, name))
        _check_size(image, name)
        return Picture(name, image)


def max_pixels() -> int:
    """Return how many pixels an image may have."""
    return Image.MAX_IMAGE_PIXELS or 2**27


@contextmanager
def _sentences(name: str) -> Iterator[None]:
    """Tell in a sentence what Pillow does not like."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"An image must have at most {max_pixels():,} pixels, but {name} claims more; "
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


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > max_pixels():
        raise DataError(
            f"An image must have at most {max_pixels():,} pixels, but {name} has "
            f"{image.width} x {image.height}; make it smaller."
        )
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))
        if tile > max_pixels():  # libtiff makes room for a whole tile
            raise DataError(
                f"An image must have at most {max_pixels():,} pixels, but the tiles of {name} have "
                f"{tile:,}; save it again without tiles."
            )


def _only_page(image: Image.Image, name: str) -> int:
    """Return the number of the page that is the image; previews and masks are none.

    Raises:
        DataError: if there are several.
    """
    if image.format == "TIFF":
        pages = _tiff_pages(image)
    elif image.format == "MPO":
        kinds = [entry["Attribute"]["MPType"] for entry in image.mpinfo[_MPO_KINDS]]  # type: ignore[attr-defined]
        pages = [at for at, kind in enumerate(kinds) if not kind.startswith(_MPO_PREVIEW)]
    else:
        pages = [0, 1] if getattr(image, "is_animated", False) else [0]
    if len(pages) != 1:
        raise DataError(
            f"An image file must hold a single page or frame, but {name} holds several; save the "
            "pages that you need as files of their own."
        )
    return pages[0]


def _tiff_pages(image: Image.Image) -> list[int]:
    """Return the first two pages of full resolution, or the only page."""
    pages: list[int] = []
    index = 0
    while len(pages) < 2:
        try:
            image.seek(index)
        except EOFError:
            break
        tags = image.tag_v2  # type: ignore[attr-defined]
        kind, old = tags.get(_PAGE_KIND, 0), tags.get(_OLD_PAGE_KIND)
        if not (isinstance(kind, int) and kind & _COPY_OR_MASK) and old != _OLD_COPY:
            pages.append(index)
        index += 1
        if index == _MAX_PAGES:
            return [0, 1]
    return [0] if index == 1 else pages


def _orientation(image: Image.Image) -> int | None:
    try:
        found = image.getexif().get(_ORIENTATION)
    except _BROKEN:  # metadata that cannot be read say nothing; the pixels are as good as before
        return None
    return found if isinstance(found, int) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _scaled(pixels: npt.NDArray[Any]) -> Gray:
    """Scale pixels of up to 16 bits to 8 by the least depth that holds the largest."""
    sixteen = np.clip(pixels, 0, 65535).astype(np.uint16)
    largest = int(sixteen.max())
    full = 2 ** next(bits for bits in DEPTHS if largest < 2**bits) - 1
    table = (np.arange(largest + 1, dtype=np.int64) * 255 + full // 2) // full
    return np.asarray(table.astype(np.uint8)[sixteen])


def _on_black(image: Image.Image) -> Gray:
    """Return the gray pixels of an RGBA image before black."""
    gray = np.array(image.convert("RGB").convert("L"))
    alpha = np.asarray(image.getchannel("A"), dtype=np.uint16)
    if not alpha.any():  # some programs leave it unset
        return gray
    return ((gray * alpha + 127) // 255).astype(np.uint8)
