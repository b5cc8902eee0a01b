"""Philox4x32-10 (Salmon et al. 2011, doi:10.1145/2063384.2063405), a counter-based generator.

Philox maps a counter and a key to random words. The map has no state, so any number of any stream
can be computed alone, in any order and on any device.
"""

import math
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Words = TypeVar("Words", Tensor, npt.NDArray[np.int64])
"""An int64 tensor or array with values from 0 to 2**32 - 1."""

_NUM_ROUNDS = 10
_WORD = 2**32 - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_FRACTION_BITS = 24
"""Random bits of a uniform number; a float32 holds 24 bits exactly."""


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[int, int]
) -> tuple[Words, Words, Words, Words]:
    """Return four random words per counter. PyTorch and NumPy give equal words.

    NumPy is several times as fast as PyTorch for a few hundred counters.

    Args:
        counter: the four words of the counters; the shapes broadcast.
        key: two numbers from 0 to 2**32 - 1. Each key gives another stream of random words.
    """
    first, second, third, fourth = counter
    for index in range(_NUM_ROUNDS):
        keys = [(word + index * step) & _WORD for word, step in zip(key, _KEY_STEPS, strict=True)]
        # PyTorch has no unsigned integers of 64 bits. The signed product wraps to the same bits.
        products = [first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]]
        first = _mix(products[1], second, keys[0])
        third = _mix(products[0], fourth, keys[1])
        # Only the low 32 bits count from here on; `_mix` clears the high bits a round later.
        second, fourth = products[1], products[0]
    return first, second & _WORD, third, fourth & _WORD


def to_uniforms(words: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Convert words to uniform numbers in [0, 1), multiples of 2**-24, equal in every dtype."""
    return (words >> (32 - _FRACTION_BITS)).to(dtype).mul_(2**-_FRACTION_BITS)


def to_normals(
    first: Tensor, second: Tensor, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Convert two words to two standard normal numbers (Box & Muller 1958).

    The largest absolute value is 5.77. The dtypes agree up to rounding.
    """
    # 1 - u is in (0, 1], so the logarithm is finite.
    radius = to_uniforms(first, dtype).neg_().add_(1).log_().mul_(-2).sqrt_()
    angle = to_uniforms(second, dtype).mul_(2 * math.pi)
    return angle.cos().mul_(radius), angle.sin_().mul_(radius)


def _mix(product: Words, word: Words, key: int) -> Words:
    """Return the high half of a product, xor a word, xor a key."""
    mixed = product >> 32
    # In place, the operation saves an allocation. The first rounds broadcast and cannot.
    if word.shape == mixed.shape:
        mixed ^= word
    else:
        mixed = mixed ^ word
    mixed ^= key
    mixed &= _WORD
    return mixed
