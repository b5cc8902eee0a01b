"""Smooth random fields, the material of tissue and lesions."""

import numpy as np
import numpy.typing as npt
from PIL import Image

Field = npt.NDArray[np.float32]


def draw_field(rng: np.random.Generator, height: int, width: int, rows: int, columns: int) -> Field:
    """Return a smooth random field (h, w) of about unit variance with `rows` x `columns` bumps."""
    coarse = Image.fromarray(rng.standard_normal((rows, columns), np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def draw_curve(rng: np.random.Generator, length: int, num_bumps: int) -> Field:
    """Return a smooth random curve (length,) of about unit variance with `num_bumps` bumps."""
    return draw_field(rng, 1, length, 1, num_bumps).ravel()


def draw_uniform(rng: np.random.Generator, low: float, high: float) -> np.float32:
    """Draw a number from [low, high) as float32."""
    # A float64 would turn a float32 field into float64 and double the memory.
    return np.float32(rng.uniform(low, high))
