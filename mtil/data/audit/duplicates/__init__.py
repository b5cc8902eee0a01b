"""Find near-copies: recompressed, resized, cropped, mirrored, brightened or marked images.

The threads that decode images call `describe_image`, which keeps 5 kB an image. `find_near_copies`
compares the descriptions, in memory or on disk: `candidates` finds images that share hash bits, and
`alignment` compares the aligned thumbs.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from mtil.data.audit.duplicates import alignment, candidates
from mtil.data.audit.duplicates.description import (
    DESCRIPTION_VERSION,
    NUM_HASHES,
    THUMB_SIDE,
    Description,
    describe_image,
    flatten_contrast,
)
from mtil.data.audit.duplicates.disk_array import DiskArray, RowArray
from mtil.data.parallel import map_in_threads

__all__ = [
    "DESCRIPTION_VERSION",
    "NUM_HASHES",
    "THUMB_SIDE",
    "Description",
    "DiskArray",
    "IndexPair",
    "describe_image",
    "find_near_copies",
]

MIN_CORRELATION = 0.75
"""Smallest correlation of near-copies. Unrelated real images reach 0.6, and views of one lesion
from different places 0.7. Edited copies keep 0.9, with much text 0.8, and with six edits at once
0.76."""
_MIN_COARSE = 0.4
"""Smallest correlation of quarter-size thumbs before alignment. More than half of the pairs of
unrelated images at this stage have less, of the edited copies about one in a thousand."""
_MIN_MIDDLE = 0.55
"""Smallest correlation of half-size thumbs after alignment."""
_COARSE, _MIDDLE = 4, 2
_STEPS = 4
"""Gauss-Newton steps at each size; more steps do not change the outcome."""
_BATCH = 128

Kind = Literal["equal", "edited", "mirrored"]
_Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class IndexPair:
    """A pair of near-copies, by index."""

    i: int
    j: int
    """Indices into the descriptions; i < j."""
    distance: int
    """Number of differing hash bits, of 63."""
    correlation: float
    """Correlation of the flattened thumbs where both thumbs overlap; 1 for equal descriptions."""
    kind: Kind
    """`equal` descriptions, an `edited` copy, or a copy `mirrored` left to right."""


def find_near_copies(
    hashes: RowArray, thumbs: RowArray, num_known: int = 0, contents: RowArray | None = None
) -> list[IndexPair]:
    """Find the pairs of near-copies.

    Images with equal descriptions are each paired with the first such image, and only the first is
    compared with the rest: not every pair is listed, but all near-copies are connected. Among very
    many near-copies an image is paired with at most `candidates.MAX_PARTNERS`, so time and memory
    do not grow as n squared. The group is still found whole, unless images of little but noise fill
    the group. Images without hashes (black images, or screens without tissue) are paired only if
    the contents are equal.

    The order of the images changes nothing but the indices. 100,000 images take 150 s of CPU time,
    shared by threads, and less than 0.5 GiB of memory beyond the arguments.

    Args:
        hashes: (n, NUM_HASHES) hashes of `Description`, in memory or on disk.
        thumbs: (n, SIDE, SIDE) thumbs of `Description`, in memory or on disk.
        num_known: number of leading images already compared; pairs of two known images are skipped.
        contents: (n, k) bytes shared by equal images only, such as SHA-256; the thumbs by default.

    Returns:
        Pairs, sorted by i and j.
    """
    order, first, has_hashes = _find_equal_images(
        hashes, thumbs, thumbs if contents is None else contents
    )
    copies = num_known + np.flatnonzero((first != np.arange(len(first)))[num_known:])
    pairs = [IndexPair(int(first[j]), int(j), 0, 1.0, "equal") for j in copies]
    # Sorted by content instead of by index, so that the limits on neighbours and partners pick the
    # same pairs in any order of images.
    order = order[(first[order] == order) & has_hashes[order]]
    edited = _confirm_candidates(
        candidates.find_candidates(hashes[order], order >= num_known), thumbs, order
    )
    return sorted(pairs + edited)


def _find_equal_images(
    hashes: RowArray, thumbs: RowArray, contents: RowArray
) -> tuple[_Index, _Index, npt.NDArray[np.bool_]]:
    """Find equal images among n, by description, or by contents for images without hashes.

    Returns:
        An order of the images with equal images side by side, the index of the first equal image of
        each image, and whether each image has hashes.
    """
    digests = np.zeros((len(hashes), 2), np.uint64)
    has_hashes = np.zeros(len(hashes), np.bool_)
    for start in range(0, len(hashes), _BATCH):
        batch = slice(start, start + _BATCH)
        batch_hashes, batch_thumbs, batch_contents = hashes[batch], thumbs[batch], contents[batch]
        has_hashes[batch] = batch_hashes.any(axis=1)
        for index, row in enumerate(batch_hashes, start):
            content = (batch_thumbs if has_hashes[index] else batch_contents)[index - start]
            digest = hashlib.blake2b(row.tobytes() + content.tobytes(), digest_size=16).digest()
            digests[index] = np.frombuffer(digest, np.uint64)
    # A stable sort keeps equal images in order of index.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    starts = np.ones(len(order), np.bool_)
    starts[1:] = (digests[order[1:]] != digests[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(starts)[np.cumsum(starts) - 1]]
    return order, first, has_hashes


def _confirm_candidates(
    proposed: candidates.Candidates, thumbs: RowArray, order: _Index
) -> list[IndexPair]:
    """Return the candidates with similar thumbs, as pairs.

    Args:
        proposed: the candidates, by position in `order`.
        thumbs: thumbs of all images.
        order: index of each compared image in `thumbs`.
    """
    used = np.unique(np.concatenate([proposed.i, proposed.j]))
    coarse = _reduce_thumbs(thumbs, order[used])

    def check_batch(start: int) -> list[IndexPair]:
        rows = np.arange(start, min(start + _BATCH * 16, len(proposed.i)))
        i, j = np.searchsorted(used, proposed.i[rows]), np.searchsorted(used, proposed.j[rows])
        right = _mirror_where(coarse[j], proposed.mirrored[rows])
        # The correlation at the guessed motion costs little and rules out most candidates.
        guess = alignment.correlate_aligned(coarse[i], right, proposed.motion[rows])
        rows = rows[guess >= _MIN_COARSE]
        batches = np.split(rows, range(_BATCH, len(rows), _BATCH))
        return [
            pair for batch in batches for pair in _align_candidates(proposed, batch, thumbs, order)
        ]

    starts = range(0, len(proposed.i), _BATCH * 16)
    return [pair for pairs in map_in_threads(check_batch, starts) for pair in pairs]


def _reduce_thumbs(thumbs: RowArray, order: _Index) -> npt.NDArray[np.float32]:
    side = THUMB_SIDE // _COARSE
    reduced_thumbs = np.zeros((len(order), side, side), np.float32)
    for start in range(0, len(order), _BATCH):
        batch = slice(start, start + _BATCH)
        reduced_thumbs[batch] = alignment.average_squares(
            flatten_contrast(thumbs[order[batch]]), _COARSE
        )
    return reduced_thumbs


def _align_candidates(
    proposed: candidates.Candidates, rows: _Index, thumbs: RowArray, order: _Index
) -> list[IndexPair]:
    """Align some candidates, first at half size, and return the pairs with similar thumbs."""
    i, j, is_mirrored = order[proposed.i[rows]], order[proposed.j[rows]], proposed.mirrored[rows]
    left, right = (
        flatten_contrast(thumbs[i]),
        _mirror_where(flatten_contrast(thumbs[j]), is_mirrored),
    )
    small = alignment.average_squares(left, _MIDDLE), alignment.average_squares(right, _MIDDLE)
    motion = alignment.fit_motion(*small, proposed.motion[rows], _STEPS)
    similar = alignment.correlate_aligned(*small, motion) >= _MIN_MIDDLE
    left, right, rows, i, j = left[similar], right[similar], rows[similar], i[similar], j[similar]
    motion = alignment.fit_motion(left, right, motion[similar], _STEPS)
    correlation = alignment.correlate_aligned(left, right, motion)
    return [
        IndexPair(
            int(min(i[k], j[k])),
            int(max(i[k], j[k])),
            int(proposed.distance[rows[k]]),
            round(float(correlation[k]), 4),
            "mirrored" if proposed.mirrored[rows[k]] else "edited",
        )
        for k in np.flatnonzero(correlation >= MIN_CORRELATION)
    ]


def _mirror_where(
    images: npt.NDArray[np.float32], mirrored: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    return np.where(mirrored[:, None, None], images[:, :, ::-1], images)
