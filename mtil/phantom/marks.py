"""Marks of a sonographer in an image: text and calipers, independent of the class."""

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
    """Return a copy of the image with one or two burnt-in lines of text."""
    height, width = gray.shape
    image = Image.fromarray(gray)
    size = max(7, round(min(height, width) * rng.uniform(0.04, 0.065)))
    text = _caption(rng)
    brush = ImageDraw.Draw(image)
    _, _, right, bottom = brush.multiline_textbbox((0, 0), text, font=_font(size), spacing=1)
    position = (
        rng.uniform(0.02, 0.98) * max(width - right, 0),
        rng.choice((0.03, 0.8, 0.97)) * max(height - bottom, 0),
    )
    fill = int(rng.integers(190, 256))
    brush.multiline_text(position, text, fill=fill, font=_font(size), spacing=1)
    return np.array(image)


def add_calipers(rng: np.random.Generator, gray: _Gray, masks: Sequence[_Mask]) -> _Gray:
    """Return a copy of the image with one or two pairs of crosses (calipers).

    The calipers measure a random lesion or, without a lesion, a random place.
    """
    height, width = gray.shape
    arm = max(2, round(0.014 * min(height, width)))
    top, bottom, left, right = _measured_box(rng, masks[int(rng.integers(len(masks)))])
    jitter = rng.uniform(-arm, arm, 8)
    across = ((left, (top + bottom) / 2), (right, (top + bottom) / 2))
    down = (((left + right) / 2, top), ((left + right) / 2, bottom))
    image = Image.fromarray(gray)
    brush = ImageDraw.Draw(image)
    fill = int(rng.integers(200, 256))
    dotted = rng.random() < 0.6
    for index, pair in enumerate((across, down)[: int(rng.integers(1, 3))]):
        shifts = jitter[4 * index : 4 * index + 4].reshape(2, 2)
        ends = np.clip(np.array(pair) + shifts, arm, (width - 1 - arm, height - 1 - arm)).round()
        for x, y in ends.tolist():
            brush.line((x - arm, y, x + arm, y), fill=fill)
            brush.line((x, y - arm, x, y + arm), fill=fill)
        if dotted:
            steps = max(2, int(np.hypot(*(ends[1] - ends[0])) / max(3, arm)))
            for share in np.linspace(0, 1, steps)[1:-1]:
                brush.point(tuple((ends[0] + share * (ends[1] - ends[0])).round()), fill=fill)
    return np.array(image)


def _caption(rng: np.random.Generator) -> str:
    """Return side and quadrant, alone or with a clock position or a diameter."""
    place = f"{rng.choice(_SIDES)} {rng.choice(_PLACES)}"
    kind = rng.random()
    if kind < 0.4:
        return place
    if kind < 0.7:
        return f"{place}\n{rng.integers(1, 13)} O'CLOCK"
    return f"{place}\nD {rng.uniform(0.4, 3.5):.2f} cm"


def _measured_box(rng: np.random.Generator, mask: _Mask) -> tuple[float, float, float, float]:
    """Return first row, last row, first column and last column of the measured region."""
    height, width = mask.shape
    if mask.any():
        rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
        return float(rows[0]), float(rows[-1]), float(columns[0]), float(columns[-1])
    # Normal images have calipers as often as others: marks must not reveal the class.
    row, column = height * rng.uniform(0.32, 0.6), width * rng.uniform(0.36, 0.64)
    half = min(height, width) * rng.uniform(0.09, 0.21)
    return row - 0.85 * half, row + 0.85 * half, column - 1.15 * half, column + 1.15 * half


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
