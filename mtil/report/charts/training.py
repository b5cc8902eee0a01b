"""Learning curves."""

from collections.abc import Sequence
from typing import Any

from mtil.report.elements import Chart
from mtil.report.scored import Training

_PANELS: Sequence[tuple[str, str, tuple[tuple[str, str], ...]]] = (
    (
        "losses",
        "Loss terms",
        (
            ("loss_segmentation", "segmentation"),
            ("loss_classification", "classification"),
            ("loss_presence", "presence"),
            ("loss_teacher", "teacher"),
        ),
    ),
    (
        "validation",
        "Inner validation",
        (
            ("validation_dice", "Dice"),
            ("validation_auc", "AUC"),
            ("validation_f1", "F1"),
            ("validation_presence_auc", "AUC of presence"),
        ),
    ),
    (
        "learning-rates",
        "Learning rates",
        (("learning_rate_encoder", "encoder"), ("learning_rate_rest", "other weights")),
    ),
    ("speed", "Images per second", (("images_per_second", "images per second"),)),
    ("waiting", "Share of time waiting for data", (("data_wait_share", "waiting"),)),
)
"""Name, title, and the columns of the history with their names."""


def draw_learning_curves(trainings: Sequence[Training], prefix: str) -> list[Chart]:
    """Return curves by epoch, a line per training and column.

    Args:
        trainings: the trainings of a round.
        prefix: beginning of the names of the charts.
    """
    charts = []
    for name, title, columns in _PANELS:
        rows: list[dict[str, Any]] = [
            {
                "epoch": record["epoch"] + 1,
                "value": record[column],
                "kind": label,
                "training": _name(training),
            }
            for training in trainings
            for record in training.history
            for column, label in columns
            if isinstance(record.get(column), int | float)
        ]
        if not rows:
            continue
        legend = {} if len({row["kind"] for row in rows}) > 1 else {"legend": None}
        spec = {
            "data": {"values": rows},
            "width": 300,
            "height": 180,
            "mark": {"type": "line", "strokeWidth": 1.2, "opacity": 0.8},
            "encoding": {
                "x": {"field": "epoch", "type": "quantitative", "title": "epoch",
                      "axis": {"tickMinStep": 1}},
                "y": {"field": "value", "type": "quantitative", "title": None},
                "color": {"field": "kind", "type": "nominal", "title": None,
                          "sort": [label for _, label in columns], **legend},
                "detail": {"field": "training"},
            },
        }  # fmt: skip
        description = f"{title} by epoch, a line for each of {len(trainings)} trainings."
        charts.append(
            Chart(name=f"{prefix}{name}", title=title, description=description, spec=spec)
        )
    return charts


def _name(training: Training) -> str:
    part = "" if training.of.part is None else f", part {training.of.part}"
    return f"fold {training.of.fold}{part}"
