"""Near-copies of phantoms, with the changes found between near-copies of real collections."""

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from PIL import Image

from mtil.data.images.read import Gray, Mask
from mtil.phantom.drawing import Phantom
from mtil.phantom.marks import add_calipers


def make_near_copy(rng: np.random.Generator, original: Phantom, kind: str) -> Phantom:
    """Return a near-copy of an image. Masks change with the image.

    Args:
        rng: random numbers for the amount of change.
        original: image to copy; not modified.
        kind: kind of change, an element of `NEAR_COPY_KINDS`.
    """
    return _CHANGES[kind](rng, original)


def _exact(rng: np.random.Generator, original: Phantom) -> Phantom:
    return original


def _jpeg(rng: np.random.Generator, original: Phantom) -> Phantom:
    sink = io.BytesIO()
    image = Image.fromarray(original.gray)
    image.save(sink, format="JPEG", quality=int(rng.integers(60, 93)))
    return replace(original, gray=np.array(Image.open(sink)))


def _resize(rng: np.random.Generator, original: Phantom) -> Phantom:
    """Scale both sides by a common factor of 0.7 to 0.9 or 1.1 to 1.4."""
    factor = rng.uniform(0.7, 0.9) if rng.random() < 0.5 else rng.uniform(1.1, 1.4)
    height, width = original.gray.shape
    size = (round(width * factor), round(height * factor))
    gray = Image.fromarray(original.gray).resize(size, Image.Resampling.BICUBIC)
    masks = tuple(_resized(mask, size) for mask in original.masks)
    return replace(original, gray=np.array(gray), masks=masks)


def _crop(rng: np.random.Generator, original: Phantom) -> Phantom:
    """Cut 2 to 6 % off every side, but less where a lesion would be cut."""
    joined = np.logical_or.reduce(original.masks)
    cuts = []
    for axis, side in enumerate(joined.shape):
        filled = np.nonzero(joined.any(axis=1 - axis))[0]
        margins = (filled[0], side - 1 - filled[-1]) if filled.size else (side, side)
        cuts += [min(round(side * rng.uniform(0.02, 0.06)), int(margin)) for margin in margins]
    top, bottom, left, right = cuts
    height, width = joined.shape
    area = (slice(top, height - bottom), slice(left, width - right))
    masks = tuple(mask[area] for mask in original.masks)
    return replace(original, gray=original.gray[area], masks=masks)


def _brightness(rng: np.random.Generator, original: Phantom) -> Phantom:
    change = rng.uniform(12, 35) * rng.choice((-1, 1))
    return replace(original, gray=_gray(original.gray + change))


def _contrast(rng: np.random.Generator, original: Phantom) -> Phantom:
    factor = rng.uniform(0.65, 0.85) if rng.random() < 0.5 else rng.uniform(1.15, 1.4)
    mean = original.gray.mean()
    return replace(original, gray=_gray((original.gray - mean) * factor + mean))


def _gamma(rng: np.random.Generator, original: Phantom) -> Phantom:
    exponent = rng.uniform(0.65, 0.85) if rng.random() < 0.5 else rng.uniform(1.2, 1.5)
    return replace(original, gray=_gray(255 * (original.gray / 255) ** exponent))


def _flip(rng: np.random.Generator, original: Phantom) -> Phantom:
    masks = tuple(mask[:, ::-1] for mask in original.masks)
    return replace(original, gray=original.gray[:, ::-1], masks=masks)


def _calipers(rng: np.random.Generator, original: Phantom) -> Phantom:
    gray = add_calipers(rng, original.gray, original.masks)
    return replace(original, gray=gray, calipers=True)


def _gray(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Gray:
    return np.asarray(values.round().clip(0, 255), dtype=np.uint8)


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    soft = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(soft.resize(size, Image.Resampling.BILINEAR)) >= 128


_CHANGES: dict[str, Callable[[np.random.Generator, Phantom], Phantom]] = {
    "exact": _exact,
    "jpeg": _jpeg,
    "resize": _resize,
    "crop": _crop,
    "brightness": _brightness,
    "contrast": _contrast,
    "gamma": _gamma,
    "flip": _flip,
    "calipers": _calipers,
}

NEAR_COPY_KINDS = tuple(_CHANGES)
"""Kinds of changes of a near-copy."""
