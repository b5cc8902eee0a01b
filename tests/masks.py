"""Masks as tests read them."""

import numpy as np

from mtil.data.images.read import Mask, decode_mask, open_image


def read_coloured_mask(data: bytes, name: str, colour: str) -> Mask:
    """Decode the lesion (h, w) of one class from a mask that marks classes in red and green."""
    return decode_mask(open_image(data, name), name, colour=colour).mask


def unpack_mask(data: bytes, size: int) -> Mask:
    """Return the square mask of `size` whose bits `pack_mask` has packed row by row."""
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=size * size)
    return bits.reshape(size, size).astype(np.bool_)
