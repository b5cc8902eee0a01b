"""Square windows of an image, which the network sees enlarged."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor


class Window(NamedTuple):
    """A square part of a square image, in pixels."""

    top: int
    left: int
    side: int

    @property
    def cut(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        return (
            slice(self.top, self.top + self.side),
            slice(self.left, self.left + self.side),
        )


class Box(NamedTuple):
    """The smallest rectangle around a region: first and last row and column, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def edge(self) -> int:
        """Longer edge in pixels."""
        return max(self.bottom - self.top, self.right - self.left) + 1

    @property
    def centre(self) -> tuple[float, float]:
        """Row and column of the centre."""
        return (self.top + self.bottom + 1) / 2, (self.left + self.right + 1) / 2


def find_box(region: npt.NDArray[np.bool_]) -> Box | None:
    """Return the box of a region (h, w); None if it is empty."""
    rows = np.flatnonzero(region.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(region.any(axis=0))
    return Box(int(rows[0]), int(columns[0]), int(rows[-1]), int(columns[-1]))


def place_window(centre: tuple[float, float], side: float, image_side: int) -> Window:
    """Return the window nearest to a centre (row, column) that lies inside the image."""
    pixels = min(max(round(side), 1), image_side)
    top, left = (
        min(max(round(position - pixels / 2), 0), image_side - pixels) for position in centre
    )
    return Window(top, left, pixels)


def measure_zoom(windows: Sequence[Window | None], image_side: int) -> Float[Tensor, "b"]:
    """Return the enlargement of every window in octaves: 0 for a whole image, 1 for its half."""
    return torch.tensor(
        [0.0 if window is None else math.log2(image_side / window.side) for window in windows]
    )
