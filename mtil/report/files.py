"""Figures and tables of a report as files for papers: SVG, CSV and LaTeX."""

import csv
import io
import re

from mtil.report.charts.theme import draw_chart
from mtil.report.elements import Report, Table, format_cell
from mtil.storage import Store

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters by which spreadsheets take a text for a formula."""
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]+")
"""Control characters, and marks that turn the direction of text."""


def write_figures(report: Report, store: Store) -> list[str]:
    """Write all charts as SVG, all tables as CSV and LaTeX; return the names of the files."""
    written = {}
    for chart in report.charts():
        written[f"{chart.name}.svg"] = draw_chart(chart, in_page=False)
    for table in report.tables():
        written[f"{table.name}.csv"] = to_csv(table)
        written[f"{table.name}.tex"] = to_latex(table)
    for name, text in written.items():
        store.write(name, text.encode())
    return list(written)


def to_csv(table: Table) -> str:
    """Return a table as CSV. Numbers are written in full, texts never begin a formula."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    for row in (table.columns, *table.rows):
        writer.writerow([_guard(value) if isinstance(value, str) else value for value in row])
    return sink.getvalue()


def to_latex(table: Table) -> str:
    """Return a table as a LaTeX `tabular` in the style of the package `booktabs`."""
    head, *rows = (
        " & ".join(escape_latex(format_cell(value)) for value in row) + r" \\"
        for row in (table.columns, *table.rows)
    )
    columns = "l" + "r" * (len(table.columns) - 1)
    lines = [
        rf"% {escape_latex(table.title)}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Return text whose characters LaTeX shows instead of obeying."""
    return "".join(_LATEX.get(character, character) for character in _INVISIBLE.sub(" ", text))


def _guard(text: str) -> str:
    """Return text that a spreadsheet shows; a sign before a number stays."""
    if text.startswith(_FORMULA) and not re.match(r"[+-]?\d", text):
        return f"'{text}"
    return text
