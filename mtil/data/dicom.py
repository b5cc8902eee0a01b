"""DICOM single frames to pixels as a viewer shows them, without the text around the image.

pydicom is an optional extra and is imported when the first DICOM file is read.
"""

import contextlib
import io
import struct
import textwrap
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mtil.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

Pixels = npt.NDArray[np.uint8]
"""Gray (h, w) or RGB (h, w, 3)."""
Box = tuple[int, int, int, int]
"""First row, first column, and the row and the column behind the last."""

_MAGIC = slice(128, 132)
_TWO_DIMENSIONAL = 1
"""Region Spatial Format (0018,6012)."""
_TISSUE = 1
"""Region Data Type (0018,6014)."""
_CENTIMETRES = 3
"""Physical Units X and Y Direction (0018,6024) and (0018,6026)."""
_MAX_DIFFERENCE = 0.01
"""Pixels whose sides differ by a larger share have no single size."""
_MAX_REASON = 200
"""Characters of pydicom's own words; some of its errors quote the file."""

_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What pydicom and its decoders raise on damaged files."""


def is_dicom(data: bytes) -> bool:
    """Say whether a file is DICOM, by its magic and not its name."""
    return data[_MAGIC] == b"DICM"


def read_frame(data: bytes, name: str, *, max_pixels: int) -> Pixels:
    """Decode a single frame to 8 bits: gray (h, w) or RGB (h, w, 3).

    Gray pixels pass through the modality and the value-of-interest tables or the window of the
    header, if any, and are then scaled from the range of these, or of the stored bits, to 0...255.
    Where the header places the ultrasound regions, whatever lies outside of those of tissue in two
    dimensions is black: scales, logos and names are burnt in there. The size stays.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        max_pixels: refuse larger frames before they are decoded.

    Raises:
        DataError: if pydicom or a decoder is missing, or the file is damaged, too large, or has
            several frames.
    """
    with _reading(name):
        header = _header(data)
        _check(header, name, max_pixels)
        return _without_surroundings(_shown(header), header)


def pixel_size(data: bytes, name: str = "The image") -> float | None:
    """Return the side of a pixel in millimetres, by the header of a DICOM file.

    It is that of the tissue regions, if the header has any, or else the pixel spacing. It is
    None for other files, without either, and where it differs between rows and columns or regions.

    Raises:
        DataError: if pydicom is missing or the header is damaged.
    """
    if not is_dicom(data):
        return None
    with _reading(name):
        header = _header(data, pixels=False)
        sides = [
            10 * abs(float(side))
            for region in _tissue_regions(header)
            if region.get("PhysicalUnitsXDirection") == _CENTIMETRES
            and region.get("PhysicalUnitsYDirection") == _CENTIMETRES
            for side in (region.PhysicalDeltaX, region.PhysicalDeltaY)
        ]
        sides = sides or [float(side) for side in header.get("PixelSpacing") or ()]
    if not sides or min(sides) <= 0 or max(sides) > (1 + _MAX_DIFFERENCE) * min(sides):
        return None
    return sides[0]


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    """Tell in a sentence what pydicom does not find, or that it is missing itself."""
    try:
        from pydicom import errors  # an optional extra
    except ImportError:
        raise DataError(
            f"{name} is a DICOM file, which needs the package pydicom, which is not installed; "
            "run: pip install 'mtil[dicom]'."
        ) from None
    try:
        yield
    except DataError:
        raise
    except (*_BROKEN, errors.BytesLengthException, errors.InvalidDicomError) as error:
        reason = textwrap.shorten(str(error), _MAX_REASON).rstrip(".") or type(error).__name__
        raise DataError(f"{name} cannot be read: {reason}; fetch or save it again.") from None


def _header(data: bytes, *, pixels: bool = True) -> "Dataset":
    from pydicom import dcmread

    return dcmread(io.BytesIO(data), stop_before_pixels=not pixels)


def _check(header: "Dataset", name: str, max_pixels: int) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if "PixelData" not in header:
        raise DataError(
            f"{name} cannot be read: it has no pixels, or is cut short; fetch or save it again."
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise DataError(
            f"A DICOM file must hold a single frame, but {name} holds {frames}; save the frames "
            "that you need as files of their own."
        )
    height, width = int(header.Rows), int(header.Columns)
    if height * width > max_pixels:
        raise DataError(
            f"An image must have at most {max_pixels:,} pixels, but {name} has {width} x {height}; "
            "make it smaller."
        )
    syntax = header.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        known = get_decoder(syntax).is_available
    except NotImplementedError:
        known = False
    if not known:
        raise DataError(
            f"{name} cannot be read: its pixels are compressed as {syntax.name}, for which pydicom "
            "finds no decoder; run: pip install 'pylibjpeg[libjpeg,openjpeg]', or save it "
            "uncompressed."
        )


def _shown(header: "Dataset") -> Pixels:
    from pydicom.pixels.processing import apply_color_lut

    kind = str(header.PhotometricInterpretation)
    pixels = header.pixel_array  # YBR_FULL and YBR_FULL_422 come as RGB
    if kind == "PALETTE COLOR":
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        return _scaled(apply_color_lut(pixels, header)[..., :3], 0, 2**bits - 1)
    if pixels.ndim == 3:
        return _scaled(pixels, 0, 2 ** int(header.BitsStored) - 1)
    if kind == "MONOCHROME1":
        return np.uint8(255) - _windowed(header, pixels)
    if kind == "MONOCHROME2":
        return _windowed(header, pixels)
    raise ValueError(f"its photometric interpretation {kind} is not known")


def _windowed(header: "Dataset", pixels: npt.NDArray[np.generic]) -> Pixels:
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    bits = int(header.BitsStored)
    signed = int(header.PixelRepresentation) == 1
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    if header.get("ModalityLUTSequence"):
        pixels = apply_modality_lut(pixels, header)
        low, high = 0.0, 2.0 ** int(header.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    elif header.get("RescaleSlope") is not None and header.get("RescaleIntercept") is not None:
        pixels = apply_modality_lut(pixels, header)
        low, high = (
            bound * float(header.RescaleSlope) + float(header.RescaleIntercept)
            for bound in (low, high)
        )
    if header.get("VOILUTSequence"):
        pixels = apply_voi(np.rint(pixels).astype(np.int64), header)
        return _scaled(pixels, 0, 2.0 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        # a window is spread from `low` to `high`, which a negative slope has turned around
        return _scaled(apply_windowing(pixels, header), low, high)
    return _scaled(pixels, min(low, high), max(low, high))


def _scaled(pixels: npt.NDArray[np.generic], low: float, high: float) -> Pixels:
    """Map `low` to 0 and `high` to 255."""
    if low == high:
        raise ValueError("its rescale slope is 0")
    shares = (pixels.astype(np.float64) - low) / (high - low)
    return np.rint(np.clip(shares, 0, 1) * 255).astype(np.uint8)


def _without_surroundings(pixels: Pixels, header: "Dataset") -> Pixels:
    boxes = [
        (top, left, bottom, right)
        for top, left, bottom, right in map(_box, _tissue_regions(header))
        if top < bottom and left < right and top < pixels.shape[0] and left < pixels.shape[1]
    ]
    if not boxes:
        return pixels
    kept = np.zeros_like(pixels)
    for top, left, bottom, right in boxes:
        kept[top:bottom, left:right] = pixels[top:bottom, left:right]
    return kept


def _tissue_regions(header: "Dataset") -> Iterator["Dataset"]:
    for region in header.get("SequenceOfUltrasoundRegions") or ():
        if (
            region.get("RegionSpatialFormat") == _TWO_DIMENSIONAL
            and region.get("RegionDataType") == _TISSUE
        ):
            yield region


def _box(region: "Dataset") -> Box:
    return (
        int(region.RegionLocationMinY0),
        int(region.RegionLocationMinX0),
        int(region.RegionLocationMaxY1) + 1,
        int(region.RegionLocationMaxX1) + 1,
    )
