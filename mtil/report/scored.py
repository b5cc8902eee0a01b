"""Read a run for its report: scores of the test images, histories, data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.shards import HOLDOUT
from mtil.errors import DataError, UserError
from mtil.metrics import Results
from mtil.prediction.evaluation import evaluate_predictions, to_metric_results
from mtil.run.folder import FoldResult, Run
from mtil.run.names import pictures_name
from mtil.run.pictures import read_pictures
from mtil.run.plan import Train
from mtil.run.scores import read_scores
from mtil.run.status import find_started_trainings
from mtil.storage import open_store


@dataclass(frozen=True)
class Training:
    """A training of a run, finished or not."""

    of: Train
    history: tuple[Mapping[str, Any], ...]
    """A record per epoch."""
    result: FoldResult | None


@dataclass(frozen=True, kw_only=True)
class ScoredRun:
    """A run with the scores of its test images."""

    run: Run
    name: str
    """The run's name in the report."""
    manifest: Manifest | None
    """The data set; None if it is gone."""
    trainings: tuple[Training, ...]
    scores: Mapping[int, pa.Table]
    """By round, a row per test image and pass, of the folds with scores. Rounds without are left
    out."""

    @property
    def last_round(self) -> int | None:
        """The last round with scores; None without any."""
        return max(self.scores, default=None)

    @cached_property
    def last_scores(self) -> pa.Table:
        """Scores of the last round with any, all passes.

        Raises:
            DataError: if no test image is scored.
        """
        if self.last_round is None:
            raise DataError(
                f"{self.run.uri} has no scores of test images. Run `mtil evaluate --run "
                f"{self.run.uri}` first."
            )
        return self.scores[self.last_round]

    @property
    def scored_folds(self) -> list[int]:
        """The folds with scores in the last round."""
        return sorted(set(self.last_scores["fold"].to_pylist()) - {HOLDOUT})

    @cached_property
    def figures(self) -> dict[str, Any]:
        """The figures of the last round, as `mtil evaluate --json` prints them."""
        return evaluate_predictions(self.last_scores, run_uri=self.run.uri, folds=self.scored_folds)

    def of_pass(self, number: int, round_index: int | None = None) -> Results:
        """Return the scores of a pass, sorted by sample id; -1 is the last pass."""
        return to_metric_results(self.rows_of_pass(number, round_index))

    def rows_of_pass(self, number: int, round_index: int | None = None) -> pa.Table:
        """Return the rows of a pass, sorted by sample id; -1 is the last pass."""
        table = self.last_scores if round_index is None else self.scores[round_index]
        numbers = sorted(set(table["pass"].to_pylist()))
        is_pass = pa.compute.equal(table["pass"], numbers[number])
        return table.filter(is_pass).sort_by("sample_id")

    @cached_property
    def passes(self) -> list[int]:
        """The passes of the last round."""
        return sorted(set(self.last_scores["pass"].to_pylist()))

    @cached_property
    def pictures(self) -> dict[tuple[str, int], dict[str, bytes]]:
        """Pictures of the last round, by sample id and pass; empty if none were kept."""
        found = {}
        for fold in self.scored_folds:
            assert self.last_round is not None
            name = pictures_name(self.run.predictions_name(self.last_round, fold))
            table = read_pictures(self.run.store, name)
            for row in [] if table is None else table.to_pylist():
                found[row["sample_id"], row["pass"]] = row
        return found


def read_run(uri: str, *, data: str | None = None, name: str | None = None) -> ScoredRun:
    """Read a run and all its scores of test images.

    Args:
        uri: path or URI of the run.
        data: path or URI of the data set, if it has moved since the training.
        name: name in the report; by default the last part of the URI.

    Raises:
        DataError: if the URI has no run, or scores belong to another data set.
    """
    run = Run.open(uri)
    if data is not None:
        run.data_uri = data
    try:
        manifest = run.manifest()
    except UserError:
        if data is not None:
            raise
        manifest = None  # the report says so
    trainings = tuple(
        Training(training, tuple(run.history(training)), run.result(training))
        for training in find_started_trainings(run)
    )
    folds_by_round: dict[int, set[int]] = {}
    for training in trainings:
        folds_by_round.setdefault(training.of.round, set()).add(training.of.fold)
    scores = {}
    for round_index, folds in sorted(folds_by_round.items()):
        names = [run.predictions_name(round_index, fold) for fold in sorted(folds)]
        tables = [read_scores(run.store, name) for name in names if run.store.exists(name)]
        for table in tables:
            _check_fingerprint(run, table)
        if tables:
            scores[round_index] = pa.concat_tables(tables)
    return ScoredRun(
        run=run,
        name=name or run.uri.rstrip("/").rsplit("/", 1)[-1],
        manifest=manifest,
        trainings=trainings,
        scores=scores,
    )


def _check_fingerprint(run: Run, scores: pa.Table) -> None:
    for fingerprint in scores["fingerprint"].unique().to_pylist():
        if fingerprint != run.fingerprint:
            raise DataError(
                f"The scores in {run.uri} must be of the run's data set, but have the fingerprint "
                f"{fingerprint[:12]}… instead of {run.fingerprint[:12]}…. Run `mtil evaluate --run "
                f"{run.uri}` again."
            )


def name_runs(uris: Sequence[str]) -> list[str]:
    """Return the shortest ends of the runs' URIs that differ between all runs.

    Raises:
        DataError: if a run is named twice.
    """
    parts = [open_store(uri).uri.rstrip("/").split("/") for uri in uris]
    if len({tuple(part) for part in parts}) < len(parts):
        raise DataError(f"A report must have each run once, but got {', '.join(uris)}.")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different URIs have different ends")
