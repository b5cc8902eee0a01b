"""A circle run's rounds, for a person and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from mtil.circle.state import State
from mtil.cli.console import Output
from mtil.config import Whole
from mtil.documents import Document
from mtil.errors import LedgerError
from mtil.run.folder import Run
from mtil.run.plan import Summarise

SHOWN = ("dice", "f1", "auc")
"""The figures that a person is told."""


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
    number: Annotated[Whole, Field(alias="pass")]
    metrics: _Figures


@validated(frozen=True)
class _Summary:
    """What the ledger must say of a round for a person to be told."""

    folds: list[Whole]
    by_pass: Annotated[list[_Pass], Field(min_length=1)]


_SUMMARIES: TypeAdapter[_Summary] = TypeAdapter(_Summary)


@dataclass(frozen=True)
class Told:
    """What there is to say of a run's rounds."""

    rounds: list[dict[str, Any]]
    table: tuple[Sequence[str], list[list[str]]]
    """Head and lines: the figures by round and pass, in at most 80 columns."""
    failed: dict[str, str]
    """Cause by fold."""


def describe(record: Run, state: State) -> Told:
    """Return the figures of every round that has been summarised."""
    rounds: list[dict[str, Any]] = []
    lines: list[list[str]] = []
    for number in range(state.plan.circle.num_rounds):
        result: Any = state.done.get(Summarise(number))
        if result is None:
            continue
        document = Document(
            f"The ledger's summary of round {number} of {record.uri}",
            "restore the ledger, or name another --run",
            LedgerError,
        )
        document.validate(_SUMMARIES, result)
        by_pass = result["by_pass"]
        metrics = by_pass[-1]["metrics"]
        rounds.append(
            {"round": number, "folds": result["folds"], "metrics": metrics, "by_pass": by_pass}
        )
        for one in by_pass:
            figures = (_interval(one["metrics"][name]) for name in SHOWN)
            lines.append([str(number), str(one["pass"]), str(len(result["folds"])), *figures])
    failed = {str(fold): cause for fold, cause in sorted(state.failed_folds.items())}
    head = ["round", "pass", "folds", *(f"{name}, 95 %" for name in SHOWN)]
    return Told(rounds, (head, lines), failed)


def tell(told: Told, output: Output) -> None:
    """Print the figures of every round and pass; nothing before the first round's summary."""
    if told.rounds:
        output.line("Test images by round and pass; a pass is given the map of the pass before:")
        output.table(*told.table)


def _interval(figure: dict[str, float | None]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if value is None:
        return "n/a"
    bounds = "" if low is None or high is None else f" {low:.3f}-{high:.3f}"
    return f"{value:.3f}{bounds}"
