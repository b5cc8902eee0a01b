"""DICOM single frames to pixels as a viewer shows them, without the text around the image.

pydicom is an optional extra and is imported when the first DICOM file is read.
"""

import contextlib
import io
import struct
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from mtil.data.images import encapsulated, grayscale
from mtil.data.images.ultrasound import Regions, read_regions
from mtil.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

Pixels = npt.NDArray[np.uint8]
"""Gray (h, w) or RGB (h, w, 3)."""

_MAGIC = slice(128, 132)
_META_GROUP = 2
_META_START = 144
"""Where the elements begin that the group length of the file meta information counts."""
_PIXEL_DATA = 0x7FE00010
_HEADER_BYTES = 2**24
"""What a deflated file may have beside its pixels, inflated."""
_MAX_SAMPLE_BYTES = 8
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


@dataclass(frozen=True)
class Frame:
    """A DICOM file with one frame, whose header is checked and whose pixels are not decoded."""

    name: str
    """What the file is called in an error."""
    header: "Dataset"
    height: int
    width: int

    @property
    def num_pixels(self) -> int:
        """Pixels of the frame."""
        return self.height * self.width

    @property
    def lossy(self) -> bool:
        """Whether edges may ring."""
        return bool(self.header.file_meta.TransferSyntaxUID.is_compressed)

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in millimetres. See `pixel_size`."""
        return self._regions.pixel_size

    @property
    def stray_regions(self) -> bool:
        """Whether the header has ultrasound regions that do not fit the frame."""
        return self._regions.stray

    @cached_property
    def _regions(self) -> Regions:
        with _reading(self.name):
            return read_regions(self.header, self.height, self.width)

    def pixels(self) -> Pixels:
        """Decode the pixels. See `read_frame`."""
        with _reading(self.name):
            return self._without_surroundings(grayscale.shown(self.header))

    def gray(self) -> Pixels:
        """Decode the pixels as gray (h, w)."""
        return np.array(Image.fromarray(self.pixels()).convert("L"))

    def bands(self) -> npt.NDArray[Any]:
        """Decode the stored values (h, w) or (h, w, 3), not negative, through no window."""
        with _reading(self.name):
            return self._without_surroundings(grayscale.stored(self.header))

    def _without_surroundings(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        boxes = self._regions.boxes
        if not boxes:
            return pixels
        kept = np.zeros_like(pixels)
        for top, left, bottom, right in boxes:
            kept[top:bottom, left:right] = pixels[top:bottom, left:right]
        return kept


def open_frame(data: bytes, name: str, *, max_pixels: int) -> Frame:
    """Open a DICOM file and check its header.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        max_pixels: refuse larger frames before they are decoded.

    Raises:
        DataError: if pydicom or a decoder is missing, or the file is damaged, too large, or has
            several frames.
    """
    with _reading(name):
        header = _header(data, name, max_pixels)
        height, width = _check(header, name, max_pixels)
        return Frame(name, header, height, width)


def read_frame(data: bytes, name: str, *, max_pixels: int) -> Pixels:
    """Decode a single frame to 8 bits: gray (h, w) or RGB (h, w, 3).

    Gray pixels pass through the modality and the value-of-interest tables or the window of the
    header, if any, and are then scaled from the range of these, or of the stored bits, to 0...255.
    A window that is no window, or leaves no gray apart, is passed over. Where the header places the
    ultrasound regions, whatever lies outside of those of tissue in two dimensions is black: scales,
    logos and names are burnt in there. The size stays.

    Args:
        data: the file's bytes.
        name: what to call it in an error.
        max_pixels: refuse larger frames before they are decoded.

    Raises:
        DataError: if pydicom or a decoder is missing, or the file is damaged, too large, or has
            several frames.
    """
    return open_frame(data, name, max_pixels=max_pixels).pixels()


def pixel_size(data: bytes, name: str = "The image") -> float | None:
    """Return the side of a pixel in millimetres, by the header of a DICOM file.

    It is that of the tissue regions, if the header has any, or else the pixel spacing. It is
    None for other files, without either, where it differs between rows and columns or regions, and
    where the regions do not fit the frame.

    Raises:
        DataError: if pydicom is missing or the header is damaged.
    """
    if not is_dicom(data):
        return None
    with _reading(name):
        header = _header(data, name, Image.MAX_IMAGE_PIXELS or 2**27)
        return read_regions(header, int(header.Rows), int(header.Columns)).pixel_size


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
    except (
        *_BROKEN, Image.DecompressionBombError, errors.BytesLengthException,
        errors.InvalidDicomError,
    ) as error:  # fmt: skip
        reason = textwrap.shorten(str(error), _MAX_REASON).rstrip(".") or type(error).__name__
        raise DataError(f"{name} cannot be read: {reason}; fetch or save it again.") from None


def _header(data: bytes, name: str, max_pixels: int) -> "Dataset":
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    meta = _meta(data)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return dcmread(io.BytesIO(data))
    return _inflated(data, meta, name, max_pixels)


def _meta(data: bytes) -> "FileMetaDataset":
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset

    stream = io.BytesIO(data)
    stream.seek(_MAGIC.stop)
    return FileMetaDataset(
        read_dataset(
            stream, is_implicit_VR=False, is_little_endian=True,
            stop_when=lambda tag, _vr, _length: tag.group != _META_GROUP,
        )
    )  # fmt: skip


def _inflated(data: bytes, meta: "FileMetaDataset", name: str, max_pixels: int) -> "Dataset":
    """Read a deflated file, inflating no more than its frame asks for."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import ExplicitVRLittleEndian

    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    deflated = data[_META_START + int(meta.FileMetaInformationGroupLength) :]
    start = inflater.decompress(deflated, _HEADER_BYTES)
    header = read_dataset(
        io.BytesIO(start), is_implicit_VR=False, is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA,
    )  # fmt: skip
    height, width = _check_frame(header, name, max_pixels)
    samples = _number(header.get("SamplesPerPixel"), 1)
    sample_bytes = -(-_number(header.get("BitsAllocated"), 8) // 8)
    if not (1 <= samples <= 4 and 1 <= sample_bytes <= _MAX_SAMPLE_BYTES):
        raise ValueError("its pixels have no known form")
    most = _HEADER_BYTES + height * width * samples * sample_bytes
    rest = inflater.decompress(inflater.unconsumed_tail, most - len(start) + 1)
    if len(start) + len(rest) > most:
        raise DataError(
            f"A deflated DICOM file must hold its frame and little else, but {name} inflates to "
            f"more than {most:,} bytes; save it again."
        )
    whole = read_dataset(io.BytesIO(start + rest), is_implicit_VR=False, is_little_endian=True)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.file_meta = meta
    return whole


def _check(header: "Dataset", name: str, max_pixels: int) -> tuple[int, int]:
    """Return a frame's height and width.

    Raises:
        DataError: if it cannot be decoded, or should not be.
    """
    if "PixelData" not in header:
        raise DataError(
            f"{name} cannot be read: it has no pixels, or is cut short; fetch or save it again."
        )
    size = _check_frame(header, name, max_pixels)
    if header.file_meta.TransferSyntaxUID.is_compressed:
        encapsulated.check_decoder(header, name)
        held = encapsulated.count_frames(header)
        encapsulated.check_size(header, name)
    else:
        held = len(header.PixelData) // encapsulated.frame_bytes(header)
    _check_frames(max(1, held), name)
    return size


def _check_frame(header: "Dataset", name: str, max_pixels: int) -> tuple[int, int]:
    _check_frames(_number(header.get("NumberOfFrames"), 1), name)
    height, width = int(header.Rows), int(header.Columns)
    if height * width > max_pixels:
        raise DataError(
            f"An image must have at most {max_pixels:,} pixels, but {name} has {width} x {height}; "
            "make it smaller."
        )
    if height * width == 0:
        raise ValueError("its frame has no pixels")
    return height, width


def _check_frames(number: int, name: str) -> None:
    if number != 1:
        raise DataError(
            f"A DICOM file must hold a single frame, but {name} holds {number}; save the frames "
            "that you need as files of their own."
        )


def _number(value: object, default: int) -> int:
    """Return an element's number; 0 or nothing stands for the default."""
    return int(value or default)  # type: ignore[call-overload, no-any-return]
