"""`mtil report`: a web page about a run."""

import argparse
from typing import TYPE_CHECKING

from mtil.cli.flags import CommandParsers, add_command, check_page_name

if TYPE_CHECKING:
    from mtil.cli.console import CommandOutput


def add_report_command(commands: CommandParsers) -> None:
    """Add `mtil report`."""
    parser = add_command(
        commands, "report", run_report, "make a web page of a run's figures and images"
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a scored run; others are compared with the first"
    )
    parser.add_argument(
        "--to", default="report.html", metavar="FILE", help="the page (report.html)"
    )
    parser.add_argument("--data", metavar="URI", help="the data set, if moved since training")
    parser.add_argument(
        "--figures", metavar="DIR", help="also write charts as SVG, tables as CSV and LaTeX"
    )
    parser.add_argument(
        "--originals", action="store_true", help="also write the images in stored size beside FILE"
    )


def run_report(options: argparse.Namespace, output: "CommandOutput") -> None:
    """Read the runs, write the page and say where it is."""
    from mtil.report.build import build_report
    from mtil.report.files import write_figures
    from mtil.report.gallery.originals import write_originals
    from mtil.report.page import render_page
    from mtil.report.scored import name_runs, read_run
    from mtil.storage import open_store

    folder, file = check_page_name(options.to)
    names = name_runs(options.runs)
    first, *others = (
        read_run(uri, data=options.data, name=name)
        for uri, name in zip(options.runs, names, strict=True)
    )
    store = open_store(folder)
    with output.progress() as bar:
        report = build_report(
            first, others, lambda done, of: bar.show("drawing", done, of, "images")
        )
        if options.originals:
            report = write_originals(report, store, file)
    page = render_page(report).encode()
    store.write(file, page)
    output.line(report.summary)
    for warning in report.warnings:
        output.line(f"Warning: {warning}")
    if options.figures is not None:
        files = write_figures(report, open_store(options.figures))
        output.line(f"{len(files)} files of charts and tables in {options.figures}")
    output.line(f"Report: {options.to} ({len(page) / 1e6:.1f} MB, {len(report.cards)} images)")
    output.result(
        {
            "report": options.to,
            "bytes": len(page),
            "images": len(report.cards),
            "summary": report.summary,
            "warnings": list(report.warnings),
        }
    )
