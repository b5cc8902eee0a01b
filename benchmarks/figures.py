"""Figures of a declared table: configurations, folds and seeds, with paired differences.

    python -m benchmarks.figures busi --to FOLDER [--data URI] [--jobs 2]
    python -m benchmarks.figures busi_with_bus_bra --to FOLDER --set train.init=RUNS/{row}/seed-0

A table is a file in `benchmarks/figures/`. It declares rows (differences from a preset), folds,
seeds, the split whose images are scored, the row against which others are compared, and a budget of
hours. Every training is `mtil train --local`, every score `mtil evaluate --local`: the same command
resumes, and the scores of single images stay in the runs FOLDER/ROW/seed-SEED. In the text of a
value, `{row}` is the row's folder: rows can start from their counterparts of another table. No
training starts once the trainings have used up the budget. `--split test` scores the test images of
the same runs: the one look at the end. `--on URI` scores the images of another data set, by all
models of a run together (`mtil evaluate --on`); there are no ensembles then.

Figures are pooled over the folds and averaged over the seeds. Intervals are 95 % bootstrap
intervals over groups of images; differences are paired by image, fold and seed.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from benchmarks.common import images, prepared, show
from benchmarks.tables import TABLES, Cell, Declaration, list_cells, read_declaration
from mtil.data.dataset import manifest as manifests
from mtil.errors import UserError
from mtil.metrics import (
    Results,
    bootstrap,
    summarise_by_class,
    summarise_by_size,
)
from mtil.metrics.bootstrap import Statistics, difference
from mtil.metrics.summary import make_statistics
from mtil.metrics.weighted import Array
from mtil.prediction.evaluation import to_metric_results
from mtil.presets import load_config
from mtil.process.memory import CPU_MALLOC_SETTINGS
from mtil.run.folder import Run
from mtil.run.names import external_predictions_name
from mtil.run.plan import Train
from mtil.run.scores import read_scores
from mtil.storage import open_store

SHOWN = ("dice", "dice_pooled", "miss_rate", "auc", "f1", "ece")
COMPARED = ("dice", "miss_rate", "auc", "f1")


@dataclass(frozen=True)
class Scores:
    """The scores of a run, or of an ensemble."""

    last: Results
    """Of the last pass."""
    first: Results | None = None
    """Of the first pass; None for runs of one pass."""
    objected: frozenset[str] = frozenset()
    """Ids of images to which a published review objects."""

    def without_objections(self) -> Results:
        """Return the rows of the last pass without an objection."""
        return self.last.select(~np.isin(self.last.sample_id, sorted(self.objected)))


@dataclass
class Budget:
    """Used and declared training time."""

    hours: float
    spent_s: list[float] = field(default_factory=list)
    """Seconds of each training."""
    refused: list[str] = field(default_factory=list)
    """Trainings without a start, for want of time."""

    @property
    def used_s(self) -> float:
        """Seconds of all trainings, equal to the last digit for any order of the threads."""
        return math.fsum(self.spent_s)


def train_cells(
    cells: Sequence[Cell], declaration: Declaration, data: str, jobs: int, budget: Budget
) -> None:
    """Train all folds of all runs, `jobs` at a time, as far as the budget goes."""

    def train(task: tuple[Cell, int]) -> None:
        cell, fold = task
        seconds = trained_seconds(cell, fold)
        if seconds is None:
            if budget.used_s >= budget.hours * 3600:
                budget.refused.append(f"{cell.row}, seed {cell.seed}, fold {fold}")
                return
            run_mtil(
                "train", "--local", "--data", data, "--run", cell.uri, "--fold", str(fold),
                *cell.arguments,
            )  # fmt: skip
            seconds = trained_seconds(cell, fold)
            assert seconds is not None
            _log(f"{cell.row}, seed {cell.seed}, fold {fold}: {seconds:.0f} s")
        budget.spent_s.append(seconds)

    # Fold by fold, so that rows can be compared early.
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, [(cell, fold) for fold in declaration.folds for cell in cells]))


def trained_seconds(cell: Cell, fold: int) -> float | None:
    """Return the training time of a fold; None without a model."""
    if not (Path(cell.uri) / "run.json").exists():
        return None
    result = Run.open(cell.uri).result(Train(0, fold))
    return None if result is None else result.seconds


@dataclass(frozen=True)
class OtherData:
    """Another data set, whose images the models score."""

    uri: str
    fingerprint: str


def score_rows(
    cells: Sequence[Cell], declaration: Declaration, other: OtherData | None = None
) -> dict[str, list[Scores]]:
    """Score all trained runs and ensembles: the scores of each seed, by row.

    Args:
        cells: the runs.
        declaration: the table.
        other: a data set to score instead of the table's split, without ensembles.
    """
    scored: dict[str, list[Scores]] = {}
    for cell in cells:
        if _is_trained([cell], declaration):
            scores = (
                _score_split(cell.uri, declaration, [])
                if other is None
                else _score_other(cell.uri, other)
            )
            scored.setdefault(cell.row, []).append(scores)
    for name, rows in declaration.ensembles.items():
        members = [cell for cell in cells if cell.row in rows]
        if other is None and _is_trained(members, declaration):
            first, *others = (cell.uri for cell in members)
            scored[name] = [_score_split(first, declaration, others)]
    return scored


def _is_trained(cells: Sequence[Cell], declaration: Declaration) -> bool:
    """Return whether all folds of runs are trained."""
    return all(
        trained_seconds(cell, fold) is not None for cell in cells for fold in declaration.folds
    )


def _score_split(uri: str, declaration: Declaration, others: Sequence[str]) -> Scores:
    """Return the scores of a run, alone or in an ensemble; score a fold without scores."""
    run = Run.open(uri)
    uris = [Run.open(other).uri for other in others]
    names = [run.predictions_name(0, fold, declaration.split, uris) for fold in declaration.folds]
    if not all(run.store.exists(name) for name in names):
        flags = [word for other in others for word in ("--with", other)]
        run_mtil(
            "evaluate", "--local", "--run", uri, "--split", declaration.split,
            "--fold", ",".join(map(str, declaration.folds)), *flags,
        )  # fmt: skip
    return _to_scores(pa.concat_tables([read_scores(run.store, name) for name in names]))


def _score_other(uri: str, other: OtherData) -> Scores:
    """Return the scores of a run's models together; score without scores of the same models."""
    run = Run.open(uri)
    name = external_predictions_name(0, other.fingerprint)
    results = [run.result(Train(0, fold)) for fold in run.find_trained_folds()[0]]
    models = {result.model_sha256 for result in results if result is not None}
    if not run.store.exists(name) or _models(read_scores(run.store, name)) != models:
        run_mtil("evaluate", "--local", "--run", uri, "--on", other.uri)
    return _to_scores(read_scores(run.store, name))


def _models(scored: pa.Table) -> set[str]:
    """Return the digests of the models that made scores."""
    return set(scored["model_sha256"][0].as_py().split(";"))


def _to_scores(scored: pa.Table) -> Scores:
    last = pa.compute.max(scored["pass"]).as_py()
    first_pass, last_pass = (
        scored.filter(pa.compute.equal(scored["pass"], number)) for number in (0, last)
    )
    objected = last_pass.filter(pa.compute.not_equal(last_pass["objection"], ""))
    return Scores(
        to_metric_results(last_pass),
        to_metric_results(first_pass) if last else None,
        frozenset(objected["sample_id"].to_pylist()),
    )


def run_mtil(*arguments: str) -> None:
    """Run a command of mtil."""
    subprocess.run(
        [sys.executable, "-m", "mtil", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env=os.environ | CPU_MALLOC_SETTINGS,
    )


def average(several: Sequence[Statistics]) -> Statistics:
    """Return the mean of the figures of several tables of the same images, on equal resamples."""

    def statistics(weights: Array) -> dict[str, Array]:
        figures = [one(weights) for one in several]
        return {name: np.mean([one[name] for one in figures], axis=0) for name in figures[0]}

    return statistics


def fill(declaration: Declaration, scored: dict[str, list[Scores]]) -> dict[str, Any]:
    """Return the figures of the rows with results, and their differences to `against`."""
    rows: dict[str, Any] = {}
    for row, several in scored.items():
        tables = [scores.last for scores in several]
        rows[row] = {
            "seeds": len(tables),
            "images": len(tables[0]),
            "figures": _summarise(tables),
            "seed_dice": [float(np.nanmean(table.dice)) for table in tables],
            "by_class": _average_strata([summarise_by_class(table) for table in tables]),
            "by_size": _average_strata([summarise_by_size(table) for table in tables]),
        }
        if several[0].objected:
            clean = [scores.without_objections() for scores in several]
            rows[row]["without_objections"] = {
                "tumours": int(clean[0].tumour.sum()),
                "figures": _summarise(clean),
            }
        first = [scores.first for scores in several if scores.first is not None]
        if len(first) == len(tables):
            rows[row]["last_minus_first_pass"] = _compare(tables, first)
        others = [scores.last for scores in scored.get(declaration.against, [])]
        is_paired = len(others) == len(tables) or row in declaration.ensembles
        if row != declaration.against and others and is_paired:
            rows[row] |= _compare(tables, others)
    return rows


def _average_statistics(tables: Sequence[Results]) -> Statistics:
    return average([make_statistics(table) for table in tables])


def _summarise(tables: Sequence[Results]) -> dict[str, Any]:
    """Return the figures of tables of the same images, averaged, with intervals."""
    figures = bootstrap(tables[0].group, _average_statistics(tables))
    return {name: figures[name].as_json() for name in SHOWN}


def _compare(tables: Sequence[Results], others: Sequence[Results]) -> dict[str, Any]:
    """Return the paired differences of averaged figures, and the share of worse images."""
    gains = bootstrap(
        tables[0].group, difference(_average_statistics(tables), _average_statistics(others))
    )
    return {
        "difference": {name: gains[name].as_json() for name in COMPARED},
        "worse_images": _share_worse(tables, others),
    }


def _average_strata(several: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Return the mean Dice and miss rate over seeds, by stratum with tumours."""
    strata: dict[str, dict[str, float | None]] = {}
    for name, first in several[0].items():
        if "dice" not in first:
            continue
        strata[name] = {"count": first["count"]}
        for figure in ("dice", "miss_rate"):
            values = [one[name][figure] for one in several]
            strata[name][figure] = None if None in values else float(np.mean(values))
    return strata


def _share_worse(tables: Sequence[Results], others: Sequence[Results]) -> float:
    """Return the share of tumour images whose mean Dice is lower by more than 0.01."""
    gain = np.mean([table.dice for table in tables], axis=0) - np.mean(
        [table.dice for table in others], axis=0
    )
    return float(np.mean(gain[tables[0].tumour] < -0.01))


def format_table(declaration: Declaration, rows: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    lines = [
        f"| row | {' | '.join(SHOWN)} | Δ dice | Δ auc | Δ f1 |",
        "|---|" + "---|" * (len(SHOWN) + 3),
    ]
    for row, values in rows.items():
        cells = [_interval(values["figures"][name]) for name in SHOWN]
        gains = values.get("difference")
        cells += [
            "" if gains is None else _interval(gains[name], signed=True)
            for name in ("dice", "auc", "f1")
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(values: dict[str, float | None], *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    value, low, high = (math.nan if values[key] is None else values[key] for key in values)
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def _key_value(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE, but is {text!r}")
    return key, value


def _log(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(
    arguments: Sequence[str] | None = None, show_result: Callable[[dict[str, Any]], None] = show
) -> None:
    """Fill a table and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", help="name of a file in benchmarks/figures, or a path")
    parser.add_argument("--to", type=Path, required=True, help="folder of runs and results")
    parser.add_argument("--data", help="a prepared data set (default: BUSI, else phantoms)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="values", type=_key_value,
        help="configuration of all rows, beside that of the table; {row} is a row's folder",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=("validation", "test"), help="images to score (default: as declared)"
    )
    parser.add_argument("--on", metavar="URI", help="score another prepared data set instead")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time")
    options = parser.parse_args(arguments)
    path = Path(options.table)
    if path.suffix != ".yaml":
        path = TABLES / f"{options.table}.yaml"
    try:
        declaration = read_declaration(path, dict(options.values))
        if options.split is not None:
            declaration = replace(declaration, split=options.split)
        other = None
        if options.on is not None:
            manifest = manifests.load_manifest(open_store(options.on))
            other = OtherData(options.on, manifest.fingerprint)
        data = options.data
        if data is None:
            data = str(options.to / "data")
            if not (options.to / "data" / manifests.FILE_NAME).exists():
                size = load_config(declaration.preset).data.image_size
                prepared(*images(options.to), data, max(size, 256))
        threads = max(1, (os.cpu_count() or 1) // options.jobs)
        cells = list_cells(declaration, options.to, threads)
        budget = Budget(declaration.budget_hours)
        train_cells(cells, declaration, data, options.jobs, budget)
        scored = score_rows(cells, declaration, other)
    except UserError as error:
        sys.exit(f"{error}")
    rows = fill(declaration, scored)
    for row in rows:
        own = [cell for cell in cells if cell.row in declaration.ensembles.get(row, (row,))]
        seconds = [trained_seconds(cell, fold) or 0 for cell in own for fold in declaration.folds]
        rows[row]["training_hours"] = sum(seconds) / 3600
    result = {
        "table": path.stem,
        "purpose": declaration.purpose,
        "split": declaration.split if other is None else "external",
        "on": options.on,
        "folds": list(declaration.folds),
        "against": declaration.against,
        "fingerprint": manifests.load_manifest(open_store(data)).fingerprint,
        "threads_per_training": threads,
        "budget_hours": declaration.budget_hours,
        "used_hours": budget.used_s / 3600,
        "not_trained": budget.refused,
        "rows": rows,
    }
    images_of = declaration.split if other is None else f"external-{other.fingerprint[:12]}"
    file: Path = options.to / f"{path.stem}-{images_of}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(format_table(declaration, rows), file=sys.stderr)
    show_result(result)


if __name__ == "__main__":
    main()
