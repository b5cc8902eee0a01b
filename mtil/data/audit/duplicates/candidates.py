"""Find candidate near-copies: images with enough hash bits in common in some window.

A band selects some bits of a hash as a key. Entries are sorted by key, and images that meet under
an equal key in some band are compared by whole hashes.

The work grows as n log n. Under a key, an entry meets at most `MAX_NEIGHBOURS` entries. An image is
compared with the `MAX_COMPARED_IMAGES` nearest images met, and `MAX_PARTNERS` of these become
candidates. Among very many similar images (say, thousands of near-black images) most pairs are left
out, but the remaining pairs usually still connect the images.
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
    WINDOW_OFFSETS,
    WINDOW_SPANS,
    mirror_hashes,
)
from mtil.data.parallel import map_in_threads

BAND_STEPS = (1, 2, 4, 5, 8, 10, 11, 13)
"""Step of each band: band k takes every n-th bit. The steps are coprime to 63, and no two bands are
alike. With eight bands, all but four of 2,655 edits of real images become candidates and are
confirmed."""
BITS_PER_BAND = 22
"""Bits of a key, of 63. Two more miss one in 200 of the hardest edits; two fewer find no more and
cost more."""
MAX_NEIGHBOURS = 32
"""Largest number of entries met by an entry under a key."""
MAX_KEY_WINDOW_DISTANCE = 13
"""Largest number of differing bits, of 63, in the windows met: a first, cheap filter. Windows may
be half a step off."""
MAX_BEST_WINDOW_DISTANCE = 10
"""Largest number of differing bits, of 63, in the best windows. Of 2,655 edits of real images two
changed more; of pairs of unrelated images one in a thousand changes less."""
MAX_COMPARED_IMAGES = 256
"""Largest number of later images (by content) compared with an image in all windows: the images
with the nearest hashes when met. Many of 100,000 phantoms meet more."""
MAX_PARTNERS = 8
"""Largest number of later images aligned with an image: the nearest. Alignment is the expensive
step, and a larger group is joined through its other members."""
_HASH_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""An odd number with ones spread over all bits."""
_DISTANCE_BITS = 4
_SHARE_BITS = 2
_SHARES = 1 << _SHARE_BITS
"""Parts of a band's keys, made and sorted one after the other to save memory."""
_IMAGES_PER_ARRAY = 1 << 10
"""Number of images with pairs stored in one array."""
_BATCH = 1 << 18
_COMPARE_BATCH = 64

_Index = npt.NDArray[np.integer]
_Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Candidates:
    """Pairs (p,) of images, i < j, that may be near-copies."""

    i: _Index
    j: _Index
    mirrored: npt.NDArray[np.bool_]
    """Whether to mirror image j left to right."""
    distance: _Index
    """Number of differing bits, of 63, in the best windows."""
    motion: npt.NDArray[np.float32]
    """(p, 4) motion from i to j implied by the best windows, as in `alignment`."""


def find_candidates(hashes: _Bits, new: npt.NDArray[np.bool_] | None = None) -> Candidates:
    """Find candidate pairs among images.

    Args:
        hashes: (n, NUM_HASHES) hashes of each image, not all zero.
        new: (n,) whether an image is new; each pair has at least one new image. All images by
            default.
    """
    met = _MetPairs(len(hashes))
    new = np.ones(len(hashes), np.bool_) if new is None else new
    for band, share in itertools.product(make_band_masks(), range(_SHARES)):
        for pairs in _find_meetings(hashes, new, band, share, met.fields):
            met.add(pairs)
    parts = met.all()
    return _concatenate(
        list(map_in_threads(lambda part: _keep_nearest(hashes, *met.fields.read(part)), parts))
    )


def make_band_masks() -> list[np.uint64]:
    """Return the bit mask of each band."""
    # Bit 0, of the mean, is always 0 and belongs to no band.
    num_bits = NUM_COEFFICIENTS**2 - 1
    positions = np.arange(BITS_PER_BAND)
    bits = [1 + (step * (positions + start)) % num_bits for start, step in enumerate(BAND_STEPS)]
    return [np.bitwise_or.reduce(np.uint64(1) << band.astype(np.uint64)) for band in bits]


class _PairPacking:
    """Packing of pairs of `count` images into integers.

    From the top bits down: i, j, whether j is mirrored, and the distance.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.index_bits = np.uint64(max(count - 1, 1).bit_length())
        self.image_shift = self.index_bits + np.uint64(1 + _DISTANCE_BITS)
        self.j_and_mirror_mask = np.uint64((1 << (int(self.index_bits) + 1)) - 1)
        """Mask of j and the mirror bit after shifting both to the bottom."""

    def write(self, first: _Index, second: _Index, distance: npt.NDArray[np.uint8]) -> _Bits:
        """Pack pairs of owners.

        The second owner may be a mirrored image, numbered from `count` on.
        """
        mirror, second = np.divmod(second, self.count)
        low = np.minimum(first, second).astype(np.uint64)
        high = np.maximum(first, second).astype(np.uint64)
        j_and_mirror = high << np.uint64(1) | mirror.astype(np.uint64)
        return np.asarray(
            low << self.image_shift | j_and_mirror << np.uint64(_DISTANCE_BITS) | distance
        )

    def by_distance(self, pairs: _Bits) -> _Bits:
        """Move the distance before j."""
        distance = pairs & np.uint64((1 << _DISTANCE_BITS) - 1)
        j_and_mirror = pairs >> np.uint64(_DISTANCE_BITS) & self.j_and_mirror_mask
        distance <<= self.index_bits + np.uint64(1)
        return np.asarray(pairs >> self.image_shift << self.image_shift | distance | j_and_mirror)

    def by_other(self, pairs: _Bits) -> _Bits:
        """Move the distance back behind j."""
        distance = pairs >> self.index_bits + np.uint64(1) & np.uint64((1 << _DISTANCE_BITS) - 1)
        j_and_mirror = pairs & self.j_and_mirror_mask
        j_and_mirror <<= np.uint64(_DISTANCE_BITS)
        return np.asarray(pairs >> self.image_shift << self.image_shift | j_and_mirror | distance)

    def read(self, pairs: _Bits) -> tuple[_Index, _Index, npt.NDArray[np.bool_]]:
        """Return i, j and whether j is mirrored, from pairs with the distance before j."""
        j_and_mirror = pairs & self.j_and_mirror_mask
        i = (pairs >> self.image_shift).astype(np.int64)
        j = (j_and_mirror >> np.uint64(1)).astype(np.int64)
        return i, j, (j_and_mirror & np.uint64(1)).astype(np.bool_)


class _MetPairs:
    """Collect pairs without repeats; keep the `MAX_COMPARED_IMAGES` nearest pairs of each image."""

    def __init__(self, count: int) -> None:
        self.fields = _PairPacking(count)
        self._starts = (
            np.arange(_IMAGES_PER_ARRAY, count, _IMAGES_PER_ARRAY).astype(np.uint64)
            << self.fields.image_shift
        )
        self._parts = [np.zeros(0, np.uint64) for _ in range(len(self._starts) + 1)]
        self._waiting: list[_Bits] = []
        self._num_waiting = 0

    def add(self, pairs: _Bits) -> None:
        """Add pairs in any order."""
        self._waiting.append(pairs)
        self._num_waiting += len(pairs)
        # Merging when the waiting pairs reach a quarter of the stored pairs bounds memory and keeps
        # the number of merges low.
        if self._num_waiting > max(4 * _BATCH, sum(len(part) for part in self._parts) // 4):
            self.all()

    def all(self) -> list[_Bits]:
        """Merge waiting pairs and return all pairs, sorted, with the distance before j.

        Each array holds the pairs of `_IMAGES_PER_ARRAY` images.
        """
        waiting = np.concatenate([np.zeros(0, np.uint64), *self._waiting])
        self._waiting, self._num_waiting = [], 0
        waiting.sort()
        splits = np.split(waiting, np.searchsorted(waiting, self._starts))
        for index, new_pairs in enumerate(splits):
            if len(new_pairs):
                self._parts[index] = self._merge(self._parts[index], new_pairs)
        return self._parts

    def _merge(self, pairs: _Bits, new_pairs: _Bits) -> _Bits:
        pairs = np.concatenate([self.fields.by_other(pairs), new_pairs])
        pairs = self.fields.by_distance(_keep_nearest_once(pairs))
        pairs.sort()
        image = pairs >> self.fields.image_shift
        keep = np.ones(len(pairs), np.bool_)
        # Pairs are sorted by image and distance: a pair is kept unless the pair MAX_MET places
        # earlier has the same image.
        keep[MAX_COMPARED_IMAGES:] = image[MAX_COMPARED_IMAGES:] != image[:-MAX_COMPARED_IMAGES]
        return pairs[keep]


def _keep_nearest_once(pairs: _Bits) -> _Bits:
    """Sort pairs in place, and return each pair once, with the smallest distance."""
    pairs.sort()
    pair = pairs >> np.uint64(_DISTANCE_BITS)
    first = np.ones(len(pairs), np.bool_)
    first[1:] = pair[1:] != pair[:-1]
    return pairs[first]


def _find_meetings(
    hashes: _Bits, new: npt.NDArray[np.bool_], band: np.uint64, share: int, fields: _PairPacking
) -> Iterator[_Bits]:
    """Yield packed pairs with an equal key in a band and similar hashes in the windows met.

    Args:
        hashes: (n, NUM_HASHES) hashes of the images.
        new: (n,) whether an image is new; each pair has at least one new image.
        band: bit mask of the key.
        share: index of the part of the keys to use, below `_SHARES`.
        fields: packs the pairs.
    """
    keys, entry_bits = _sort_keys(hashes, band, share)
    meetings_from = partial(_find_meetings_from, hashes, new, keys, entry_bits, fields)
    yield from map_in_threads(meetings_from, range(0, len(keys), _BATCH))


def _find_meetings_from(
    hashes: _Bits,
    new: npt.NDArray[np.bool_],
    sorted_keys: _Bits,
    entry_bits: np.uint64,
    fields: _PairPacking,
    start: int,
) -> _Bits:
    """Return the pairs with the first entry among `_BATCH` entries from `start`."""
    count = fields.count
    # An image has at most NUM_HASHES windows under a key, so this slice holds all neighbours. The
    # entry before `start` shows whether the first entry repeats its image.
    entries_and_keys = sorted_keys[
        max(start - 1, 0) : start + _BATCH + (MAX_NEIGHBOURS + 1) * NUM_HASHES
    ]
    keys = entries_and_keys >> entry_bits
    entries = (entries_and_keys & ((np.uint64(1) << entry_bits) - np.uint64(1))).astype(np.int64)
    owner = entries // NUM_HASHES
    # Of an image's windows with equal keys, the first is enough.
    first = np.ones(len(entries_and_keys), np.bool_)
    first[1:] = (keys[1:] != keys[:-1]) | (owner[1:] != owner[:-1])
    if start:
        first[0] = False
    end = int(first[: _BATCH + (start > 0)].sum())
    keys, owner = keys[first], owner[first]
    bits = _window_hashes(hashes, owner, entries[first] % NUM_HASHES)
    is_new = new[owner % count]
    active = np.arange(end)
    packed_pairs = [np.zeros(0, np.uint64)]
    for step in range(1, MAX_NEIGHBOURS + 1):
        active = active[active < len(keys) - step]
        active = active[keys[active] == keys[active + step]]
        # Two mirrored images already met unmirrored, and an image is no copy of itself.
        wanted = (owner[active] < count) & (owner[active] != owner[active + step] % count)
        wanted &= is_new[active] | is_new[active + step]
        left = active[wanted]
        right = left + step
        distance = np.bitwise_count(bits[left] ^ bits[right])
        is_near = distance <= MAX_KEY_WINDOW_DISTANCE
        packed_pairs.append(
            fields.write(owner[left[is_near]], owner[right[is_near]], distance[is_near])
        )
    return _keep_nearest_once(np.concatenate(packed_pairs))


def _window_hashes(hashes: _Bits, owner: _Index, window: _Index) -> _Bits:
    """Return the hashes of windows of images; owners from `len(hashes)` on are mirrored."""
    mirror, image = np.divmod(owner, len(hashes))
    is_mirrored = mirror.astype(np.bool_)
    bits = np.asarray(hashes[image, np.where(is_mirrored, MIRRORED_WINDOWS[window], window)])
    return np.asarray(bits ^ is_mirrored * MIRRORED_BITS)


def _sort_keys(hashes: _Bits, band: np.uint64, share: int) -> tuple[_Bits, np.uint64]:
    """Return a share of the keys of all entries (2 n NUM_HASHES,), sorted, with entry numbers.

    An entry is a window of an image or of a mirrored image; mirrored images follow all images. Key
    and entry number share one integer, which sorts fast.

    Returns:
        The integers, and the number of lower bits that hold the entry number.
    """
    entry_bits = np.uint64(max(2 * hashes.size - 1, 1).bit_length())
    # Pages never written take no memory, so the array may be far too large.
    keys = np.empty(2 * hashes.size, np.uint64)
    size = 0
    for mirror, start in itertools.product((False, True), range(0, len(hashes), _IMAGES_PER_ARRAY)):
        part = hashes[start : start + _IMAGES_PER_ARRAY]
        # The upper bits of the product depend on all bits of the key. Equal keys fall into one
        # share. Different keys with equal upper bits are told apart later by the distance of the
        # hashes.
        products = ((mirror_hashes(part) if mirror else part) & band).ravel() * _HASH_MULTIPLIER
        in_share = np.flatnonzero(products >> np.uint64(64 - _SHARE_BITS) == share)
        packed = products[in_share] >> entry_bits << entry_bits
        packed |= (in_share + (mirror * len(hashes) + start) * NUM_HASHES).astype(np.uint64)
        keys[size : size + len(packed)] = packed
        size += len(packed)
    keys = keys[:size]
    keys.sort()
    return keys, entry_bits


def _keep_nearest(hashes: _Bits, i: _Index, j: _Index, mirror: npt.NDArray[np.bool_]) -> Candidates:
    """Keep pairs with similar best windows, and of each image the nearest pairs."""
    windows_i, windows_j, motion = _window_pairs()
    distance = np.empty(len(i), np.int64)
    best = np.empty(len(i), np.int64)
    for start in range(0, len(i), _COMPARE_BATCH):
        batch = slice(start, start + _COMPARE_BATCH)
        left, right, is_mirrored = hashes[i[batch]], hashes[j[batch]], mirror[batch]
        right[is_mirrored] = mirror_hashes(right[is_mirrored])
        bits = np.bitwise_count(left[:, windows_i] ^ right[:, windows_j])
        best[batch] = bits.argmin(axis=1)
        distance[batch] = bits[np.arange(len(bits)), best[batch]]
    # Ties are broken by j and mirror, so the result does not depend on the order of the pairs.
    order = np.lexsort((mirror, j, distance, i))
    order = order[distance[order] <= MAX_BEST_WINDOW_DISTANCE]
    order = order[_rank(i[order]) < MAX_PARTNERS]
    return Candidates(i[order], j[order], mirror[order], distance[order], motion[best[order]])


def _concatenate(parts: Sequence[Candidates]) -> Candidates:
    return Candidates(
        np.concatenate([part.i for part in parts]),
        np.concatenate([part.j for part in parts]),
        np.concatenate([part.mirrored for part in parts]),
        np.concatenate([part.distance for part in parts]),
        np.concatenate([part.motion for part in parts]),
    )


def _rank(values: _Index) -> _Index:
    """Return the number of preceding equal values for each of the sorted values."""
    return np.asarray(np.arange(len(values)) - np.searchsorted(values, values))


@cache
def _window_pairs() -> tuple[_Index, _Index, npt.NDArray[np.float32]]:
    """Return pairs of windows to compare, and the motion implied by each pair.

    Returns:
        Window indices in the first image, window indices in the second image, and (w, 4) motions.
    """
    edges: dict[float, tuple[float, float]] = {}
    for pair in itertools.product(WINDOW_OFFSETS, WINDOW_OFFSETS):
        # Only the difference of two offsets matters; one pair of offsets for each difference is
        # enough.
        edges.setdefault(round(pair[0] - pair[1], 6), pair)
    left: list[int] = []
    right: list[int] = []
    motions: list[list[float]] = []
    for top, bottom, start, end in itertools.product(edges.values(), repeat=4):
        for k, windows in enumerate((left, right)):
            vertical, horizontal = (top[k], bottom[k]), (start[k], end[k])
            windows.append(
                WINDOW_SPANS.index(vertical) * len(WINDOW_SPANS) + WINDOW_SPANS.index(horizontal)
            )
        motions.append([*_axis_motion(start, end), *_axis_motion(top, bottom)])
    return np.array(left), np.array(right), np.array(motions, np.float32)


def _axis_motion(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Return the motion along an axis, from -1 to 1, that lays one span over the other.

    Args:
        start: shares left off at the start by the first and by the second span.
        end: shares left off at the end by the first and by the second span.

    Returns:
        Shift and scale.
    """
    scale = (1 - start[1] - end[1]) / (1 - start[0] - end[0])
    return (start[1] - end[1]) - scale * (start[0] - end[0]), scale
