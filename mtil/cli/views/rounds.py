"""Metrics of a circle's rounds, as text and JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from mtil.circle.state import CircleState
from mtil.cli.console import CommandOutput
from mtil.config import NonNegativeInt
from mtil.documents import Document
from mtil.errors import LedgerError
from mtil.run.folder import Run
from mtil.run.plan import Summarise

PRINTED_METRICS = ("dice", "f1", "auc")
"""Names of the printed metrics."""


@validated(frozen=True)
class _Figure:
    value: float | None
    low: float | None
    high: float | None


@validated(frozen=True)
class _Figures:
    dice: _Figure
    f1: _Figure
    auc: _Figure


@validated(frozen=True)
class _Pass:
    number: Annotated[NonNegativeInt, Field(alias="pass")]
    metrics: _Figures


@validated(frozen=True)
class _Summary:
    """Fields of a round's summary in the ledger that this module prints."""

    folds: list[NonNegativeInt]
    by_pass: Annotated[list[_Pass], Field(min_length=1)]


_SUMMARIES: TypeAdapter[_Summary] = TypeAdapter(_Summary)


@dataclass(frozen=True)
class RoundsSummary:
    """Metrics of a circle's summarised rounds."""

    rounds: list[dict[str, Any]]
    """JSON values by round: folds, metrics of the last pass, metrics by pass."""
    table: tuple[Sequence[str], list[list[str]]]
    """Head and lines: metrics by round and pass, in at most 80 columns."""
    failed: dict[str, str]
    """Cause of failure by fold."""


def summarise_rounds(record: Run, state: CircleState) -> RoundsSummary:
    """Return the metrics of all summarised rounds.

    Raises:
        LedgerError: if a summary in the ledger lacks a field or has a wrong value.
    """
    rounds: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    for round_index in range(state.plan.circle.num_rounds):
        result: Any = state.done.get(Summarise(round_index))
        if result is None:
            continue
        document = Document(
            f"The ledger's summary of round {round_index} of {record.uri}",
            "restore the ledger, or choose another --run",
            LedgerError,
        )
        # Another version of mtil may have written the summary.
        document.validate(_SUMMARIES, result)
        by_pass = result["by_pass"]
        metrics = by_pass[-1]["metrics"]
        rounds.append(
            {"round": round_index, "folds": result["folds"], "metrics": metrics, "by_pass": by_pass}
        )
        for entry in by_pass:
            cells = (_format_interval(entry["metrics"][name]) for name in PRINTED_METRICS)
            lines.append([str(round_index), str(entry["pass"]), str(len(result["folds"])), *cells])
    failed = {str(fold): cause for fold, cause in sorted(state.failed_folds.items())}
    head = ["round", "pass", "folds", *(f"{name}, 95 %" for name in PRINTED_METRICS)]
    return RoundsSummary(rounds, (head, lines), failed)


def print_rounds(summary: RoundsSummary, output: CommandOutput) -> None:
    """Print the metrics by round and pass. Print nothing before the first round's summary."""
    if summary.rounds:
        output.line("Test images by round and pass; each pass reads the map of the previous pass:")
        output.table(*summary.table)


def _format_interval(metric: dict[str, float | None]) -> str:
    """Return `0.812 0.780-0.840`, a value with its 95 % interval; `n/a` without a value."""
    value, low, high = (metric[key] for key in ("value", "low", "high"))
    if value is None:
        return "n/a"
    bounds = "" if low is None or high is None else f" {low:.3f}-{high:.3f}"
    return f"{value:.3f}{bounds}"
