"""Lesions: outline, echo strength, and effect on the tissue below.

Area, contrast and place have equal distributions in both classes. The classes differ in margin
(smooth or irregular, sharp or blurred), rim (thin capsule or wide halo), calcifications, and shadow
or enhancement below the lesion. No sign is present in all lesions of a class.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mtil.phantom.fields import Field, draw_curve, draw_field, draw_uniform
from mtil.phantom.streams import RandomStreams

_NUM_ANGLES = 512
_ANGLES = np.linspace(-np.pi, np.pi, _NUM_ANGLES, endpoint=False)


@dataclass(frozen=True)
class Traits:
    """Frequencies and bounds of a class's signs. Shares are of all lesions of the class."""

    irregular: float
    """Share of lesions with a spiculated, microlobulated or angular outline; the rest is smooth."""
    shadow: float
    enhancement: float
    capsule: float
    halo: float
    calcified: float
    blur: tuple[float, float]
    """Bounds of the margin's width in hundredths of the image's shorter side."""
    rough: tuple[float, float]
    """Bounds of the margin's deviation from the outline as a share of the radius."""
    elongation: float
    """Mean logarithm of the ratio of the axes; positive means wider than tall."""


BENIGN_TRAITS = Traits(
    irregular=0.08,
    shadow=0.2,
    enhancement=0.4,
    capsule=0.5,
    halo=0.1,
    calcified=0.1,
    blur=(0.4, 1.6),
    rough=(0.01, 0.05),
    elongation=0.36,
)
MALIGNANT_TRAITS = Traits(
    irregular=0.92,
    shadow=0.5,
    enhancement=0.15,
    capsule=0.1,
    halo=0.45,
    calcified=0.3,
    blur=(0.5, 2.6),
    rough=(0.05, 0.13),
    elongation=0.24,
)


@dataclass(frozen=True)
class _Window:
    """The part of the image around a lesion."""

    area: tuple[slice, slice]
    distance: Field
    """Distance of a pixel to the outline in pixels; negative inside."""


def add_lesions(
    origin: RandomStreams, echo: Field, traits: Traits
) -> tuple[npt.NDArray[np.bool_], ...]:
    """Add one to three lesions side by side to the tissue in place. Return a mask (h, w) for each.

    The patient's stream decides the lesions. The frame's stream decides the place across the beam,
    the tilt and the visible section.

    Args:
        origin: random streams of the image.
        echo: echo strength (h, w) in dB; modified.
        traits: signs of the class.
    """
    num_lesions = int(origin.patient.choice((1, 2, 3), p=(0.92, 0.06, 0.02)))
    # Centres are shares of the width. Several lesions are smaller, to fit side by side.
    centres = {1: (0.5,), 2: (0.28, 0.72), 3: (0.18, 0.5, 0.82)}[num_lesions]
    sizes = (0.09, 0.21) if num_lesions == 1 else (0.06, 0.11)
    return tuple(_add_lesion(origin, echo, traits, centre, sizes) for centre in centres)


def add_lobule(rng: np.random.Generator, echo: Field) -> None:
    """Add a small dark lobule of fat, which is no lesion, to the tissue in place."""
    height, width = echo.shape
    radius = min(height, width) * rng.uniform(0.03, 0.08)
    centre = (height * rng.uniform(0.15, 0.8), width * rng.uniform(0.05, 0.95))
    elongation = rng.uniform(0.3, 0.9)
    window = _window((height, width), centre, radius, elongation, rng.uniform(-0.3, 0.3),
                     _smooth_outline(rng))  # fmt: skip
    echo[window.area] -= draw_uniform(rng, 3, 8) * _body(window, 2 + 0.2 * radius)


def _add_lesion(
    origin: RandomStreams,
    echo: Field,
    traits: Traits,
    across: float,
    sizes: tuple[float, float],
) -> npt.NDArray[np.bool_]:
    """Add a lesion to the tissue in place. Return its mask (h, w).

    Args:
        origin: random streams of the image.
        echo: echo strength (h, w) in dB; modified.
        traits: signs of the class.
        across: mean centre as a share of the width.
        sizes: bounds of the radius as shares of the shorter side.
    """
    rng, frame = origin.patient, origin.frame
    height, width = echo.shape
    side = min(height, width)
    radius = side * rng.uniform(*sizes)
    jitter = 0.14 if across == 0.5 else 0.03
    centre = (
        height * rng.uniform(0.32, 0.6),
        width * (across + frame.uniform(-jitter, jitter)),
    )
    irregular = rng.random() < traits.irregular
    outline = (_irregular_outline if irregular else _smooth_outline)(rng)
    elongation = rng.normal(traits.elongation, 0.22)
    tilt = frame.uniform(-0.4, 0.4)
    # Each view cuts the lesion in a different section, with a different size and outline.
    if origin.has_views:
        radius *= frame.uniform(0.85, 1.1)
        elongation += frame.normal(0, 0.18)
        outline = outline * _smooth_outline(frame)
    window = _window((height, width), centre, radius, elongation, tilt, outline)
    rows, columns = window.distance.shape
    bumps = draw_field(frame, rows, columns, 14, 14)
    window.distance[:] += draw_uniform(rng, *traits.rough) * np.float32(radius) * bumps
    body = _body(window, side * rng.uniform(*traits.blur) / 100)
    _fill(origin, echo[window.area], window, body)
    _add_rim(rng, echo[window.area], window, traits, side)
    if rng.random() < traits.calcified:
        _calcify(frame, echo[window.area], window)
    _cast(origin, echo, window, body, traits)
    mask = np.zeros((height, width), np.bool_)
    mask[window.area] = _largest_piece(window.distance < 0)
    return mask


def _largest_piece(inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the largest connected piece with holes filled."""
    # The margin's roughness leaves crumbs of a few pixels beside the lesion.
    pieces, _ = ndimage.label(inside)
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    return np.asarray(ndimage.binary_fill_holes(pieces == largest))


def _smooth_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a radius per angle: an ellipse with a few gentle lobes."""
    radii = np.ones(_NUM_ANGLES)
    for lobes in (2, 3, 4):
        radii += rng.uniform(0, 0.16 / lobes) * np.cos(lobes * _ANGLES + rng.uniform(0, 2 * np.pi))
    return radii


def _irregular_outline(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a radius per angle: spikes, small lobes or corners on a smooth outline."""
    kind = rng.random()
    count = int(rng.integers(6, 13))
    if kind < 0.5:
        return _smooth_outline(rng) + _spikes(rng, count)
    if kind < 0.75:
        phase = rng.uniform(0, 2 * np.pi)
        lobes = np.abs(np.sin(count * _ANGLES / 2 + phase + 0.6 * np.sin(_ANGLES - phase)))
        uneven = 1 + 0.5 * np.cos(_ANGLES + rng.uniform(0, 2 * np.pi))
        return _smooth_outline(rng) + rng.uniform(0.15, 0.35) * uneven * lobes
    corners = rng.uniform(0.5, 1.5, count)
    positions = np.sort((np.arange(count) + rng.uniform(-0.3, 0.3, count)) / count)
    return np.interp(_ANGLES / (2 * np.pi) + 0.5, positions, corners, period=1)


def _spikes(rng: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Return the sum of `count` spikes per angle."""
    centres = (np.arange(count) + rng.uniform(-0.3, 0.3, count)) * 2 * np.pi / count
    distances = np.abs((_ANGLES - centres[:, None] + np.pi) % (2 * np.pi) - np.pi)
    heights = rng.uniform(0.05, 0.75, (count, 1))
    widths = rng.uniform(0.06, 0.22, (count, 1))
    return np.asarray((heights * np.exp(-distances / widths)).sum(axis=0))


def _window(
    shape: tuple[int, int],
    centre: tuple[float, float],
    radius: float,
    elongation: float,
    tilt: float,
    outline: npt.NDArray[np.float64],
) -> _Window:
    """Return the window of a lesion.

    Args:
        shape: height and width of the image.
        centre: row and column of the lesion's centre.
        radius: radius in pixels of a circle with the lesion's area.
        elongation: logarithm of the ratio of the axes; positive means wider than tall.
        tilt: rotation in radians.
        outline: relative radius per angle of `_ANGLES`.
    """
    radii = outline / np.sqrt(np.mean(outline**2))
    stretch = np.exp(elongation / 2)
    reach = int(radius * (radii.max() * max(stretch, 1 / stretch) + 0.5)) + 4
    top, bottom = (int(np.clip(centre[0] + sign * reach, 0, shape[0])) for sign in (-1, 1))
    left, right = (int(np.clip(centre[1] + sign * reach, 0, shape[1])) for sign in (-1, 1))
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(centre[0])
    x = np.arange(left, right, dtype=np.float32) - np.float32(centre[1])
    cosine, sine = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
    along = (x * cosine + y * sine) / np.float32(stretch * radius)
    over = (y * cosine - x * sine) * np.float32(stretch / radius)
    angle = (np.arctan2(over, along) + np.float32(np.pi)) * np.float32(_NUM_ANGLES / (2 * np.pi))
    edge = radii.astype(np.float32)[angle.astype(np.intp) % _NUM_ANGLES]
    distance = (np.hypot(along, over) - edge) * np.float32(radius)
    return _Window((slice(top, bottom), slice(left, right)), distance)


def _body(window: _Window, blur: float) -> Field:
    """Return the share of lesion in each pixel, from 1 inside to 0 outside."""
    return (0.5 - window.distance / np.float32(2 * max(blur, 0.5))).clip(0, 1)


def _fill(origin: RandomStreams, echo: Field, window: _Window, body: Field) -> None:
    """Lower the echo strength inside a lesion; both classes have the same contrasts."""
    level = echo[window.distance > 0].mean() - draw_uniform(origin.patient, 10, 24)
    height, width = echo.shape
    uneven = draw_uniform(origin.patient, 0.5, 3) * draw_field(origin.frame, height, width, 7, 7)
    echo += body * (level + uneven - echo)


def _add_rim(
    rng: np.random.Generator, echo: Field, window: _Window, traits: Traits, side: int
) -> None:
    """Add a thin bright capsule, a wide bright halo or no rim."""
    kind = rng.random()
    outside = window.distance.clip(0, None)
    if kind < traits.capsule:
        thickness = np.float32(max(0.8, 0.007 * side))
        offset = (window.distance - thickness) / thickness
        echo += draw_uniform(rng, 4, 9) * np.exp(-(offset**2))
    elif kind < traits.capsule + traits.halo:
        halo = np.exp(-outside / np.float32(0.035 * side)) * (window.distance > 0)
        echo += draw_uniform(rng, 3, 7) * halo


def _calcify(rng: np.random.Generator, echo: Field, window: _Window) -> None:
    """Add bright grains at random places inside a lesion."""
    rows, columns = np.nonzero(window.distance < -1.5)
    if rows.size:
        grains = rng.integers(rows.size, size=int(rng.integers(3, 9)))
        echo[rows[grains], columns[grains]] += draw_uniform(rng, 14, 22)


def _cast(origin: RandomStreams, echo: Field, window: _Window, body: Field, traits: Traits) -> None:
    """Weaken (shadow) or strengthen (enhancement) the echo below a lesion.

    The change at a pixel grows with the thickness of lesion above the pixel.
    """
    rng = origin.patient
    kind = rng.random()
    if kind < traits.shadow:
        change = -draw_uniform(rng, 6, 14)
    elif kind < traits.shadow + traits.enhancement:
        change = draw_uniform(rng, 3, 8)
    else:
        return
    passed = ndimage.uniform_filter1d(np.cumsum(body, axis=0), 1 + echo.shape[1] // 32, axis=1)
    streaks = 1 + np.float32(0.2) * draw_curve(origin.frame, passed.shape[1], 12)
    passed *= streaks * change / passed.max().clip(1, None)
    rows, columns = window.area
    echo[window.area] += passed
    echo[rows.stop :, columns] += passed[-1]
