"""DICOM single frames decoded as a viewer shows them, without the text around the tissue.

pydicom is an optional extra, imported when the first DICOM file is read.
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
from mtil.data.images.ultrasound import TissueRegions, read_regions
from mtil.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

Pixels = npt.NDArray[np.uint8]
"""Gray (h, w) or RGB (h, w, 3)."""

_MAGIC = slice(128, 132)
_META_GROUP = 2
# 128 bytes of preamble, 4 of magic, 12 of the group length, which counts the bytes from here on.
_META_START = 144
_PIXEL_DATA = 0x7FE00010
# Allowance beyond the frame for an inflated file: the bound stops deflate bombs.
_HEADER_BYTES = 2**24
_MAX_SAMPLE_BYTES = 8
# Characters of an error text: some pydicom errors quote the file.
_MAX_REASON_CHARS = 200

# Exceptions raised by pydicom and by the decoder packages on damaged files.
_DAMAGED_FILE_ERRORS = (
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


def is_dicom(data: bytes) -> bool:
    """Return whether a file is DICOM, judged by the magic bytes and not by the name."""
    return data[_MAGIC] == b"DICM"


@dataclass(frozen=True)
class DicomFrame:
    """A single-frame DICOM file with a checked header and undecoded pixels."""

    name: str
    """Name for error messages."""
    header: "Dataset"
    height: int
    width: int

    @property
    def num_pixels(self) -> int:
        """Number of pixels of the frame."""
        return self.height * self.width

    @property
    def lossy(self) -> bool:
        """Whether the pixel data is compressed, so that edges may ring."""
        return bool(self.header.file_meta.TransferSyntaxUID.is_compressed)

    @property
    def pixel_size(self) -> float | None:
        """Side of a pixel in millimetres, or None. See the function `pixel_size`."""
        return self._regions.pixel_size

    @property
    def stray_regions(self) -> bool:
        """Whether ultrasound regions of the header do not fit the frame."""
        return self._regions.stray

    @cached_property
    def _regions(self) -> TissueRegions:
        with _data_errors(self.name):
            return read_regions(self.header, self.height, self.width)

    def pixels(self) -> Pixels:
        """Decode the pixels: gray (h, w) or RGB (h, w, 3). See `read_frame`."""
        with _data_errors(self.name):
            return self._blacken_surroundings(grayscale.render_pixels(self.header))

    def gray(self) -> Pixels:
        """Decode the pixels as gray (h, w)."""
        return np.array(Image.fromarray(self.pixels()).convert("L"))

    def bands(self) -> npt.NDArray[Any]:
        """Decode the stored values, (h, w) or (h, w, 3), non-negative, without a window."""
        with _data_errors(self.name):
            return self._blacken_surroundings(grayscale.read_stored_values(self.header))

    def _blacken_surroundings(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        boxes = self._regions.boxes
        if not boxes:
            return pixels
        tissue = np.zeros_like(pixels)
        for top, left, bottom, right in boxes:
            tissue[top:bottom, left:right] = pixels[top:bottom, left:right]
        return tissue


def open_frame(data: bytes, name: str, *, max_pixels: int) -> DicomFrame:
    """Open a DICOM file and check its header.

    Args:
        data: bytes of the file.
        name: name of the file for error messages.
        max_pixels: most pixels of a frame; a larger frame is refused before decoding.

    Raises:
        DataError: if pydicom or a decoder is missing, or the file is damaged, too large or has
            several frames.
    """
    with _data_errors(name):
        header = _read_header(data, name, max_pixels)
        height, width = _check_header(header, name, max_pixels)
        return DicomFrame(name, header, height, width)


def read_frame(data: bytes, name: str, *, max_pixels: int) -> Pixels:
    """Decode a single frame to 8 bits: gray (h, w) or RGB (h, w, 3).

    Gray pixels pass through the modality table or rescale, then through the value-of-interest table
    or window of the header. The output range of the last step, or the range of the stored bits, is
    scaled to 0...255. An invalid window, or a window leaving almost no contrast, is skipped. If the
    header has ultrasound regions, all pixels outside the two-dimensional tissue regions are black:
    scales, logos and names are burnt in around the tissue. The frame keeps its size.

    Args:
        data: bytes of the file.
        name: name of the file for error messages.
        max_pixels: most pixels of a frame; a larger frame is refused before decoding.

    Raises:
        DataError: if pydicom or a decoder is missing, or the file is damaged, too large or has
            several frames.
    """
    return open_frame(data, name, max_pixels=max_pixels).pixels()


def pixel_size(data: bytes, name: str = "The image") -> float | None:
    """Return the side of a pixel in millimetres, read from the header of a DICOM file.

    The tissue regions give the size; without a size in the regions, the pixel spacing does. Return
    None if the file is not DICOM, if the header gives no size, or if the size differs between rows
    and columns or between regions. Also return None if the regions do not fit the frame, unless the
    header has a spacing of a different size.

    Raises:
        DataError: if pydicom is missing or the header is damaged.
    """
    if not is_dicom(data):
        return None
    with _data_errors(name):
        header = _read_header(data, name, Image.MAX_IMAGE_PIXELS or 2**27)
        return read_regions(header, int(header.Rows), int(header.Columns)).pixel_size


@contextlib.contextmanager
def _data_errors(name: str) -> Iterator[None]:
    """Turn errors of pydicom, and a missing pydicom, into a `DataError` naming the file."""
    try:
        from pydicom import errors  # an optional extra
    except ImportError:
        raise DataError(
            f"{name} is a DICOM file and needs the package pydicom, which is not installed; "
            "run: pip install 'mtil[dicom]'."
        ) from None
    try:
        yield
    except DataError:
        raise
    except (
        *_DAMAGED_FILE_ERRORS, Image.DecompressionBombError, errors.BytesLengthException,
        errors.InvalidDicomError,
    ) as error:  # fmt: skip
        reason = textwrap.shorten(str(error), _MAX_REASON_CHARS).rstrip(".") or type(error).__name__
        raise DataError(
            f"{name} cannot be read: {reason}; download or export the file again."
        ) from None


def _read_header(data: bytes, name: str, max_pixels: int) -> "Dataset":
    from pydicom import dcmread
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # Read the transfer syntax first: pydicom inflates a deflated file without a limit.
    meta = _read_file_meta(data)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return dcmread(io.BytesIO(data))
    return _read_deflated(data, meta, name, max_pixels)


def _read_file_meta(data: bytes) -> "FileMetaDataset":
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


def _read_deflated(data: bytes, meta: "FileMetaDataset", name: str, max_pixels: int) -> "Dataset":
    """Read a deflated file; inflate at most one frame and `_HEADER_BYTES`."""
    from pydicom.filereader import read_dataset
    from pydicom.uid import ExplicitVRLittleEndian

    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    deflated = data[_META_START + int(meta.FileMetaInformationGroupLength) :]
    # The head holds the frame size, which limits the bytes still to be inflated.
    head = inflater.decompress(deflated, _HEADER_BYTES)
    header = read_dataset(
        io.BytesIO(head), is_implicit_VR=False, is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag >= _PIXEL_DATA,
    )  # fmt: skip
    height, width = _check_dimensions(header, name, max_pixels)
    samples = _to_int(header.get("SamplesPerPixel"), 1)
    sample_bytes = -(-_to_int(header.get("BitsAllocated"), 8) // 8)
    if not (1 <= samples <= 4 and 1 <= sample_bytes <= _MAX_SAMPLE_BYTES):
        raise ValueError(f"{samples} samples of {sample_bytes} bytes a pixel are not supported")
    max_bytes = _HEADER_BYTES + height * width * samples * sample_bytes
    # A single byte beyond the limit proves the file too long.
    tail = inflater.decompress(inflater.unconsumed_tail, max_bytes - len(head) + 1)
    if len(head) + len(tail) > max_bytes:
        raise DataError(
            f"A deflated DICOM file must hold its frame and little else, but {name} inflates to "
            f"more than {max_bytes:,} bytes; export the file again."
        )
    whole = read_dataset(io.BytesIO(head + tail), is_implicit_VR=False, is_little_endian=True)
    # The data set is inflated now: pydicom must decode plain explicit little endian.
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    whole.file_meta = meta
    return whole


def _check_header(header: "Dataset", name: str, max_pixels: int) -> tuple[int, int]:
    """Return the height and width of the frame.

    Raises:
        DataError: if pixels or decoder are missing, the frame is too large, or the file has several
            frames.
    """
    if "PixelData" not in header:
        raise DataError(
            f"{name} cannot be read: it has no pixels or is truncated; "
            "download or export the file again."
        )
    # Before anything is unpacked: sizes and frame counts of the header are cheap to refuse.
    size = _check_dimensions(header, name, max_pixels)
    if header.file_meta.TransferSyntaxUID.is_compressed:
        encapsulated.check_decoder(header, name)
        # Count frames in the pixel data too: the header may claim fewer.
        num_frames = encapsulated.count_frames(header)
        encapsulated.check_size(header, name)
    else:
        num_frames = len(header.PixelData) // encapsulated.frame_bytes(header)
    _check_single_frame(max(1, num_frames), name)
    return size


def _check_dimensions(header: "Dataset", name: str, max_pixels: int) -> tuple[int, int]:
    _check_single_frame(_to_int(header.get("NumberOfFrames"), 1), name)
    height, width = int(header.Rows), int(header.Columns)
    if height * width > max_pixels:
        raise DataError(
            f"An image must have at most {max_pixels:,} pixels, but {name} has {width} x {height}; "
            "reduce its size."
        )
    if height * width == 0:
        raise ValueError("its frame has no pixels")
    return height, width


def _check_single_frame(num_frames: int, name: str) -> None:
    if num_frames != 1:
        raise DataError(
            f"A DICOM file must hold a single frame, but {name} holds {num_frames}; save the "
            "frames you need as separate files."
        )


def _to_int(value: object, default: int) -> int:
    """Return the integer value of an element; return the default for 0 or an empty value."""
    return int(value or default)  # type: ignore[call-overload, no-any-return]
