"""The two tasks: classification and outlines."""

import numpy as np

from mtil.metrics import Results
from mtil.report.charts.classification import draw_curves, draw_decision_curve, draw_reliability
from mtil.report.charts.outlines import Link, draw_dice_by_size, draw_distribution
from mtil.report.elements import Cell, Section, Table
from mtil.report.scored import ScoredRun


def make_classification_section(scored: ScoredRun) -> Section | None:
    """Return curves and confusion matrices; None without tumours of both classes."""
    rows = scored.rows_of_pass(-1)
    results = scored.of_pass(-1)
    tumours = results.select(results.tumour)
    if len(np.unique(tumours.label)) < 2:
        return None
    logits = rows["logit"].to_numpy()[results.tumour]
    tables = [
        _confusion("confusion", "At the model's threshold", tumours, tumours.predicted),
        _confusion(
            "confusion-90",
            "At a specificity of 0.9",
            tumours,
            tumours.probability > _threshold_at_specificity(tumours, 0.9),
            note="The threshold is chosen on these images, so this table is optimistic.",
        ),
    ]
    if np.isfinite(results.presence).all() and not results.tumour.all():
        tables.append(_three_classes(results))
    return Section(
        name="classification",
        title="Benign or malignant",
        tables=tuple(tables),
        charts=(
            *draw_curves(tumours),
            draw_reliability(tumours, logits),
            draw_decision_curve(tumours),
        ),
    )


def make_outlines_section(scored: ScoredRun, link: Link) -> Section | None:
    """Return distributions and the error budget; None without tumour images."""
    results = scored.of_pass(-1)
    tumours = results.select(results.tumour)
    if not len(tumours):
        return None
    errors = scored.figures["errors"]
    bands = Table(
        name="error-budget",
        title="Where Dice is lost",
        columns=("Dice from", "to", "images", "share of the loss"),
        rows=tuple(
            (f"{band['from']:g}", f"{band['to']:g}", band["images"], band["share_of_loss"])
            for band in errors["bands"]
        ),
    )
    decisions = Table(
        name="decisions",
        title="Dice under other decisions",
        columns=("decision", "Dice", "gain", "95 % low", "95 % high"),
        rows=tuple(
            (
                name.replace("_", " "),
                decision["dice"],
                *(decision["gain"][key] for key in ("value", "low", "high")),
            )
            for name, decision in errors["decisions"].items()
        ),
        note="The best threshold of each image is a ceiling: it needs the reference.",
    )
    return Section(
        name="outlines",
        title="Outlines",
        tables=(bands, decisions),
        charts=(
            draw_dice_by_size(tumours, link),
            draw_distribution(
                tumours, tumours.dice, name="dice", title="Distribution of Dice", axis="Dice"
            ),
            draw_distribution(
                tumours,
                tumours.hd95,
                name="hd95",
                title="Distribution of HD95",
                axis="HD95 in pixels",
            ),
        ),
    )


def _confusion(
    name: str, title: str, tumours: Results, called: np.ndarray, note: str = ""
) -> Table:
    malignant = tumours.label == 1
    rows: list[tuple[Cell, ...]] = [
        (label, int((is_class & ~called).sum()), int((is_class & called).sum()))
        for label, is_class in (("benign", ~malignant), ("malignant", malignant))
    ]
    return Table(
        name=name,
        title=title,
        columns=("reference", "called benign", "called malignant"),
        rows=tuple(rows),
        note=note,
    )


def _three_classes(results: Results) -> Table:
    names = ("benign", "malignant", "normal")
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            *(
                int(((results.label == label) & (results.called == other)).sum())
                for other in range(3)
            ),
        )
        for label, name in enumerate(names)
    ]
    return Table(
        name="three-classes",
        title="Three classes",
        columns=("reference", *(f"called {name}" for name in names)),
        rows=tuple(rows),
    )


def _threshold_at_specificity(tumours: Results, specificity: float) -> float:
    benign = np.sort(tumours.probability[tumours.label == 0])
    return float(benign[int(np.ceil(specificity * len(benign))) - 1])
