"""Which images may be near-duplicates: those that share enough hash bits in some window.

Each band takes some of a hash's bits as a key. Entries are sorted by key, and images that meet
under one key in any band are compared by whole hashes. The work grows as n log n: under one key
each entry meets at most `MAX_NEIGHBOURS` others, and an image is compared with the `MAX_MET` that
were nearest and handed on with `MAX_PARTNERS`. So of very many images that look alike (thousands of
near-black ones, say) most pairs are left out; what is left usually still connects them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from mtil.data.audit.duplicates.description import (
    MIRRORED_BITS,
    MIRRORED_WINDOWS,
    NUM_COEFFICIENTS,
    NUM_HASHES,
    OFFSETS,
    SPANS,
    mirrored,
)
from mtil.data.parallel import threads

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
"""How many later images (by content) an image is compared with by all windows, at most: those with
the nearest hashes where they met. Of 100,000 phantoms many meet more."""
MAX_PARTNERS = 8
"""How many later images, the nearest, an image is aligned with, at most: aligning is the dear part,
and a larger group is joined through its other members."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with bits all over."""
_DISTANCE_BITS = 4
_SHARE_BITS = 2
_SHARES = 1 << _SHARE_BITS
"""Parts in which a band's keys are made and sorted, one after the other, to save memory."""
_IMAGES = 1 << 10
"""Whose pairs are kept together."""
_BATCH = 1 << 18
_COMPARED = 64

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


def find(hashes: _Bits, new: npt.NDArray[np.bool_] | None = None) -> Candidates:
    """Find candidates among images.

    Args:
        hashes: (n, NUM_HASHES), none of which are all zero.
        new: (n,) the images of which every pair holds one; all if not given.
    """
    met = _Met(len(hashes))
    new = np.ones(len(hashes), np.bool_) if new is None else new
    for band, share in itertools.product(bands(), range(_SHARES)):
        for pairs in _meetings(hashes, new, band, share, met.fields):
            met.add(pairs)
    parts = met.all()
    return _joined(list(threads(lambda part: _nearest(hashes, *met.fields.read(part)), parts)))


def bands() -> list[np.uint64]:
    """Return the bits of each band."""
    num_bits = NUM_COEFFICIENTS**2 - 1
    at = np.arange(BITS_PER_BAND)
    bits = [1 + (step * (at + start)) % num_bits for start, step in enumerate(BAND_STEPS)]
    return [np.bitwise_or.reduce(np.uint64(1) << band.astype(np.uint64)) for band in bits]


class _Fields:
    """Pairs of `count` images as integers: from the top i, j, whether j is mirrored, distance."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.index_bits = np.uint64(max(count - 1, 1).bit_length())
        self.image = self.index_bits + np.uint64(1 + _DISTANCE_BITS)
        self.other = np.uint64((1 << (int(self.index_bits) + 1)) - 1)
        """Mask of j and the mirror, once they are at the bottom."""

    def write(self, a: _Index, b: _Index, distance: npt.NDArray[np.uint8]) -> _Bits:
        """Pack pairs of owners, the second of which may be a mirrored one (from `count` on)."""
        mirror, b = np.divmod(b, self.count)
        low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
        other = high << np.uint64(1) | mirror.astype(np.uint64)
        return np.asarray(low << self.image | other << np.uint64(_DISTANCE_BITS) | distance)

    def by_distance(self, pairs: _Bits) -> _Bits:
        """Put the distance before j."""
        distance = pairs & np.uint64((1 << _DISTANCE_BITS) - 1)
        other = pairs >> np.uint64(_DISTANCE_BITS) & self.other
        distance <<= self.index_bits + np.uint64(1)
        return np.asarray(pairs >> self.image << self.image | distance | other)

    def by_other(self, pairs: _Bits) -> _Bits:
        """Put the distance last again."""
        distance = pairs >> self.index_bits + np.uint64(1) & np.uint64((1 << _DISTANCE_BITS) - 1)
        other = pairs & self.other
        other <<= np.uint64(_DISTANCE_BITS)
        return np.asarray(pairs >> self.image << self.image | other | distance)

    def read(self, pairs: _Bits) -> tuple[_Index, _Index, npt.NDArray[np.bool_]]:
        """Return i, j and whether j is mirrored of pairs with the distance before j."""
        other = pairs & self.other
        i, j = (pairs >> self.image).astype(np.int64), (other >> np.uint64(1)).astype(np.int64)
        return i, j, (other & np.uint64(1)).astype(np.bool_)


class _Met:
    """Pairs that met, each once: of an image the `MAX_MET` that were nearest when they met."""

    def __init__(self, count: int) -> None:
        self.fields = _Fields(count)
        self._starts = np.arange(_IMAGES, count, _IMAGES).astype(np.uint64) << self.fields.image
        self._parts = [np.zeros(0, np.uint64) for _ in range(len(self._starts) + 1)]
        self._waiting: list[_Bits] = []
        self._num_waiting = 0

    def add(self, pairs: _Bits) -> None:
        """Add pairs, in any order."""
        self._waiting.append(pairs)
        self._num_waiting += len(pairs)
        if self._num_waiting > max(4 * _BATCH, sum(len(part) for part in self._parts) // 4):
            self.all()

    def all(self) -> list[_Bits]:
        """Return the pairs, sorted, with the distance before j, by `_IMAGES` images each."""
        waiting = np.concatenate([np.zeros(0, np.uint64), *self._waiting])
        self._waiting, self._num_waiting = [], 0
        waiting.sort()
        splits = np.split(waiting, np.searchsorted(waiting, self._starts))
        for at, more in enumerate(splits):
            if len(more):
                self._parts[at] = self._with(self._parts[at], more)
        return self._parts

    def _with(self, pairs: _Bits, more: _Bits) -> _Bits:
        pairs = np.concatenate([self.fields.by_other(pairs), more])
        pairs = self.fields.by_distance(_once(pairs))
        pairs.sort()
        image = pairs >> self.fields.image
        keep = np.ones(len(pairs), np.bool_)
        keep[MAX_MET:] = image[MAX_MET:] != image[:-MAX_MET]
        return pairs[keep]


def _once(pairs: _Bits) -> _Bits:
    """Sort pairs in place, and return each once, where it is nearest."""
    pairs.sort()
    pair = pairs >> np.uint64(_DISTANCE_BITS)
    first = np.ones(len(pairs), np.bool_)
    first[1:] = pair[1:] != pair[:-1]
    return pairs[first]


def _meetings(
    hashes: _Bits, new: npt.NDArray[np.bool_], band: np.uint64, share: int, fields: _Fields
) -> Iterator[_Bits]:
    """Yield packed pairs that meet in a band and are near enough in the windows that met.

    Args:
        hashes: (n, NUM_HASHES), of the images.
        new: (n,) the images of which every pair holds one.
        band: the bits that make a key.
        share: which of `_SHARES` parts of the keys to look at.
        fields: how to pack pairs.
    """
    keys, entry_bits = _sorted_keys(hashes, band, share)
    meetings_from = partial(_meetings_from, hashes, new, keys, entry_bits, fields)
    yield from threads(meetings_from, range(0, len(keys), _BATCH))


def _meetings_from(
    hashes: _Bits,
    new: npt.NDArray[np.bool_],
    shared: _Bits,
    entry_bits: np.uint64,
    fields: _Fields,
    start: int,
) -> _Bits:
    """Return the pairs whose first entry is one of the `_BATCH` from `start` on."""
    count = fields.count
    # An image has at most all of its windows under one key, so this many hold all neighbours.
    part = shared[max(start - 1, 0) : start + _BATCH + (MAX_NEIGHBOURS + 1) * NUM_HASHES]
    keys = part >> entry_bits
    entries = (part & ((np.uint64(1) << entry_bits) - np.uint64(1))).astype(np.int64)
    owner = entries // NUM_HASHES
    first = np.ones(len(part), np.bool_)  # of an image's windows with one key, one is enough
    first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    if start:
        first[0] = False
    end = int(first[: _BATCH + (start > 0)].sum())
    keys, owner = keys[first], owner[first]
    bits = _bits(hashes, owner, entries[first] % NUM_HASHES)
    is_new = new[owner % count]
    alive = np.arange(end)
    found = [np.zeros(0, np.uint64)]
    for step in range(1, MAX_NEIGHBOURS + 1):
        alive = alive[alive < len(keys) - step]
        alive = alive[keys[alive] == keys[alive + step]]
        # Mirrored both, they met as they are already; an image is not its own twin.
        wanted = (owner[alive] < count) & (owner[alive] != owner[alive + step] % count)
        wanted &= is_new[alive] | is_new[alive + step]
        left = alive[wanted]
        right = left + step
        distance = np.bitwise_count(bits[left] ^ bits[right])
        near = distance <= MAX_MET_DISTANCE
        found.append(fields.write(owner[left[near]], owner[right[near]], distance[near]))
    return _once(np.concatenate(found))


def _bits(hashes: _Bits, owner: _Index, window: _Index) -> _Bits:
    """Return the hashes of windows of images, the mirrored ones' from `len(hashes)` on."""
    mirror, image = np.divmod(owner, len(hashes))
    turned = mirror.astype(np.bool_)
    bits = np.asarray(hashes[image, np.where(turned, MIRRORED_WINDOWS[window], window)])
    return np.asarray(bits ^ turned * MIRRORED_BITS)


def _sorted_keys(hashes: _Bits, band: np.uint64, share: int) -> tuple[_Bits, np.uint64]:
    """Return a share of the keys of all entries (2 n NUM_HASHES,) in order, each with its number.

    An entry is a window of an image, or of a mirrored one, which come after all images. Key and
    number share one integer, which sorts fast: the number takes the lower bits, whose count is
    returned too. The upper bits of a product depend on all bits of the key; two keys that fall
    together are told apart by their hashes' distance, and equal keys fall into one share.
    """
    entry_bits = np.uint64(max(2 * hashes.size - 1, 1).bit_length())
    keys = np.empty(2 * hashes.size, np.uint64)  # what is not written to takes no memory
    size = 0
    for mirror, start in itertools.product((False, True), range(0, len(hashes), _IMAGES)):
        part = hashes[start : start + _IMAGES]
        products = ((mirrored(part) if mirror else part) & band).ravel() * _SPREAD
        mine = np.flatnonzero(products >> np.uint64(64 - _SHARE_BITS) == share)
        found = products[mine] >> entry_bits << entry_bits
        found |= (mine + (mirror * len(hashes) + start) * NUM_HASHES).astype(np.uint64)
        keys[size : size + len(found)] = found
        size += len(found)
    keys = keys[:size]
    keys.sort()
    return keys, entry_bits


def _nearest(hashes: _Bits, i: _Index, j: _Index, mirror: npt.NDArray[np.bool_]) -> Candidates:
    """Keep the pairs that are near in their best windows, of each image the nearest."""
    of_i, of_j, motion = _alignments()
    distance = np.empty(len(i), np.int64)
    at = np.empty(len(i), np.int64)
    for start in range(0, len(i), _COMPARED):
        part = slice(start, start + _COMPARED)
        left, right, turned = hashes[i[part]], hashes[j[part]], mirror[part]
        right[turned] = mirrored(right[turned])
        bits = np.bitwise_count(left[:, of_i] ^ right[:, of_j])
        at[part] = bits.argmin(axis=1)
        distance[part] = bits[np.arange(len(bits)), at[part]]
    order = np.lexsort((mirror, j, distance, i))
    order = order[distance[order] <= MAX_DISTANCE]
    order = order[_rank(i[order]) < MAX_PARTNERS]
    return Candidates(i[order], j[order], mirror[order], distance[order], motion[at[order]])


def _joined(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([part.i for part in parts]),
        np.concatenate([part.j for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
        np.concatenate([part.distance for part in parts]),
        np.concatenate([part.motion for part in parts]),
    )


def _rank(values: _Index) -> _Index:
    """Return how many equal ones precede each of sorted values."""
    return np.asarray(np.arange(len(values)) - np.searchsorted(values, values))


@cache
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
