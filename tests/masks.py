"""Read masks in tests."""

import numpy as np

from mtil.data.images.read import Mask, decode_mask, open_image


def read_coloured_mask(data: bytes, name: str, colour: str) -> Mask:
    """Decode the lesion (h, w) of a class from a mask with classes marked in red and green."""
    return decode_mask(open_image(data, name), name, colour=colour).mask


def unpack_mask(data: bytes, size: int) -> Mask:
    """Unpack a square mask (size, size), packed row by row by `pack_mask`."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size * size)
    return bits.reshape(size, size).astype(np.bool_)
