"""The circle: figures by round and pass, with paired differences."""

import numpy as np

from mtil.metrics import Results, summarise
from mtil.metrics.summary import paired_difference
from mtil.report.charts.intervals import draw_intervals
from mtil.report.elements import Cell, Section, Table, format_interval
from mtil.report.scored import ScoredRun

_SHOWN = ("dice", "miss_rate", "hd95", "f1", "auc")
_WORSE = 0.01
"""Loss of Dice by which an image counts as worse."""


def make_circle_section(scored: ScoredRun) -> Section | None:
    """Return the section of rounds and passes; None for a single round and pass."""
    passes = {
        (round_index, number): scored.of_pass(index, round_index)
        for round_index, table in scored.scores.items()
        for index, number in enumerate(sorted(set(table["pass"].to_pylist())))
    }
    if len(passes) < 2:
        return None
    rows: list[tuple[Cell, ...]] = []
    for (round_index, number), results in passes.items():
        figures = summarise(results)
        rows.append(
            (round_index, number, len(results), *(format_interval(figures[n]) for n in _SHOWN))
        )
    first_key, last_key = next(iter(passes)), list(passes)[-1]
    pairs = [
        (f"round {key[0]}, pass {key[1]}", passes[key], passes[first_key])
        for key in list(passes)[1:]
    ]
    first_of_last = next(key for key in passes if key[0] == last_key[0])
    if first_of_last not in (first_key, last_key):
        pairs.append(
            ("last pass over its round's first", passes[last_key],
             passes[first_of_last])
        )  # fmt: skip
    differences = []
    for label, later, earlier in pairs:
        common = np.intersect1d(later.sample_id, earlier.sample_id)
        later, earlier = (
            table.select(np.isin(table.sample_id, common)) for table in (later, earlier)
        )
        gain = paired_difference(later, earlier)
        worse = float(np.mean(_dice_gain(later, earlier) < -_WORSE))
        differences.append((label, gain, worse))
    return Section(
        name="circle",
        title="Rounds and passes",
        paragraphs=(
            "The circle repeats the training, with the maps of the round before; the passes of a "
            "model follow each other on a test image. Differences are paired on the same images.",
        ),
        tables=(
            Table(
                name="passes",
                title="By round and pass",
                columns=("round", "pass", "images", *_SHOWN),
                rows=tuple(rows),
            ),
            Table(
                name="pass-differences",
                title="Paired differences to the first pass",
                columns=("pass", *_SHOWN, "images worse"),
                rows=tuple(
                    (
                        label,
                        *(format_interval(gain[name], signed=True) for name in _SHOWN),
                        f"{100 * worse:.0f} %",
                    )
                    for label, gain, worse in differences
                ),
                note=f"Worse: tumour images that lose more than {_WORSE} of Dice.",
            ),
        ),
        charts=(
            draw_intervals(
                "pass-gains",
                "Gain of Dice over the first pass",
                "; ".join(
                    f"{label}: {format_interval(gain['dice'], signed=True)}"
                    for label, gain, _ in differences
                ),
                [(label, gain["dice"]) for label, gain, _ in differences],
                axis="difference of Dice",
                zero_line=True,
            ),
        ),
    )


def _dice_gain(later: Results, earlier: Results) -> np.ndarray:
    tumour = later.tumour
    return later.dice[tumour] - earlier.dice[tumour]
