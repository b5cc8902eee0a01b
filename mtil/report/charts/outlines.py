"""Charts of the outlines: Dice by lesion size, distributions, and two runs beside each other."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mtil.metrics import Results
from mtil.report.charts.classification import UNIT
from mtil.report.charts.theme import colour
from mtil.report.elements import Chart

Link = Callable[[str], str | None]
"""Returns the address of an image in the page, or None if it has no card."""

_CLASSES = ("benign", "malignant")
_CLASS_COLOURS = {"scale": {"domain": list(_CLASSES), "range": [colour(0), colour(1)]}}


def draw_dice_by_size(tumours: Results, link: Link) -> Chart:
    """Return Dice against lesion size; points lead to the images."""
    rows = [
        {
            "image": str(sample_id),
            "pixels": int(pixels),
            "dice": float(dice),
            "class": _CLASSES[label],
            "link": link(str(sample_id)),
        }
        for sample_id, pixels, dice, label in zip(
            tumours.sample_id, tumours.tp + tumours.fn, tumours.dice, tumours.label, strict=True
        )
    ]
    spec = {
        "data": {"values": rows},
        "width": 640,
        "height": 260,
        "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.7},
        "encoding": {
            "x": {
                "field": "pixels",
                "type": "quantitative",
                "scale": {"type": "log"},
                "title": "lesion size in pixels of the image",
            },
            "y": {"field": "dice", "type": "quantitative", "title": "Dice"},
            "color": {"field": "class", "type": "nominal", "title": None, **_CLASS_COLOURS},
            "href": {"field": "link"},
            "description": {"field": "image"},
        },
    }
    return Chart(
        name="dice-by-size",
        title="Dice against lesion size",
        description="A point per tumour image; it leads to the image.",
        spec=spec,
        is_wide=True,
    )


def draw_distribution(
    tumours: Results, values: npt.NDArray[np.float64], *, name: str, title: str, axis: str
) -> Chart:
    """Return a histogram of a value of the tumour images, by class."""
    rows = [
        {"value": float(value), "class": _CLASSES[label]}
        for value, label in zip(values, tumours.label, strict=True)
    ]
    spec = {
        "data": {"values": rows},
        "width": 300,
        "height": 200,
        "mark": {"type": "bar"},
        "encoding": {
            "x": {"field": "value", "bin": {"maxbins": 24}, "title": axis},
            "y": {"aggregate": "count", "title": "images"},
            "color": {"field": "class", "type": "nominal", "title": None, **_CLASS_COLOURS},
        },
    }
    return Chart(name=name, title=title, description=f"Histogram of {axis} by class.", spec=spec)


def draw_scatter(
    name: str, first: Results, second: Results, names: Sequence[str], link: Link
) -> Chart:
    """Return Dice of the same images by two runs; points lead to the images of the first."""
    rows: list[dict[str, Any]] = [
        {"image": str(sample_id), "x": float(x), "y": float(y), "link": link(str(sample_id))}
        for sample_id, x, y in zip(first.sample_id, first.dice, second.dice, strict=True)
        if np.isfinite(x) and np.isfinite(y)
    ]
    spec = {
        "width": 300,
        "height": 300,
        "layer": [
            {
                "data": {"values": [{"x": 0, "y": 0}, {"x": 1, "y": 1}]},
                "mark": {"type": "line", "color": "var(--quiet)", "strokeDash": [4, 3]},
                "encoding": {"x": {"field": "x", **UNIT}, "y": {"field": "y", **UNIT}},
            },
            {
                "data": {"values": rows},
                "mark": {"type": "point", "filled": True, "size": 26, "opacity": 0.6},
                "encoding": {
                    "x": {"field": "x", "title": f"Dice, {names[0]}", **UNIT},
                    "y": {"field": "y", "title": f"Dice, {names[1]}", **UNIT},
                    "href": {"field": "link"},
                    "description": {"field": "image"},
                },
            },
        ],
    }
    return Chart(
        name=name,
        title=f"Images by {names[0]} and {names[1]}",
        description="A point per tumour image; above the diagonal the second is better.",
        spec=spec,
    )
