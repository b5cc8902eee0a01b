"""Colours of charts, and their drawing."""

from typing import Any

from mtil.report.elements import Chart

SERIES = ("--series-1", "--series-2", "--series-3", "--series-4", "--series-5", "--series-6")
"""CSS variables of the colours of series."""

PAPER = {
    "--ink": "#1a1c20",
    "--quiet": "#5c6370",
    "--grid": "#e3e5ea",
    "--series-1": "#0b62a8",
    "--series-2": "#b4472c",
    "--series-3": "#2f7d4f",
    "--series-4": "#7a4fb0",
    "--series-5": "#8a6d00",
    "--series-6": "#2c7f8c",
}
"""Colours on white, for light pages and figures in papers. All differ in lightness from white by a
contrast of at least 4.5."""

DARK = {
    "--ink": "#e8eaee",
    "--quiet": "#a3abb8",
    "--grid": "#353a44",
    "--series-1": "#6cb4f0",
    "--series-2": "#f0977d",
    "--series-3": "#7ccf9a",
    "--series-4": "#c3a3f0",
    "--series-5": "#e0c454",
    "--series-6": "#74cfdd",
}
"""Colours on dark pages."""

_FONT = "system-ui, sans-serif"
_BASE = "https://vega.github.io/vega-datasets/"
"""Address to which the library takes links within the page to be relative."""


def colour(index: int) -> str:
    """Return the colour of a series, as CSS."""
    return f"var({SERIES[index % len(SERIES)]})"


def draw_chart(chart: Chart, *, in_page: bool) -> str:
    """Return a chart as SVG.

    Args:
        chart: the chart.
        in_page: True for colours that follow the page's, False for those of `PAPER`.
    """
    # Imported late: the library takes a second, and only reports need it.
    import vl_convert

    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", **chart.spec}
    # No data is loaded: all values are in the specification.
    svg: str = vl_convert.vegalite_to_svg(spec, config=_config(), allowed_base_urls=[])
    svg = svg.replace(f'"{_BASE}#', '"#')
    if in_page:
        return svg
    for name, value in PAPER.items():
        svg = svg.replace(f"var({name})", value)
    return svg


def _config() -> dict[str, Any]:
    ink, quiet, grid = "var(--ink)", "var(--quiet)", "var(--grid)"
    text = {"labelFont": _FONT, "titleFont": _FONT, "labelColor": quiet, "titleColor": ink}
    size = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"}
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {**text, **size, "gridColor": grid, "domainColor": quiet, "tickColor": quiet},
        "legend": {**text, **size, "orient": "bottom", "direction": "horizontal"},
        "header": {**text, **size},
        "range": {"category": [f"var({name})" for name in SERIES]},
        "mark": {"color": colour(0)},
        "text": {"color": ink, "font": _FONT, "fontSize": 12},
        "rule": {"color": quiet},
    }
