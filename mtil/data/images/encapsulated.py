"""Checks on the pixel data of DICOM files before decoding: decoder, frame count and frame size."""

import io
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from mtil.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

# First bytes of a frame: JPEG and JPEG-LS, then JPEG 2000.
_FRAME_STARTS = (b"\xff\xd8", b"\xff\x4f")
_RLE_HEADER = 64
# Bytes of padding allowed in an unpacked segment.
_PADDING_BYTES = 1024


def frame_bytes(header: "Dataset") -> int:
    """Return the number of bytes of an uncompressed frame, without padding."""
    from pydicom.pixels.utils import get_expected_length

    return max(1, get_expected_length(header))


def check_decoder(header: "Dataset", name: str) -> None:
    """Check that a decoder for the pixels is installed.

    Raises:
        DataError: if no decoder is installed; the message names the packages to install.
    """
    from pydicom.pixels.decoders.base import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise DataError(
            f"{name} cannot be read: its pixels are compressed as {syntax.name}, for which pydicom "
            "finds no decoder; run: pip install 'pylibjpeg[libjpeg,openjpeg]', or export the "
            "file uncompressed."
        )


def count_frames(header: "Dataset") -> int:
    """Return the number of frames in compressed pixels, without trusting the header."""
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.uid import RLELossless

    stream = io.BytesIO(header.PixelData)
    offsets = parse_basic_offsets(stream)
    # An RLE frame is a single fragment. A JPEG frame may span several, the first with a start mark.
    if header.file_meta.TransferSyntaxUID == RLELossless:
        num_starts = sum(1 for _ in generate_fragments(stream))
    else:
        num_starts = sum(fragment[:2] in _FRAME_STARTS for fragment in generate_fragments(stream))
    # Both are counted: the offset table may be empty.
    return max(len(offsets), num_starts)


def check_size(header: "Dataset", name: str) -> None:
    """Check, before decoding, that compressed pixels have the size given in the header.

    Raises:
        DataError: if the sizes differ.
    """
    from pydicom.encaps import generate_frames
    from pydicom.uid import RLELossless

    height, width = int(header.Rows), int(header.Columns)
    frame = next(generate_frames(header.PixelData, number_of_frames=1))
    if header.file_meta.TransferSyntaxUID == RLELossless:
        # RLE stores no size. Unpacking is simulated: every byte plane must fit the frame.
        longest = max(map(_unpacked_bytes, _segments(frame, height * width)), default=0)
        if longest > height * width + _PADDING_BYTES:
            raise DataError(
                f"The pixels of {name} must be {width} x {height}, as its header says, but a "
                f"segment unpacks to more than {height * width:,} bytes; export the file again."
            )
        return
    try:
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            encoded_size = image.size
    except UnidentifiedImageError:
        # A third format, whose decoder allocates by the size in the header.
        return
    if encoded_size != (width, height):
        raise DataError(
            f"The pixels of {name} must be {width} x {height}, as its header says, but are "
            f"{encoded_size[0]} x {encoded_size[1]}; export the file again."
        )


def _segments(frame: bytes, size: int) -> list[tuple[bytes, int]]:
    """Return the segments of an RLE frame, paired with the allowed unpacked bytes of a segment."""
    # The RLE header has 16 words: the number of segments and up to 15 offsets.
    words = memoryview(frame[:_RLE_HEADER]).cast("I").tolist()
    starts = [*words[1 : 1 + min(words[0], 15)], len(frame)]
    return [(frame[start:end], size) for start, end in pairwise(starts)]


def _unpacked_bytes(segment: tuple[bytes, int]) -> int:
    """Return the unpacked bytes of an RLE segment; stop counting above the allowed bytes."""
    packed, max_bytes = segment
    position = total = 0
    while position < len(packed) and total <= max_bytes + _PADDING_BYTES:
        head = packed[position]
        # PackBits: above 128 a repeated byte, below 128 a run of literal bytes, 128 does nothing.
        if head > 128:
            total += 257 - head
            position += 2
        else:
            length = head + 1 if head < 128 else 0
            total += length
            position += length + 1
    return total
