"""Declared tables of `benchmarks.figures`: rows, folds, seeds, and the runs that fill them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from mtil.config import STRICT, Config, apply_overrides
from mtil.documents import Document
from mtil.presets import load_config

TABLES = Path(__file__).parent / "figures"


@validated(frozen=True, kw_only=True, config=STRICT)
class Declaration:
    """A table to fill."""

    purpose: str
    """The question behind the table."""
    preset: str
    """The configuration from which rows differ."""
    rows: dict[str, dict[str, Any]]
    """Configuration keys and values of each row, by name of the row."""
    against: str
    """The row with which all rows are compared."""
    folds: tuple[int, ...]
    seeds: tuple[Annotated[int, Field(ge=0)], ...]
    split: Literal["validation", "test"]
    """Choices are made on `validation`; `test` is for the one look at the end."""
    common: dict[str, Any] = field(default_factory=dict)
    """Configuration keys and values of all rows; a row may override them."""
    ensembles: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Further rows: ensembles of all seeds of the named rows."""
    budget_hours: Annotated[float, Field(gt=0)]
    """Hours of all trainings together, also of trainings side by side."""


_DECLARATION: TypeAdapter[Declaration] = TypeAdapter(Declaration)


@dataclass(frozen=True)
class Cell:
    """The run of a row with one seed."""

    row: str
    seed: int
    uri: str
    """The run's folder."""
    arguments: tuple[str, ...]
    """Arguments of `mtil train` for the configuration."""


def read_declaration(path: Path, values: Mapping[str, str] | None = None) -> Declaration:
    """Read and check a table file.

    Args:
        path: the file.
        values: further configuration keys and values of all rows.
    """
    document = Document(str(path), "correct the table")
    declaration = document.validate(_DECLARATION, document.yaml(path.read_bytes()))
    declaration = replace(declaration, common=declaration.common | dict(values or {}))
    if declaration.against not in declaration.rows:
        document.refuse(f"`against` must name a row, but is {declaration.against!r}")
    for row in declaration.rows:
        row_config(declaration, row)
    for name, rows in declaration.ensembles.items():
        unknown = [row for row in rows if row not in declaration.rows]
        if unknown or name in declaration.rows or not rows:
            document.refuse(f"the ensemble {name!r} must have a name of its own and name rows")
    return declaration


def row_config(declaration: Declaration, row: str) -> Config:
    """Return the configuration of a row, without its seed."""
    return apply_overrides(
        load_config(declaration.preset),
        {key: _text(value) for key, value in _row_values(declaration, row).items()},
    )


def _row_values(declaration: Declaration, row: str) -> dict[str, Any]:
    return declaration.common | declaration.rows[row]


def list_cells(declaration: Declaration, folder: Path, threads: int) -> list[Cell]:
    """Return the runs of a table, all rows of a seed before the next seed."""
    cells = []
    for seed in declaration.seeds:
        for row in declaration.rows:
            values = _row_values(declaration, row)
            flags = {**values, "seed": seed, "train.cpus_per_worker": threads}
            arguments = ["--config", declaration.preset]
            name = re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
            for key, value in flags.items():
                arguments += [f"--{key}", _text(value).replace("{row}", name)]
            cells.append(Cell(row, seed, str(folder / name / f"seed-{seed}"), tuple(arguments)))
    return cells


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
