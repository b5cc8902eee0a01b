"""Charts of figures with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtil.report.charts.theme import colour
from mtil.report.elements import Chart

Interval = Mapping[str, float | None]


def draw_intervals(
    name: str,
    title: str,
    description: str,
    values: Sequence[tuple[str, Interval]],
    *,
    axis: str,
    domain: tuple[float, float] | None = None,
    zero_line: bool = False,
) -> Chart:
    """Return a chart with a point and a 95 % interval per line.

    Args:
        name: name of the chart.
        title: title of the chart.
        description: text for readers who cannot see the chart.
        values: label and interval of each line, from the top.
        axis: title of the axis.
        domain: bounds of the axis; by default those of the values.
        zero_line: True to mark zero, for differences.
    """
    rows = [{"label": label, **interval} for label, interval in values]
    scale = {"zero": False} if domain is None else {"domain": domain}
    labels = [label for label, _ in values]
    y = {"field": "label", "type": "nominal", "sort": labels, "title": None,
         "axis": {"labelLimit": 330, "ticks": False, "domain": False}}  # fmt: skip
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2, "color": colour(0)},
            "encoding": {"x": {"field": "low", "type": "quantitative"}, "x2": {"field": "high"}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "color": colour(0)},
            "encoding": {
                "x": {
                    "field": "value",
                    "type": "quantitative",
                    "title": axis,
                    "scale": scale,
                }
            },
        },
        {
            "mark": {"type": "text", "dy": -10},
            "encoding": {
                "x": {"field": "value", "type": "quantitative"},
                "text": {"field": "value", "type": "quantitative", "format": ".3f"},
            },
        },
    ]
    if zero_line:
        layers.append(
            {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"x": {"datum": 0}}}
        )
    spec = {
        "data": {"values": rows},
        "width": 270,
        "height": {"step": 34},
        # The browser's font may be wider than the font by which the labels were measured.
        "padding": {"left": 8 + max(map(len, labels)), "top": 8, "right": 16, "bottom": 4},
        "encoding": {"y": y},
        "layer": layers,
    }
    return Chart(name=name, title=title, description=description, spec=spec)
