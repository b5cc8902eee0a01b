"""Histograms of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtil.report.elements import Chart

_NUM_BINS = 24


def draw_histogram(
    rows: Sequence[Mapping[str, Any]], column: str, *, name: str, title: str, axis: str, by: str
) -> Chart:
    """Return the shares of a column's values, a line per group of rows.

    Shares are of the group, so a small collection is seen beside a large one. Only counts go into
    the chart, so its size does not depend on the number of rows.

    Args:
        rows: a mapping per image.
        column: the column of the values.
        name: name of the chart.
        title: title of the chart.
        axis: title of the axis of values.
        by: the column that names the groups.
    """
    values = np.array([row[column] for row in rows], float)
    edges = np.histogram_bin_edges(values if len(values) else [0.0, 1.0], bins=_NUM_BINS)
    groups = sorted({row[by] for row in rows})
    bars = []
    for group in groups:
        counts, _ = np.histogram([row[column] for row in rows if row[by] == group], bins=edges)
        bars += [
            {"from": float(low), "to": float(high), "share": float(share), "group": group}
            for low, high, share in zip(
                edges[:-1], edges[1:], counts / max(1, counts.sum()), strict=True
            )
        ]
    spec = {
        "data": {"values": bars},
        "width": 300,
        "height": 200,
        "mark": {"type": "area", "interpolate": "step-after", "opacity": 0.35, "line": True},
        "encoding": {
            "x": {"field": "from", "type": "quantitative", "title": axis},
            "y": {
                "field": "share",
                "type": "quantitative",
                "title": "share of the images",
                "stack": None,
                "axis": {"format": "%"},
            },
            "color": {"field": "group", "type": "nominal", "title": None},
        },
    }
    description = f"Distribution of {axis}, by {', '.join(groups)}."
    return Chart(name=name, title=title, description=description, spec=spec)
