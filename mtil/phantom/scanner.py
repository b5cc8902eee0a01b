"""From echo strengths to pixels: scatterers, the beam that blurs them, noise and compression."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mtil.phantom.fields import Field, line, uniform
from mtil.phantom.streams import Streams

_DB = np.float32(np.log(10) / 20)
"""Amplitudes are exp(_DB * decibels)."""


def scan(origin: Streams, echo: Field) -> npt.NDArray[np.uint8]:
    """Return the image (h, w) of tissue of that echo strength in dB.

    The scanner and its curves are the patient's, speckle and gain the frame's.
    """
    rng = origin.patient
    height, width = echo.shape
    unit = max(height, width) / 256
    beam = (max(0.5, unit * rng.uniform(0.6, 0.9)), max(0.6, unit * rng.uniform(1.1, 2.0)))
    power = speckle(origin.frame, echo, beam, looks=int(rng.integers(2, 4)))
    power += np.float32(10 ** rng.uniform(-5.6, -4.6))  # the receiver's noise
    level = 10 * np.log10(power)
    level += uniform(rng, 0, 1.5) * line(origin.frame, height, 4)[:, None]  # gain by depth
    return _compress(origin, _calmed(level, min(0.25, 0.2 * unit)))


def speckle(rng: np.random.Generator, echo: Field, beam: tuple[float, float], looks: int) -> Field:
    """Return the power (h, w) that a beam receives; its mean is 1 where the echo is 0 dB.

    Each pixel holds many scatterers, whose sum is complex Gaussian; the beam blurs them, which
    gives fully developed speckle.

    Args:
        rng: where the scatterers come from.
        echo: strength (h, w) in dB.
        beam: standard deviations along depth and across it, in pixels.
        looks: how many independent images are averaged, as compound imaging does.
    """
    scatterers = rng.standard_normal((2 * looks, *echo.shape), np.float32)
    scatterers *= np.exp(_DB * echo)
    for axis, sigma in enumerate(beam, start=1):
        scatterers = ndimage.gaussian_filter1d(scatterers, sigma, axis, truncate=2.5)
    np.square(scatterers, out=scatterers)
    power: Field = scatterers.sum(axis=0)
    power *= np.float32(4 * np.pi * beam[0] * beam[1] / (2 * looks))
    return power


def _calmed(level: Field, share: float) -> Field:
    """Mix each pixel with its neighbours, as a scanner's speckle filter does."""
    amount = np.float32(share)
    level[1:-1] += amount * (level[2:] + level[:-2] - 2 * level[1:-1])
    level[:, 1:-1] += amount * (level[:, 2:] + level[:, :-2] - 2 * level[:, 1:-1])
    return level


def _compress(origin: Streams, level: Field) -> npt.NDArray[np.uint8]:
    """Map decibels to gray values by a gain, a dynamic range and a curve."""
    brightest = uniform(origin.frame, -3, 5)
    scaled = (level - brightest) / uniform(origin.patient, 42, 60) + 1
    gray = 255 * scaled.clip(0, 1) ** uniform(origin.patient, 1.1, 1.7)
    return np.asarray(gray, dtype=np.uint8)
