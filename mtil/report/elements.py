"""The parts of a report: sections with paragraphs, tables, charts and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtil.report.gallery.cards import Card

Cell = str | float | int | None
"""A value in a table; None is shown as n/a, a float with three decimals."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a report; also a CSV and a LaTeX file for papers."""

    name: str
    """File name without extension, unique in the report."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    """A sentence below the table."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of a report; also an SVG file for papers."""

    name: str
    """File name without extension, unique in the report."""
    title: str
    description: str
    """The content in words, for readers who cannot see the chart."""
    spec: Mapping[str, Any]
    """A Vega-Lite specification, without title and colours."""
    is_wide: bool = False
    """True for a chart that fills a row."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a strip, with its outlines."""

    name: str
    """The sample id, shown below the image."""
    image: str
    """Data URI of the image; empty without an image."""
    layer: str = ""
    """Data URI of the layer over the image."""
    width: int = 1
    height: int = 1
    """Proportions of the image."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Images of a pair, or a single image, with a caption."""

    caption: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class Strip:
    """A row of frames with a title."""

    title: str
    frames: tuple[Frame, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the report with a heading."""

    name: str
    """Anchor of the section."""
    title: str
    paragraphs: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    strips: tuple[Strip, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a page, before it is laid out."""

    title: str
    summary: str
    """The headline in one sentence."""
    warnings: tuple[str, ...]
    headline: Chart | None
    sections: tuple[Section, ...]
    footer: str = ""
    cards: Sequence["Card"] = ()
    """Cards of the gallery."""
    layers: tuple[tuple[str, str], ...] = ()
    """Key and name of the layers of the gallery, the first shown first."""

    @property
    def first_layer(self) -> str:
        """The layer that the gallery shows first."""
        return self.layers[0][0]

    @property
    def labels(self) -> list[str]:
        """The classes in the gallery."""
        return sorted({card.label for card in self.cards})

    @property
    def sources(self) -> list[str]:
        """The collections in the gallery."""
        return sorted({card.source for card in self.cards})

    @property
    def has_spread(self) -> bool:
        """Whether an image of the gallery has an uncertainty."""
        return any(card.spread is not None for card in self.cards)

    def tables(self) -> list[Table]:
        """Return all tables, in order."""
        return [table for section in self.sections for table in section.tables]

    def charts(self) -> list[Chart]:
        """Return all charts, in order."""
        headline = [] if self.headline is None else [self.headline]
        return headline + [chart for section in self.sections for chart in section.charts]


def format_cell(value: Cell) -> str:
    """Return a value as text."""
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def format_interval(interval: Mapping[str, float | None], *, signed: bool = False) -> str:
    """Return a figure with its 95 % interval, such as `0.751 [0.722, 0.781]`."""
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None:
        return "n/a"
    sign = "+" if signed else ""
    if low is None or high is None:
        return f"{value:{sign}.3f}"
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
