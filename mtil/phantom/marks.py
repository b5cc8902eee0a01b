"""Marks that a sonographer leaves in an image: text and calipers, alike for all classes."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_SIDES = ("L", "R", "LT", "RT", "LEFT", "RIGHT")
_PLACES = ("UOQ", "LOQ", "UIQ", "LIQ", "AXILLA", "RETROAREOLAR", "BREAST")

_Gray = npt.NDArray[np.uint8]
_Mask = npt.NDArray[np.bool_]


def add_text(rng: np.random.Generator, gray: _Gray) -> _Gray:
    """Return the image with one or two lines of text burnt in."""
    height, width = gray.shape
    image = Image.fromarray(gray)
    size = max(7, round(min(height, width) * rng.uniform(0.04, 0.065)))
    text = _caption(rng)
    brush = ImageDraw.Draw(image)
    _, _, right, bottom = brush.multiline_textbbox((0, 0), text, font=_font(size), spacing=1)
    place = (
        rng.uniform(0.02, 0.98) * max(width - right, 0),
        rng.choice((0.03, 0.8, 0.97)) * max(height - bottom, 0),
    )
    brush.multiline_text(place, text, fill=int(rng.integers(190, 256)), font=_font(size), spacing=1)
    return np.array(image)


def add_calipers(rng: np.random.Generator, gray: _Gray, masks: Sequence[_Mask]) -> _Gray:
    """Return the image with one or two pairs of crosses, around a lesion where there is one."""
    height, width = gray.shape
    arm = max(2, round(0.014 * min(height, width)))
    top, bottom, left, right = _measured(rng, masks[int(rng.integers(len(masks)))])
    jitter = rng.uniform(-arm, arm, 8)
    across = ((left, (top + bottom) / 2), (right, (top + bottom) / 2))
    down = (((left + right) / 2, top), ((left + right) / 2, bottom))
    image = Image.fromarray(gray)
    brush = ImageDraw.Draw(image)
    fill = int(rng.integers(200, 256))
    dotted = rng.random() < 0.6
    for number, pair in enumerate((across, down)[: int(rng.integers(1, 3))]):
        moves = jitter[4 * number : 4 * number + 4].reshape(2, 2)
        ends = np.clip(np.array(pair) + moves, arm, (width - 1 - arm, height - 1 - arm)).round()
        for x, y in ends.tolist():
            brush.line((x - arm, y, x + arm, y), fill=fill)
            brush.line((x, y - arm, x, y + arm), fill=fill)
        if dotted:
            steps = max(2, int(np.hypot(*(ends[1] - ends[0])) / max(3, arm)))
            for share in np.linspace(0, 1, steps)[1:-1]:
                brush.point(tuple((ends[0] + share * (ends[1] - ends[0])).round()), fill=fill)
    return np.array(image)


def _caption(rng: np.random.Generator) -> str:
    first = f"{rng.choice(_SIDES)} {rng.choice(_PLACES)}"
    kind = rng.random()
    if kind < 0.4:
        return first
    if kind < 0.7:
        return f"{first}\n{rng.integers(1, 13)} O'CLOCK"
    return f"{first}\nD {rng.uniform(0.4, 3.5):.2f} cm"


def _measured(rng: np.random.Generator, mask: _Mask) -> tuple[float, float, float, float]:
    """Return the first and last row and column of what is measured."""
    height, width = mask.shape
    if mask.any():
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        return float(rows[0]), float(rows[-1]), float(columns[0]), float(columns[-1])
    row, column = height * rng.uniform(0.32, 0.6), width * rng.uniform(0.36, 0.64)
    half = min(height, width) * rng.uniform(0.09, 0.21)
    return row - 0.85 * half, row + 0.85 * half, column - 1.15 * half, column + 1.15 * half


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
