"""Lay a report out as one HTML file that needs no network."""

import base64
import hashlib
import json
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from mtil import __version__
from mtil.report.charts.theme import DARK, PAPER, draw_chart
from mtil.report.elements import Cell, Chart, Report, format_cell
from mtil.report.gallery.cards import PROBLEMS

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?( %| \[[-+.\d]+, [-+.\d]+\])?")


def render_page(report: Report) -> str:
    """Return the HTML of a report.

    Everything from a data set is escaped, and a content security policy forbids all scripts but
    the page's own and all requests.
    """
    environment = Environment(
        loader=PackageLoader("mtil.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = format_cell
    environment.filters["code"] = _mark_code
    environment.filters["is_numeric"] = _is_numeric
    environment.filters["draw"] = _draw
    script = _read("gallery.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(_style()),
        script=Markup(script),
        script_digest=digest,
        layers=Markup(_layers_json(report)),
        problems=PROBLEMS,
        version=__version__,
    )


def _mark_code(text: str) -> Markup:
    """Return escaped text with the words between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _draw(chart: Chart) -> Markup:
    svg = draw_chart(chart, in_page=True)
    # Screen readers read the description of the figure instead of Vega's labels of all marks.
    svg = svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    # Hidden elements must not get the focus; the gallery has the same links.
    return Markup(svg.replace("<a ", '<a tabindex="-1" '))


def _is_numeric(value: Cell) -> bool:
    """Return whether a cell is a number or a figure with an interval, which must not wrap."""
    return _NUMBER.fullmatch(format_cell(value)) is not None


def _style() -> str:
    light = "".join(f"{name}:{value};" for name, value in PAPER.items())
    dark = "".join(f"{name}:{value};" for name, value in DARK.items())
    return _read("style.css").replace("/* light */", light).replace("/* dark */", dark)


def _layers_json(report: Report) -> str:
    """Return the layers of all cards but the outlines of the last pass, as JSON for a script."""
    values: dict[str, Any] = {card.anchor: card.layers for card in report.cards}
    # In a script element `<` could end the element.
    return json.dumps(values).replace("<", "\\u003c")


def _read(name: str) -> str:
    return (files("mtil.report") / "templates" / name).read_text()
