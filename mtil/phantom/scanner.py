"""Turn echo strength into pixels: scatterers, beam, noise and compression."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mtil.phantom.fields import Field, draw_curve, draw_uniform
from mtil.phantom.streams import RandomStreams

_DB = np.float32(np.log(10) / 20)
"""Factor from decibels to log amplitude: amplitude = exp(_DB * decibels)."""


def scan_tissue(origin: RandomStreams, echo: Field) -> npt.NDArray[np.uint8]:
    """Return the image (h, w) of a scan.

    The patient's stream decides the scanner's settings, the frame's stream speckle and gain.

    Args:
        origin: random streams of the image.
        echo: echo strength (h, w) of the tissue in dB.
    """
    rng = origin.patient
    height, width = echo.shape
    unit = max(height, width) / 256
    beam = (max(0.5, unit * rng.uniform(0.6, 0.9)), max(0.6, unit * rng.uniform(1.1, 2.0)))
    power = simulate_speckle(origin.frame, echo, beam, looks=int(rng.integers(2, 4)))
    # The receiver's noise is the floor of the image.
    power += np.float32(10 ** rng.uniform(-5.6, -4.6))
    level = 10 * np.log10(power)
    # The scanner's gain varies with depth.
    level += draw_uniform(rng, 0, 1.5) * draw_curve(origin.frame, height, 4)[:, None]
    return _compress(origin, _smooth_speckle(level, min(0.25, 0.2 * unit)))


def simulate_speckle(
    rng: np.random.Generator, echo: Field, beam: tuple[float, float], looks: int
) -> Field:
    """Return the received power (h, w). The mean power is 1 for an echo strength of 0 dB.

    Args:
        rng: random numbers for the scatterers.
        echo: echo strength (h, w) in dB.
        beam: standard deviations of the beam along depth and across depth, in pixels.
        looks: number of independent images to average, as in compound imaging.
    """
    # A pixel holds many scatterers with a complex Gaussian sum. Blurred by the beam, the sum has
    # fully developed speckle. The real and imaginary parts of each look are separate layers.
    scatterers = rng.standard_normal((2 * looks, *echo.shape), np.float32)
    scatterers *= np.exp(_DB * echo)
    for axis, sigma in enumerate(beam, start=1):
        scatterers = ndimage.gaussian_filter1d(scatterers, sigma, axis, truncate=2.5)
    np.square(scatterers, out=scatterers)
    power: Field = scatterers.sum(axis=0)
    # The blur divides the variance by 4 pi sigma1 sigma2; the factor restores a mean of 1.
    power *= np.float32(4 * np.pi * beam[0] * beam[1] / (2 * looks))
    return power


def _smooth_speckle(level: Field, share: float) -> Field:
    """Mix each pixel with the neighbours in place, like a scanner's speckle filter."""
    amount = np.float32(share)
    level[1:-1] += amount * (level[2:] + level[:-2] - 2 * level[1:-1])
    level[:, 1:-1] += amount * (level[:, 2:] + level[:, :-2] - 2 * level[:, 1:-1])
    return level


def _compress(origin: RandomStreams, level: Field) -> npt.NDArray[np.uint8]:
    """Map decibels to gray values with a gain, a dynamic range and a gamma curve."""
    brightest = draw_uniform(origin.frame, -3, 5)
    scaled = (level - brightest) / draw_uniform(origin.patient, 42, 60) + 1
    gray = 255 * scaled.clip(0, 1) ** draw_uniform(origin.patient, 1.1, 1.7)
    return np.asarray(gray, dtype=np.uint8)
