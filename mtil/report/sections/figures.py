"""The headline, the warnings and the full table of figures."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute

from mtil.data.audit import findings
from mtil.data.dataset.manifest import Manifest
from mtil.errors import UserError
from mtil.metrics import summarise
from mtil.prediction.evaluation import to_metric_results
from mtil.report.charts.intervals import draw_intervals
from mtil.report.elements import Cell, Chart, Section, Table, format_interval
from mtil.report.scored import ScoredRun
from mtil.report.sections.references import PUBLISHED, lists_collection
from mtil.storage import open_store

_HEADLINE = (
    ("dice", "Dice"),
    ("f1", "F1, malignant"),
    ("auc", "AUC, malignant"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("presence_auc", "AUC, lesion or none"),
)
_FEW_MALIGNANT = 50
"""Malignant test images below which intervals are wide."""
_POOR_CALIBRATION = 0.1
_BY = ("dice", "miss_rate", "auc", "f1")


def describe_headline(scored: ScoredRun) -> str:
    """Return the figures of a run in one sentence."""
    figures = scored.figures["metrics"]
    folds = ", ".join(map(str, scored.scored_folds))
    return (
        f"On {scored.figures['num_images']} test images of "
        f"{'fold' if len(scored.scored_folds) == 1 else 'folds'} {folds}: Dice "
        f"{format_interval(figures['dice'])}, missed lesions {_percent(figures['miss_rate'])}, F1 "
        f"{format_interval(figures['f1'])}, AUC {format_interval(figures['auc'])}."
    )


def draw_headline(scored: ScoredRun) -> Chart:
    """Return the chart of the first screen."""
    figures = scored.figures["metrics"]
    values = [
        (label, figures[name]) for name, label in _HEADLINE if figures[name]["value"] is not None
    ]
    return draw_intervals(
        "headline",
        "Figures with 95 % intervals",
        "; ".join(f"{label} {format_interval(interval)}" for label, interval in values),
        values,
        axis="value",
        domain=(0.0, 1.0),
    )


def list_warnings(scored: ScoredRun) -> list[str]:
    """Return sentences about what could mislead a reader."""
    warnings = []
    manifest = scored.manifest
    folds = scored.scored_folds
    if manifest is None:
        warnings.append(
            f"The data set {scored.run.data_uri} could not be read: audit, licence and pictures "
            "are missing. Name its place with --data."
        )
    else:
        missing = sorted(set(range(manifest.num_folds)) - set(folds))
        if missing:
            warnings.append(
                f"Only {len(folds)} of {manifest.num_folds} folds have scores; missing: "
                f"{', '.join(map(str, missing))}. Figures of single folds differ by several points."
            )
        if manifest.protocol == "paper":
            warnings.append(
                "The folds leak: images were assigned one by one, as in most papers, so near-copies"
                " of test images were trained on."
            )
    results = scored.of_pass(-1)
    malignant = int((results.label == 1).sum())
    if malignant < _FEW_MALIGNANT:
        warnings.append(
            f"Only {malignant} test images are malignant. Read the intervals, not the values."
        )
    ece = scored.figures["metrics"]["ece"]["value"]
    if ece is not None and ece > _POOR_CALIBRATION:
        warnings.append(
            f"The calibration is poor (ECE {ece:.3f}): probabilities cannot be taken literally."
        )
    unfinished = [training for training in scored.trainings if training.result is None]
    if unfinished:
        warnings.append(
            f"{len(unfinished)} of {len(scored.trainings)} trainings have not ended; their epochs "
            "so far are shown."
        )
    return warnings


def make_figures_section(scored: ScoredRun) -> Section:
    """Return the section of all figures: overall, by class, size, source, objection and marks."""
    figures = scored.figures
    tables = [
        Table(
            name="figures",
            title="All figures",
            columns=("figure", "value", "95 % low", "95 % high"),
            rows=tuple(
                (name, interval["value"], interval["low"], interval["high"])
                for name, interval in figures["metrics"].items()
            ),
            note="Dice to miss rate on tumour images, the false-positive area on normal images. "
            "Intervals by bootstrap over groups.",
        ),
        _table_by_class(figures["by_class"]),
        Table(
            name="by-size",
            title="By lesion size",
            columns=("tercile", "images", "pixels from", "to", "dice", "miss_rate", "hd95"),
            rows=tuple(
                (
                    name,
                    part["count"],
                    part["smallest"],
                    part["largest"],
                    part["dice"],
                    part["miss_rate"],
                    part["hd95"],
                )
                for name, part in figures["by_size"].items()
            ),
        ),
    ]
    for key, title in (("by_source", "By collection"), ("by_objection", "By objection")):
        if figures[key]:
            tables.append(_table_by(key.replace("_", "-"), title, figures[key]))
    marks = summarise_by_marks(scored)
    if marks:
        tables.append(_table_by("by-marks", "By marks on the image", marks))
    if figures["millimetres"]["count"]:
        millimetres = figures["millimetres"]
        tables.append(
            Table(
                name="millimetres",
                title="Outline distances in millimetres",
                columns=("images with known pixel size", "hd95", "assd"),
                rows=((millimetres["count"], millimetres["hd95"], millimetres["assd"]),),
            )
        )
    if scored.manifest is not None and lists_collection(
        [source.name for source in scored.manifest.sources]
    ):
        tables.append(PUBLISHED)
    return Section(name="figures", title="Figures", tables=tuple(tables))


def summarise_by_marks(scored: ScoredRun) -> dict[str, dict[str, Any]]:
    """Return metrics of the images with and without burnt-in text and calipers.

    Empty without the audit of the data set.
    """
    if scored.manifest is None:
        return {}
    try:
        images = _read_marks(scored.run.data_uri, scored.manifest)
    except UserError:
        return {}
    rows = scored.rows_of_pass(-1)
    parts = {}
    for mark, text in (("calipers", "calipers"), ("text", "burnt-in text")):
        marked = images.filter(images[mark])["sample_id"]
        flags = pa.compute.is_in(rows["sample_id"], marked)
        for name, chosen in (
            (f"with {text}", flags),
            (f"without {text}", pa.compute.invert(flags)),
        ):
            results = to_metric_results(rows.filter(chosen))
            if len(results):
                parts[name] = {
                    "num_images": len(results),
                    "num_tumours": int(results.tumour.sum()),
                    "metrics": summarise(results),
                }
    return parts


def _read_marks(data_uri: str, manifest: Manifest) -> pa.Table:
    return findings.read_audit_table(open_store(data_uri), manifest, findings.IMAGES_FILE)


def _table_by_class(by_class: Mapping[str, Mapping[str, Any]]) -> Table:
    names = ("dice", "dice_median", "dice_sd", "iou", "hd95", "assd", "miss_rate")
    rows: list[tuple[Cell, ...]] = [
        (label, by_class[label]["count"], *(by_class[label][name] for name in names))
        for label in ("benign", "malignant")
    ]
    normal, note = by_class["normal"], ""
    if normal["count"]:
        note = (
            f"{normal['count']} normal images; {_percent({'value': normal['empty_share']})} of "
            "them have no predicted pixel."
        )
    return Table(
        name="by-class",
        title="By class",
        columns=("class", "images", *names),
        rows=tuple(rows),
        note=note,
    )


def _table_by(name: str, title: str, parts: Mapping[str, Mapping[str, Any]]) -> Table:
    return Table(
        name=name,
        title=title,
        columns=(title.removeprefix("By ").lower(), "images", "tumours", *_BY),
        rows=tuple(
            (
                part_name,
                part["num_images"],
                part["num_tumours"],
                *(format_interval(part["metrics"][column]) for column in _BY),
            )
            for part_name, part in parts.items()
        ),
    )


def _percent(interval: Mapping[str, float | None]) -> str:
    value = interval["value"]
    return "n/a" if value is None else f"{100 * value:.1f} %"
