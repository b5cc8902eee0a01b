"""Which images may be near-duplicates: those that share enough hash bits in some window.

Each band takes some of a hash's bits as a key. Entries are sorted by key, and images that meet
under one key in any band are compared by whole hashes. The work grows as n log n: under one key
each entry meets at most `MAX_NEIGHBOURS` others, and an image is compared with at most `MAX_MET`
and handed on with `MAX_PARTNERS`. So of very many images that look alike (thousands of near-black
ones, say) most pairs are left out; what is left usually still connects them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mtil.data.duplicates.description import (
    NUM_COEFFICIENTS,
    NUM_HASHES,
    OFFSETS,
    SPANS,
    mirrored,
)

BAND_STEPS = (1, 2, 4, 5, 8, 10, 11, 13)
"""One band each, which takes every n-th bit: prime to 63, so that no two bands are alike.
With eight, all but four of 2,655 edits of real images become candidates and are confirmed."""
BITS_PER_BAND = 22
"""Of 63: two more miss one in 200 of the hardest edits, two fewer find no more and cost more."""
MAX_NEIGHBOURS = 32
"""How many others an entry meets under one key, at most."""
MAX_MET_DISTANCE = 13
"""Of 63 bits, in the windows that met: a first, cheap sieve; windows may be half a step off."""
MAX_DISTANCE = 10
"""Of 63 bits, in the best windows: of 2,655 edits of real images two changed more, and of pairs
of unrelated images one in a thousand changes less."""
MAX_MET = 256
"""How many later images (by content) an image is compared with by all windows, at most: twenty
times the mean among 100,000 images."""
MAX_PARTNERS = 8
"""How many later images, the nearest, an image is aligned with, at most: aligning is the dear part,
and a larger group is joined through its other members."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with bits all over."""
_BATCH = 1 << 20
_COMPARED = 512

_Index = npt.NDArray[np.integer]
_Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Candidates:
    """Pairs (p,) of images, i < j, that may show the same."""

    i: _Index
    j: _Index
    mirrored: npt.NDArray[np.bool_]
    """Whether j is to be turned left to right."""
    distance: _Index
    """Bits that differ, of 63, in the best windows."""
    motion: npt.NDArray[np.float32]
    """(p, 4) the map from i to j that those windows say, as in `alignment`."""


def find(hashes: _Bits) -> Candidates:
    """Find candidates among images by their hashes (n, NUM_HASHES)."""
    met = np.zeros(0, np.uint64)
    both = np.concatenate([hashes, mirrored(hashes)])
    for band in bands():
        met = np.unique(np.concatenate([met, *_meetings(both, band)]))
    i, j, mirror = _unpacked(met, len(hashes))
    keep = _rank(i) < MAX_MET
    return _nearest(both, i[keep], j[keep], mirror[keep])


def bands() -> list[np.uint64]:
    """Return the bits of each band."""
    num_bits = NUM_COEFFICIENTS**2 - 1
    at = np.arange(BITS_PER_BAND)
    bits = [1 + (step * (at + start)) % num_bits for start, step in enumerate(BAND_STEPS)]
    return [np.bitwise_or.reduce(np.uint64(1) << band.astype(np.uint64)) for band in bits]


def _meetings(both: _Bits, band: np.uint64) -> Iterator[_Bits]:
    """Yield packed pairs that meet in a band and are near enough in the windows that met.

    Args:
        both: hashes (2 n, NUM_HASHES) of the images and of their mirror images.
        band: the bits that make a key.
    """
    count, both = len(both) // 2, both.ravel()
    keys, entries = _sorted_keys(both, band)
    owner = entries // NUM_HASHES
    first = np.ones(len(keys), np.bool_)  # of an image's windows with one key, one is enough
    first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    keys, entries, owner = keys[first], entries[first], owner[first]
    alive = np.arange(len(keys))
    for step in range(1, MAX_NEIGHBOURS + 1):
        alive = alive[alive < len(keys) - step]
        alive = alive[keys[alive] == keys[alive + step]]
        if not len(alive):
            return
        for start in range(0, len(alive), _BATCH):
            left = alive[start : start + _BATCH]
            right = left + step
            # Mirrored both, they met as they are already; an image is not its own twin.
            wanted = (owner[left] < count) & (owner[left] != owner[right] % count)
            left, right = left[wanted], right[wanted]
            distance = np.bitwise_count(both[entries[left]] ^ both[entries[right]])
            near = distance <= MAX_MET_DISTANCE
            yield np.unique(_packed(owner[left[near]], owner[right[near]], count))


def _sorted_keys(both: _Bits, band: np.uint64) -> tuple[_Bits, _Index]:
    """Return the keys of all entries (2 n NUM_HASHES,) in order, and which entry has which.

    A key and its entry share one integer, which sorts fast. The upper bits of a product depend on
    all bits of the key; two keys that fall together are told apart by their hashes' distance.
    """
    entry_bits = np.uint64(max(len(both) - 1, 1).bit_length())
    lower = (np.uint64(1) << entry_bits) - np.uint64(1)
    keys = both & band
    keys *= _SPREAD
    keys &= ~lower
    keys |= np.arange(len(both), dtype=np.uint64)
    keys.sort()
    entries = (keys & lower).astype(np.min_scalar_type(len(both)))
    keys >>= entry_bits
    return keys, entries


def _packed(a: _Index, b: _Index, count: int) -> _Bits:
    """Pack pairs of owners, the second of which may be a mirrored one (from `count` on)."""
    a = a.astype(np.int64)
    mirror, b = np.divmod(b.astype(np.int64), count)
    low, high = np.minimum(a, b), np.maximum(a, b)
    return ((low * count + high) * 2 + mirror).astype(np.uint64)


def _unpacked(packed: _Bits, count: int) -> tuple[_Index, _Index, npt.NDArray[np.bool_]]:
    pair, mirror = np.divmod(packed.astype(np.int64), 2)
    i, j = np.divmod(pair, max(count, 1))
    return i, j, mirror.astype(np.bool_)


def _nearest(both: _Bits, i: _Index, j: _Index, mirror: npt.NDArray[np.bool_]) -> Candidates:
    """Keep the pairs that are near in their best windows."""
    of_i, of_j, motion = _alignments()
    other = j + mirror * (len(both) // 2)
    kept, distances, best = [], [], []
    for start in range(0, len(i), _COMPARED):
        part = slice(start, start + _COMPARED)
        bits = np.bitwise_count(both[i[part]][:, of_i] ^ both[other[part]][:, of_j])
        at = bits.argmin(axis=1)
        distance = bits[np.arange(len(at)), at].astype(np.int64)
        near = distance <= MAX_DISTANCE
        kept.append(start + np.flatnonzero(near))
        distances.append(distance[near])
        best.append(at[near])
    keep = np.concatenate([np.zeros(0, np.int64), *kept])
    at = np.concatenate([np.zeros(0, np.int64), *best])
    distance = np.concatenate([np.zeros(0, np.int64), *distances])
    order = np.lexsort((mirror[keep], j[keep], distance, i[keep]))
    order = order[_rank(i[keep][order]) < MAX_PARTNERS]
    keep, at, distance = keep[order], at[order], distance[order]
    return Candidates(i[keep], j[keep], mirror[keep], distance, motion[at])


def _rank(values: _Index) -> _Index:
    """Return how many equal ones precede each of sorted values."""
    return np.asarray(np.arange(len(values)) - np.searchsorted(values, values))


def _alignments() -> tuple[_Index, _Index, npt.NDArray[np.float32]]:
    """Return windows of two images to lay over one another, and what map that is."""
    edges: dict[float, tuple[float, float]] = {}
    for pair in itertools.product(OFFSETS, OFFSETS):
        edges.setdefault(round(pair[0] - pair[1], 6), pair)
    left: list[int] = []
    right: list[int] = []
    motions: list[list[float]] = []
    for top, bottom, start, end in itertools.product(edges.values(), repeat=4):
        for k, windows in enumerate((left, right)):
            vertical, horizontal = (top[k], bottom[k]), (start[k], end[k])
            windows.append(SPANS.index(vertical) * len(SPANS) + SPANS.index(horizontal))
        motions.append([*_map(start, end), *_map(top, bottom)])
    return np.array(left), np.array(right), np.array(motions, np.float32)


def _map(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Return the map that lays one span over another, on an axis from -1 to 1.

    Args:
        start: what is left off at the start of the first and of the second.
        end: likewise at the end.

    Returns:
        Shift and scale.
    """
    scale = (1 - start[1] - end[1]) / (1 - start[0] - end[0])
    return (start[1] - end[1]) - scale * (start[0] - end[0]), scale
