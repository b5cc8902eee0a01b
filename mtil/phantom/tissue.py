"""Echo strength of breast tissue without lesions, in decibels."""

import numpy as np

from mtil.phantom.fields import Field, draw_curve, draw_field, draw_uniform
from mtil.phantom.lesion import add_lobule
from mtil.phantom.streams import RandomStreams


def draw_tissue(origin: RandomStreams, height: int, width: int) -> Field:
    """Return the echo strength (h, w) in dB of skin, fat, gland, muscle and chest wall.

    Layers are wavy with bright interfaces. Ligaments cross the fat, fibres run along gland and
    muscle, and gland holds lobules of fat. The patient's stream decides thickness and strength of
    the layers, the frame's stream the course of the layers and everything else.
    """
    rng = origin.frame
    depth = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    bend = draw_uniform(rng, 0.01, 0.035) * draw_curve(rng, width, 5)
    ragged = depth + draw_uniform(rng, 0.004, 0.016) * draw_field(rng, height, width, 24, 12)
    echo = np.full((height, width), -9.0, np.float32)
    ligaments, fibres = np.zeros((2, height, width), np.float32)
    end = np.zeros(width, np.float32)
    for layer in _layers(origin.patient):
        end = end + layer.thickness * (
            1 + draw_uniform(rng, 0.05, 0.25) * draw_curve(rng, width, 4)
        )
        border = end + layer.bend * bend
        share = ((ragged - border) / layer.fade + np.float32(0.5)).clip(0, 1)
        for field, value in (
            (echo, layer.echo),
            (ligaments, layer.ligaments),
            (fibres, layer.fibres),
        ):
            field += share * (value - field)
        lit = layer.interface * (0.3 + 0.7 * draw_curve(rng, width, 9)).clip(0, None)
        _brighten(echo, border * height, lit)
    rows = (np.arange(height)[:, None] - (bend * height).astype(np.intp)) % height
    columns = np.arange(width)
    coarse = draw_field(rng, height, width, int(rng.integers(7, 14)), int(rng.integers(2, 6)))
    texture = ligaments * _ridges(coarse, 0.12)
    fine = draw_field(rng, height, width, int(rng.integers(22, 46)), int(rng.integers(4, 9)))
    patches = draw_field(rng, height, width, 6, 5)
    texture += fibres * (0.7 + 0.5 * patches).clip(0.1, None) * (_ridges(fine, 0.25) + 0.5 * fine)
    echo += texture[rows, columns]
    echo += draw_uniform(rng, 1.0, 2.5) * patches[:, ::-1]
    for _ in range(rng.integers(1, 5)):
        add_lobule(rng, echo)
    echo -= depth * _dropout(rng, width)
    return echo


class _Layer:
    """A layer of tissue below an interface. Pairs are bounds of random values."""

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        thickness: tuple[float, float],
        echo: tuple[float, float],
        ligaments: tuple[float, float],
        fibres: tuple[float, float],
        interface: float,
        fade: float,
        bend: float,
    ) -> None:
        self.thickness = draw_uniform(rng, *thickness)
        """Thickness of the layer above the interface as a share of the image's height."""
        self.echo = draw_uniform(rng, *echo)
        self.ligaments = draw_uniform(rng, *ligaments)
        self.fibres = draw_uniform(rng, *fibres)
        self.interface = np.float32(interface)
        """Brightness of the interface above the surroundings in dB."""
        self.fade = np.float32(fade)
        """Width of the transition from the layer above as a share of the image's height."""
        self.bend = np.float32(bend)
        """Amount of the image's common wave, 0 to 1."""


def _layers(rng: np.random.Generator) -> list[_Layer]:
    """Draw fat below skin, gland below fat, muscle below gland and chest wall below muscle."""
    return [
        _Layer(
            rng, thickness=(0.02, 0.06), echo=(-21, -13), ligaments=(7, 15), fibres=(1, 4),
            interface=8, fade=0.02, bend=0.2,
        ),
        _Layer(
            rng, thickness=(0.05, 0.25), echo=(-17, -10), ligaments=(0, 8), fibres=(4, 9),
            interface=8, fade=0.06, bend=1.0,
        ),
        _Layer(
            rng, thickness=(0.25, 0.55), echo=(-27, -20), ligaments=(2, 8), fibres=(6, 12),
            interface=9, fade=0.08, bend=1.0,
        ),
        _Layer(
            rng, thickness=(0.1, 0.4), echo=(-34, -26), ligaments=(0, 4), fibres=(2, 6),
            interface=14, fade=0.03, bend=1.0,
        ),
    ]  # fmt: skip


def _brighten(echo: Field, rows: Field, amount: Field) -> None:
    """Add a bright line in place, about a hundredth of the height thick.

    Args:
        echo: echo strength (h, w) in dB; modified.
        rows: row of the line in each column (w,).
        amount: peak brightness in each column (w,) in dB.
    """
    height, width = echo.shape
    thickness = max(0.7, height / 130)
    reach = int(3 * thickness) + 1
    nearest = rows.astype(np.intp)
    columns = np.arange(width)
    for offset in range(-reach, reach + 1):
        row = nearest + offset
        inside = (row >= 0) & (row < height)
        rise = amount * np.exp(-(((row - rows) / thickness) ** 2))
        echo[row[inside], columns[inside]] += rise[inside].astype(np.float32)


def _ridges(field: Field, thickness: float) -> Field:
    """Return ridges of height 1 along the zeros of a field."""
    return np.asarray(np.exp(-((field / np.float32(thickness)) ** 2)))


def _dropout(rng: np.random.Generator, width: int) -> Field:
    """Return the loss of each column from top to bottom in dB: bad contact, ribs, dense tissue."""
    overall = draw_uniform(rng, 4, 18)
    return overall + draw_uniform(rng, 0, 6) * np.abs(
        draw_curve(rng, width, int(rng.integers(3, 8)))
    )
