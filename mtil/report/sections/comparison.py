"""Several runs: paired differences and the scatter of images."""

from collections.abc import Sequence

import numpy as np

from mtil.errors import DataError
from mtil.metrics.summary import METRICS, paired_difference
from mtil.report.charts.intervals import draw_intervals
from mtil.report.charts.outlines import Link, draw_scatter
from mtil.report.elements import Cell, Chart, Section, Table, format_interval
from mtil.report.scored import ScoredRun


def make_comparison_section(
    scored: ScoredRun, others: Sequence[ScoredRun], link: Link
) -> Section | None:
    """Return the paired differences of further runs to a run; None without further runs.

    Raises:
        DataError: if two runs have no test image in common, or disagree about an image's class.
    """
    if not others:
        return None
    gains, counts = [], []
    charts: list[Chart] = []
    for number, other in enumerate(others):
        ours, theirs = scored.of_pass(-1), other.of_pass(-1)
        common = np.intersect1d(ours.sample_id, theirs.sample_id)
        if not len(common):
            raise DataError(
                f"Runs must share test images to be compared, but {scored.run.uri} and "
                f"{other.run.uri} share none; compare runs of one data set and the same folds."
            )
        ours, theirs = (table.select(np.isin(table.sample_id, common)) for table in (ours, theirs))
        gains.append(paired_difference(theirs, ours))
        counts.append(len(common))
        charts.append(
            draw_scatter(f"scatter-{number}", ours, theirs, (scored.name, other.name), link)
        )
    names = [other.name for other in others]
    rows: list[tuple[Cell, ...]] = [
        (metric, *(format_interval(gain[metric], signed=True) for gain in gains))
        for metric in METRICS
    ]
    forest = draw_intervals(
        "differences",
        f"Gain of Dice over {scored.name}",
        "; ".join(
            f"{name}: {format_interval(gain['dice'], signed=True)}"
            for name, gain in zip(names, gains, strict=True)
        ),
        [(name, gain["dice"]) for name, gain in zip(names, gains, strict=True)],
        axis="difference of Dice",
        zero_line=True,
    )
    return Section(
        name="comparison",
        title="Against other runs",
        paragraphs=(
            f"Differences to {scored.name} are paired on the images that both runs scored: "
            + ", ".join(f"{count} with {name}" for name, count in zip(names, counts, strict=True))
            + ". Intervals by bootstrap over groups.",
        ),
        tables=(
            Table(
                name="differences",
                title=f"Differences to {scored.name}",
                columns=("figure", *names),
                rows=tuple(rows),
            ),
        ),
        charts=(forest, *charts),
    )
