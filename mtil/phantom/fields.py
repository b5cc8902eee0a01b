"""Random fields that tissue and lesions are made of."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]


def smooth(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> Field:
    """Return a smooth field (h, w) of about unit variance with that many bumps each way."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def line(rng: np.random.Generator, length: int, num_bumps: int) -> Field:
    """Return a smooth curve (length,) of about unit variance."""
    return smooth(rng, 1, length, 1, num_bumps).ravel()


def uniform(rng: np.random.Generator, low: float, high: float) -> np.float32:
    """Draw a number in 32 bits, which keeps fields in 32 bits."""
    return np.float32(rng.uniform(low, high))
