"""Learning curves, and the tables of data set, configuration and trainings."""

from collections.abc import Mapping
from typing import Any

from mtil.config import config_to_dict
from mtil.data.inspection import inspect_dataset
from mtil.documents import flatten_keys
from mtil.errors import UserError
from mtil.presets import PRESETS
from mtil.report.charts.training import draw_learning_curves
from mtil.report.elements import Cell, Section, Table
from mtil.report.scored import ScoredRun, Training
from mtil.storage import open_store

_TRAINING_COLUMNS = (
    "round",
    "fold",
    "inner part",
    "epochs",
    "kept epoch",
    "seconds",
    "of these in epochs",
    "workers",
    "hardware",
    "images/s",
    "mtil",
    "model",
)


def make_curves_section(scored: ScoredRun) -> Section | None:
    """Return learning curves by round; None without any epoch."""
    charts = []
    for round_index in sorted({training.of.round for training in scored.trainings}):
        trainings = [one for one in scored.trainings if one.of.round == round_index]
        charts += draw_learning_curves(trainings, f"round-{round_index}-")
    if not charts:
        return None
    return Section(name="training", title="Learning curves", charts=tuple(charts))


def make_provenance_section(scored: ScoredRun) -> Section:
    """Return the tables of data set, configuration and trainings."""
    tables = [_data_table(scored), _config_table(scored)]
    rows: list[tuple[Cell, ...]] = []
    for training in scored.trainings:
        result = training.result
        rows.append(
            (
                training.of.round,
                training.of.fold,
                training.of.part,
                len(training.history),
                None if result is None else result.best_epoch + 1,
                *_seconds(training),
                _last(training, "num_workers"),
                None if result is None else _describe_hardware(result.hardware),
                _last(training, "images_per_second"),
                None if result is None else result.version,
                None if result is None else result.model_sha256[:12],
            )
        )
    tables.append(
        Table(
            name="trainings",
            title="Trainings",
            columns=_TRAINING_COLUMNS,
            rows=tuple(rows),
        )
    )
    return Section(name="provenance", title="What was run", tables=tuple(tables))


def _describe_hardware(hardware: Mapping[str, int]) -> str:
    return "; ".join(f"{number} of {name}" for name, number in sorted(hardware.items()))


def _seconds(training: Training) -> tuple[Cell, Cell]:
    """Return the seconds of a training and of all epochs; start and calibration take the rest."""
    epochs = sum(record.get("seconds", 0.0) for record in training.history)
    total = None if training.result is None else f"{training.result.seconds:.0f}"
    return total, f"{epochs:.0f}"


def _last(training: Training, column: str) -> Cell:
    """Return a column of the last epoch."""
    value = training.history[-1].get(column) if training.history else None
    return f"{value:.1f}" if isinstance(value, float) else value


def find_preset(scored: ScoredRun) -> tuple[str, dict[str, tuple[Any, Any]]]:
    """Return the preset nearest to a run's configuration, and key, preset's and run's value."""
    own = flatten_keys(config_to_dict(scored.run.config))
    differences = {}
    for name, make in PRESETS.items():
        preset = flatten_keys(config_to_dict(make()))
        differences[name] = {
            key: (preset.get(key), value) for key, value in own.items() if preset.get(key) != value
        }
    nearest = min(differences, key=lambda name: len(differences[name]))
    return nearest, differences[nearest]


def _config_table(scored: ScoredRun) -> Table:
    preset, differences = find_preset(scored)
    return Table(
        name="configuration",
        title=f"Configuration: differences from the preset {preset}",
        columns=("key", "preset", "run"),
        rows=tuple((key, str(old), str(new)) for key, (old, new) in differences.items()),
        note="" if differences else "None.",
    )


def _data_table(scored: ScoredRun) -> Table:
    rows: list[tuple[Cell, ...]] = [
        ("run", scored.run.uri),
        ("data set", scored.run.data_uri),
        ("fingerprint", scored.run.fingerprint),
    ]
    manifest = scored.manifest
    if manifest is not None:
        kept = ", ".join(f"{count} {name}" for name, count in manifest.kept.items())
        rows += [
            ("images", f"{kept}, in {manifest.num_groups} groups"),
            ("folds", f"{manifest.num_folds}, {manifest.fold_rule}, seed {manifest.seed}"),
            ("protocol", manifest.protocol),
            ("stored size", f"{manifest.image_size} pixels"),
            ("dropped", len(manifest.dropped)),
            ("leaks of folds of single images", _describe_leakage(scored)),
        ]
        for source in manifest.sources:
            rows.append((f"licence of {source.name}", source.licence or "not stated"))
            rows.append((f"citation of {source.name}", source.citation or "not stated"))
    return Table(name="data", title="Data", columns=("", ""), rows=tuple(rows))


def _describe_leakage(scored: ScoredRun) -> str:
    """Return the share of tumour images that folds of single images would leak."""
    try:
        found = inspect_dataset(open_store(scored.run.data_uri), scored.run.fingerprint)
    except UserError as error:
        return f"unknown: {error}"
    return (
        f"{found.leak.family:.1%} of the tumour images would have a near-copy or an image of their "
        "group in another fold"
    )
