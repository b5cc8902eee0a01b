"""Pixel data of DICOM files before they are decoded: how many frames, and how large."""

import io
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from mtil.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

_STARTS = (b"\xff\xd8", b"\xff\x4f")
"""How a frame of JPEG or JPEG-LS, and one of JPEG 2000, begins."""
_RLE_HEADER = 64
_SLACK = 1024
"""Bytes that a decoder may find beyond a segment's own, as padding."""


def frame_bytes(header: "Dataset") -> int:
    """Return the bytes of a frame that is not compressed, without padding."""
    from pydicom.pixels.utils import get_expected_length

    return max(1, get_expected_length(header))


def check_decoder(header: "Dataset", name: str) -> None:
    """Refuse pixels that nothing here can decode.

    Raises:
        DataError: saying what to install.
    """
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
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


def count_frames(header: "Dataset") -> int:
    """Return how many frames compressed pixels hold, whatever the header says."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.uid import RLELossless

    stream = io.BytesIO(header.PixelData)
    offsets = parse_basic_offsets(stream)
    if header.file_meta.TransferSyntaxUID == RLELossless:
        starts = sum(1 for _ in generate_fragments(stream))
    else:
        starts = sum(fragment[:2] in _STARTS for fragment in generate_fragments(stream))
    return max(len(offsets), starts)


def check_size(header: "Dataset", name: str) -> None:
    """Refuse compressed pixels that are more than the header says, before they are decoded.

    Raises:
        DataError: naming the two sizes.
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    height, width = int(header.Rows), int(header.Columns)
    frame = next(generate_frames(header.PixelData, number_of_frames=1))
    if header.file_meta.TransferSyntaxUID == RLELossless:
        longest = max(map(_unpacked_bytes, _segments(frame, height * width)), default=0)
        if longest > height * width + _SLACK:
            raise DataError(
                f"The pixels of {name} must be {width} x {height}, as its header says, but a "
                f"segment unpacks to more than {height * width:,} bytes; save it again."
            )
        return
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            found = image.size
    except UnidentifiedImageError:  # another kind, whose decoder asks the header
        return
    if found != (width, height):
        raise DataError(
            f"The pixels of {name} must be {width} x {height}, as its header says, but are "
            f"{found[0]} x {found[1]}; save it again."
        )


def _segments(frame: bytes, size: int) -> list[tuple[bytes, int]]:
    """Return an RLE frame's segments, with the bytes that each may have."""
    words = memoryview(frame[:_RLE_HEADER]).cast("I").tolist()
    starts = [*words[1 : 1 + min(words[0], 15)], len(frame)]
    return [(frame[start:end], size) for start, end in pairwise(starts)]


def _unpacked_bytes(segment: tuple[bytes, int]) -> int:
    """Return how many bytes an RLE segment unpacks to, or some number beyond what it may."""
    packed, most = segment
    at = total = 0
    while at < len(packed) and total <= most + _SLACK:
        head = packed[at]
        if head > 128:
            total += 257 - head
            at += 2
        else:
            length = head + 1 if head < 128 else 0
            total += length
            at += length + 1
    return total
