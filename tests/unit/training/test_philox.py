"""Philox against published vectors and whole-number arithmetic; distribution of the numbers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtil.training.philox import philox4x32, to_normals, to_uniforms

WORDS = st.integers(0, 2**32 - 1)
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)

KNOWN = [
    ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
"""Rows "philox4x32 10" of tests/kat_vectors in Random123: counter, key, result."""


def _philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    first, second, third, fourth = (torch.tensor(word) for word in counter)
    return [int(word) for word in philox4x32((first, second, third, fourth), key)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(_philox(counter, key)) == expected


@given(st.tuples(WORDS, WORDS, WORDS, WORDS), st.tuples(WORDS, WORDS))
def test_whole_number_arithmetic_agrees(
    counter: tuple[int, int, int, int], key: tuple[int, int]
) -> None:
    a, b, c, d = counter
    for index in range(10):
        left = (key[0] + index * 0x9E3779B9) % 2**32
        right = (key[1] + index * 0xBB67AE85) % 2**32
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (second >> 32) ^ b ^ left, second % 2**32
        c, d = (first >> 32) ^ d ^ right, first % 2**32
    assert _philox(counter, key) == [a, b, c, d]


def test_broadcast_counters_give_the_words_of_single_counters() -> None:
    """The arguments stay unchanged."""
    index, name = torch.arange(5)[None], torch.tensor([[7], [2**32 - 1]])
    stream, zero = torch.full((1, 1), 3), torch.zeros(1, 1, dtype=torch.int64)
    words = torch.stack(philox4x32((index, stream, name, zero), (1, 2)), dim=-1)
    for row, number in enumerate((7, 2**32 - 1)):
        for column in range(5):
            assert words[row, column].tolist() == _philox((column, 3, number, 0), (1, 2))
    assert (index.tolist(), stream.item()) == ([[0, 1, 2, 3, 4]], 3)
    assert (name.flatten().tolist(), zero.item()) == ([7, 2**32 - 1], 0)


def test_numpy_gives_the_words_of_pytorch() -> None:
    rng = np.random.default_rng(0)
    counter = [rng.integers(0, 2**32, shape) for shape in ((1, 6), (1, 1), (5, 1), (5, 1))]
    first, second, third, fourth = counter
    one = philox4x32((first, second, third, fourth), (3, 4))
    first, second, third, fourth = (torch.from_numpy(words) for words in counter)
    other = philox4x32((first, second, third, fourth), (3, 4))
    assert all(words.shape == (5, 6) for words in one)
    assert all(np.array_equal(*words) for words in zip(one, other, strict=True))


def test_uniforms_at_the_ends_and_in_between_by_hand() -> None:
    words = torch.tensor([0, 255, 256, 2**31, 2**32 - 1])
    expected = [0.0, 0.0, 2**-24, 0.5, 1 - 2**-24]
    for dtype in (torch.float32, torch.float64):
        uniforms = to_uniforms(words, dtype)
        assert uniforms.dtype == dtype
        assert uniforms.tolist() == expected


def test_normals_by_hand() -> None:
    """Radius sqrt(-2 log(1 - u)), angle 2 pi v."""
    first = torch.tensor([0, 2**31, 2**31, 2**32 - 1])
    second = torch.tensor([2**30, 0, 2**30, 2**31])
    middle, largest = math.sqrt(2 * math.log(2)), math.sqrt(2 * 24 * math.log(2))
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        cosines, sines = to_normals(first, second, dtype)
        assert cosines.dtype == sines.dtype == dtype
        assert cosines.tolist() == pytest.approx(
            [0, middle, 0, -largest], rel=tolerance, abs=tolerance
        )
        assert sines.tolist() == pytest.approx([0, 0, middle, 0], abs=tolerance)
