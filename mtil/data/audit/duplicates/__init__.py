"""Near-duplicates among images: recompressed, resized, cropped, mirrored, brightened or marked.

`describe` is for the threads that decode images; it keeps 5 kB an image. `find_pairs` compares the
descriptions, which may wait on the disk: `candidates` finds images that share hash bits,
`alignment` lays their thumbs over one another.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mtil.data.audit.duplicates import alignment, candidates
from mtil.data.audit.duplicates.description import (
    NUM_HASHES,
    SIDE,
    VERSION,
    Description,
    describe,
    flatten,
)
from mtil.data.audit.duplicates.ondisk import OnDisk, Rows
from mtil.data.parallel import threads

__all__ = [
    "NUM_HASHES",
    "SIDE",
    "VERSION",
    "Description",
    "OnDisk",
    "Pair",
    "describe",
    "find_pairs",
]

MIN_CORRELATION = 0.75
"""Least correlation of near-duplicates. Unrelated real images reach 0.6 and views of one lesion
from different places 0.7; images that differ by an edit keep 0.9, with much text on them 0.8, and
with six edits at once 0.76."""
_MIN_COARSE = 0.4
"""Least correlation of quarter-size thumbs before they are aligned: more than half of the pairs of
unrelated images that got this far have less, of edits of one image about one in a thousand."""
_MIN_MIDDLE = 0.55
"""Least correlation of half-size thumbs once aligned."""
_COARSE, _MIDDLE = 4, 2
_STEPS = 4
"""Gauss-Newton steps at each size; more do not change the outcome."""
_BATCH = 128

Kind = Literal["equal", "edited", "mirrored"]
_Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """Two images that show the same."""

    i: int
    j: int
    """Indices into the descriptions; i < j."""
    distance: int
    """Hash bits that differ, of 63."""
    correlation: float
    """Of the evened-out thumbs, where both show something; 1 if they are equal."""
    kind: Kind
    """`equal`: descriptions are; `mirrored`: one is turned left to right."""


def find_pairs(
    hashes: Rows, thumbs: Rows, num_known: int = 0, contents: Rows | None = None
) -> list[Pair]:
    """Find the pairs of near-duplicates.

    Images with equal descriptions are each paired with the first of them, which alone is compared
    with others: of a set of twins not every pair is listed, but all are connected. Of very many
    near-duplicates of one another an image is paired with a few only (`candidates.MAX_PARTNERS`),
    which keeps time and memory from growing as n squared; their group is found all the same,
    unless images of little but noise fill it.
    Images with nothing to see (black ones, or screens without tissue) are paired only if their
    contents are equal.

    The order of the images changes nothing but the indices. 100,000 images take 150 s of processor
    time, shared by threads, and less than 0.5 GiB of memory beyond the arguments.

    Args:
        hashes: (n, NUM_HASHES), of `Description`.
        thumbs: (n, SIDE, SIDE). Both may be on the disk.
        num_known: the first so many images are not compared with one another again.
        contents: (n, k) bytes that only equal images share, such as sha256; the thumbs if not
            given.

    Returns:
        Pairs, sorted by i and j.
    """
    order, first, seen = _canonical(hashes, thumbs, thumbs if contents is None else contents)
    twins = num_known + np.flatnonzero((first != np.arange(len(first)))[num_known:])
    pairs = [Pair(int(first[j]), int(j), 0, 1.0, "equal") for j in twins]
    order = order[(first[order] == order) & seen[order]]
    found = _aligned(candidates.find(hashes[order], order >= num_known), thumbs, order)
    return sorted(pairs + found)


def _canonical(
    hashes: Rows, thumbs: Rows, contents: Rows
) -> tuple[_Index, _Index, npt.NDArray[np.bool_]]:
    """Find equal images among n, by their descriptions, or by their contents without hashes.

    Returns:
        An order of the images, for each the first one equal to it, and whether it has hashes.
    """
    digests = np.zeros((len(hashes), 2), np.uint64)
    seen = np.zeros(len(hashes), np.bool_)
    for start in range(0, len(hashes), _BATCH):
        part = slice(start, start + _BATCH)
        bits, shown, whole = hashes[part], thumbs[part], contents[part]
        seen[part] = bits.any(axis=1)
        for index, row in enumerate(bits, start):
            shows = (shown if seen[index] else whole)[index - start]
            digest = hashlib.blake2b(row.tobytes() + shows.tobytes(), digest_size=16).digest()
            digests[index] = np.frombuffer(digest, np.uint64)
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: equal ones by index
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return order, first, seen


def _aligned(found: candidates.Candidates, thumbs: Rows, order: _Index) -> list[Pair]:
    """Return the candidates whose thumbs agree; `order` gives their indices in `thumbs`."""
    used = np.unique(np.concatenate([found.i, found.j]))
    coarse = _coarse(thumbs, order[used])

    def agreeing(start: int) -> list[Pair]:
        at = np.arange(start, min(start + _BATCH * 16, len(found.i)))
        i, j = np.searchsorted(used, found.i[at]), np.searchsorted(used, found.j[at])
        right = _turned(coarse[j], found.mirrored[at])
        guess = alignment.correlation(coarse[i], right, found.motion[at])
        at = at[guess >= _MIN_COARSE]
        parts = np.split(at, range(_BATCH, len(at), _BATCH))
        return [pair for part in parts for pair in _refined(found, part, thumbs, order)]

    starts = range(0, len(found.i), _BATCH * 16)
    return [pair for pairs in threads(agreeing, starts) for pair in pairs]


def _coarse(thumbs: Rows, order: _Index) -> npt.NDArray[np.float32]:
    side = SIDE // _COARSE
    small = np.zeros((len(order), side, side), np.float32)
    for start in range(0, len(order), _BATCH):
        part = slice(start, start + _BATCH)
        small[part] = alignment.reduced(flatten(thumbs[order[part]]), _COARSE)
    return small


def _refined(found: candidates.Candidates, at: _Index, thumbs: Rows, order: _Index) -> list[Pair]:
    """Align the candidates `at`, first at half size, and return those that agree."""
    i, j, turned = order[found.i[at]], order[found.j[at]], found.mirrored[at]
    left, right = flatten(thumbs[i]), _turned(flatten(thumbs[j]), turned)
    small = alignment.reduced(left, _MIDDLE), alignment.reduced(right, _MIDDLE)
    motion = alignment.fit(*small, found.motion[at], _STEPS)
    agree = alignment.correlation(*small, motion) >= _MIN_MIDDLE
    left, right, at, i, j = left[agree], right[agree], at[agree], i[agree], j[agree]
    motion = alignment.fit(left, right, motion[agree], _STEPS)
    correlation = alignment.correlation(left, right, motion)
    return [
        Pair(
            int(min(i[k], j[k])),
            int(max(i[k], j[k])),
            int(found.distance[at[k]]),
            round(float(correlation[k]), 4),
            "mirrored" if found.mirrored[at[k]] else "edited",
        )
        for k in np.flatnonzero(correlation >= MIN_CORRELATION)
    ]


def _turned(
    images: npt.NDArray[np.float32], mirrored: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    return np.where(mirrored[:, None, None], images[:, :, ::-1], images)
