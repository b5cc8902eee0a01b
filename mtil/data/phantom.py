"""Synthetic ultrasound images in BUSI's layout: for the demo, the tests and the benchmarks.

Scatterers of random phase, as strong as the tissue there, are blurred by a beam and log-compressed,
which gives real speckle. Benign lesions are smooth ellipses that brighten what lies below them,
malignant ones are spiculated and cast shadows, though neither always: size, contrast and overall
brightness are drawn alike for both, and normal images have dark lobules too.
"""

import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from mtil.data.images import encode_mask_png
from mtil.data.shards import LABELS
from mtil.errors import DataError, StorageError

BENIGN, MALIGNANT, NORMAL = range(3)
_PATTERN = (BENIGN, MALIGNANT, BENIGN, NORMAL, BENIGN, MALIGNANT, BENIGN, NORMAL, BENIGN, MALIGNANT)
"""Classes of every ten images: 50, 30 and 20 per cent."""
MIN_IMAGE_SIZE = 64

_Field = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Phantom:
    """One synthetic image."""

    label: int
    gray: npt.NDArray[np.uint8]
    masks: tuple[npt.NDArray[np.bool_], ...]
    """One per lesion; a black one where there is none."""


def write(out: Path, *, num_images: int, seed: int, image_size: int = 256) -> None:
    """Write images and masks in BUSI's layout, all of them or none.

    Args:
        out: a folder that is empty or does not exist.
        num_images: how many images.
        seed: the same seed gives the same bytes, and more images only add to fewer.
        image_size: typical side of an image; sizes vary around it.

    Raises:
        DataError: if the folder holds something, or a number makes no sense.
    """
    if num_images < 1:
        raise DataError(f"There must be at least one image, but num_images is {num_images}.")
    if seed < 0:
        raise DataError(f"A seed must not be negative, but got {seed}.")
    if image_size < MIN_IMAGE_SIZE:
        raise DataError(f"Images must be at least {MIN_IMAGE_SIZE} wide, but got {image_size}.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} must be an empty or new folder; empty it or choose another.")
    out = out.absolute()
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
        for path, data in _files(num_images, seed, image_size):
            (partial / path).parent.mkdir(exist_ok=True)
            (partial / path).write_bytes(data)
        partial.replace(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}.") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def draw(seed: int, index: int, image_size: int = 256) -> Phantom:
    """Draw the image of an index; it depends on the arguments alone."""
    rng = np.random.default_rng((seed, index))
    label = _PATTERN[index % len(_PATTERN)]
    height = int(image_size * rng.uniform(0.75, 1.0))
    width = int(image_size * rng.uniform(0.85, 1.25))
    echo = _tissue(rng, height, width)
    if label == NORMAL:
        masks = [np.zeros((height, width), np.bool_)]
    else:
        twice = label == BENIGN and rng.random() < 0.05
        masks = [_add_lesion(rng, echo, label, at) for at in ((0.3, 0.7) if twice else (0.5,))]
    return Phantom(label, _scan(rng, echo), tuple(masks))


def _files(num_images: int, seed: int, image_size: int) -> Iterator[tuple[str, bytes]]:
    numbers: Counter[str] = Counter()
    for index in range(num_images):
        phantom = draw(seed, index, image_size)
        name = LABELS[phantom.label]
        numbers[name] += 1
        stem = f"{name}/{name} ({numbers[name]})"
        yield f"{stem}.png", _png(phantom.gray)
        for number, mask in enumerate(phantom.masks):
            yield f"{stem}_mask{f'_{number}' if number else ''}.png", encode_mask_png(mask)


def _png(gray: npt.NDArray[np.uint8]) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(gray).save(sink, format="PNG", compress_level=1)
    return sink.getvalue()


def _smooth(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> _Field:
    """Return a smooth random field with about unit variance and that many bumps."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def _tissue(rng: np.random.Generator, height: int, width: int) -> _Field:
    """Return the echo strength (h, w) in dB of skin, fat, gland and muscle."""
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    ends = np.cumsum(rng.uniform((0.03, 0.08, 0.45), (0.06, 0.22, 0.65)))
    strengths = (-6.0, rng.uniform(-26, -20), rng.uniform(-17, -12), rng.uniform(-26, -18))
    wave = 0.03 * _smooth(rng, 1, width, 1, 6)
    echo = np.full((height, width), strengths[0], np.float32)
    for end, strength, amount in zip(ends, strengths[1:], (0.4, 1.0, 1.0), strict=True):
        echo = np.where(depth > end + amount * wave, np.float32(strength), echo)
    echo += 2.0 * _smooth(rng, height, width, 14, 7)  # flat, as tissue is
    echo += 1.5 * _smooth(rng, height, width, 4, 4)
    for _ in range(rng.integers(1, 4)):  # lobules of fat
        inside, _ = _blob(rng, height, width, rng.uniform(0.1, 0.9), label=BENIGN, small=True)
        echo -= np.float32(rng.uniform(4, 10)) * _soft(inside, 3.0)
    return np.asarray(echo, dtype=np.float32)


def _blob(
    rng: np.random.Generator,
    height: int,
    width: int,
    across: float,
    *,
    label: int,
    small: bool = False,
) -> tuple[npt.NDArray[np.bool_], tuple[float, float, float]]:
    """Return a lesion's shape (h, w), and its centre (row, column) and radius in pixels."""
    radius = min(height, width) * (rng.uniform(0.04, 0.09) if small else rng.uniform(0.1, 0.22))
    flatness = rng.uniform(1.0, 1.7) if label == BENIGN else rng.uniform(0.8, 1.4)
    row = height * rng.uniform(0.35, 0.6)
    column = width * (across + rng.uniform(-0.15, 0.15))
    tilt = rng.uniform(-0.35, 0.35)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    along = (x - column) * math.cos(tilt) + (y - row) * math.sin(tilt)
    over = (y - row) * math.cos(tilt) - (x - column) * math.sin(tilt)
    angle = np.arctan2(over, along)
    distance = np.hypot(along / math.sqrt(flatness), over * math.sqrt(flatness)) / radius
    edge = 1 + rng.uniform(0, 0.05) * np.cos(2 * angle + rng.uniform(0, 2 * np.pi))
    if label == MALIGNANT:
        edge = 0.85 * edge + _spicules(rng, angle)
    return distance < edge, (row, column, radius)


def _spicules(rng: np.random.Generator, angle: _Field) -> _Field:
    """Return how far the spikes at random angles stand out."""
    count = int(rng.integers(7, 13))
    centres = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    at = np.linspace(-np.pi, np.pi, 1024)
    spikes = np.zeros_like(at)
    for centre in centres:
        away = np.abs((at - centre + np.pi) % (2 * np.pi) - np.pi)
        spikes += rng.uniform(0.2, 0.6) * np.exp(-away / rng.uniform(0.08, 0.18))
    return np.interp(angle, at, spikes).astype(np.float32)


def _add_lesion(
    rng: np.random.Generator, echo: _Field, label: int, across: float
) -> npt.NDArray[np.bool_]:
    """Lower the echo inside a lesion, change what lies below it, and return its mask."""
    height, width = echo.shape
    inside, (row, column, radius) = _blob(rng, height, width, across, label=label)
    malignant = label == MALIGNANT
    body = _soft(inside, rng.uniform(1.5, 2.5) if malignant else rng.uniform(0.7, 1.5))
    level = -np.float32(rng.uniform(28, 36)) + 1.5 * _smooth(rng, height, width, 10, 10)
    echo += body * (level - echo)
    if not malignant and rng.random() < 0.6:  # a thin bright capsule
        echo += 6.0 * (_soft(inside, 2.0) - body).clip(0, None) * 2
    y, x = np.ogrid[:height, :width]
    below = _sigmoid((y - row) / (0.4 * radius)) * np.exp(-(((x - column) / (0.9 * radius)) ** 4))
    below *= 1 - body
    kind = rng.random()
    shadow, enhancement = (0.7, 0.1) if malignant else (0.1, 0.6)
    if kind < shadow:
        echo -= np.float32(rng.uniform(7, 14)) * below
    elif kind < shadow + enhancement:
        echo += np.float32(rng.uniform(3, 7)) * below
    return np.asarray(inside)


def _scan(rng: np.random.Generator, echo: _Field) -> npt.NDArray[np.uint8]:
    """Return the log-compressed speckle of tissue of that echo strength."""
    height, width = echo.shape
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    amplitude = 10 ** ((echo - rng.uniform(0, 10) * depth) / 20)
    beam = (rng.uniform(0.7, 1.0), rng.uniform(1.1, 1.8))
    real, imaginary = (
        ndimage.gaussian_filter(
            amplitude * rng.standard_normal((height, width), dtype=np.float32), beam
        )
        for _ in range(2)
    )
    power = real**2 + imaginary**2
    gain = rng.uniform(10, 24) + 10 * np.log10(4 * np.pi * beam[0] * beam[1])
    level = (10 * np.log10(power + 1e-8) + gain + 5) / rng.uniform(40, 80) + 0.5
    return np.asarray((level * 255).clip(0, 255), dtype=np.uint8)


def _soft(inside: npt.NDArray[np.bool_], blur: float) -> _Field:
    return np.asarray(ndimage.gaussian_filter(inside.astype(np.float32), blur))


def _sigmoid(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))))
