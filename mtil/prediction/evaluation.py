"""Compute evaluation metrics from predictions of test images. Imports neither Ray nor PyTorch."""

import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import Role, count_rows, select_rows
from mtil.errors import DataError
from mtil.metrics import (
    Label,
    MapResults,
    Results,
    budget_errors,
    summarise,
    summarise_by_class,
    summarise_by_size,
)
from mtil.metrics.uncertainty import summarise_risk
from mtil.run.folder import Run
from mtil.run.names import pictures_name
from mtil.run.pictures import PICTURES_SCHEMA
from mtil.run.scores import PREDICTIONS_SCHEMA


def to_metric_results(predictions: pa.Table) -> Results:
    """Convert the predictions of one pass to metric inputs, sorted by sample id."""
    columns = {field.name: predictions.column(field.name).to_numpy() for field in fields(Results)}
    columns["sample_id"] = np.array(predictions.column("sample_id").to_pylist())
    columns["group"] = np.array(predictions.column("group").to_pylist())
    return Results(**columns).sorted()


def _to_map_results(predictions: pa.Table) -> MapResults:
    """Convert the scores of probability maps of one pass, sorted by sample id."""
    rows = predictions.sort_by("sample_id")
    return MapResults(
        **{field.name: rows.column(field.name).to_numpy() for field in fields(MapResults)}
    )


def evaluate_predictions(
    predictions: pa.Table, *, run_uri: str, folds: Sequence[int]
) -> dict[str, Any]:
    """Return the metrics of a run's pooled test predictions.

    Args:
        predictions: predictions of all passes, with the columns of
            `mtil.run.scores.PREDICTIONS_SCHEMA`.
        run_uri: where the run is stored.
        folds: the predicted folds.

    Returns:
        metrics of the last pass, also by class, size, collection and objection; the uncertainty of
        several models; the error budget of the last pass; and metrics of every pass.
    """
    by_pass = []
    for pass_index, rows in _split_passes(predictions):
        results = to_metric_results(rows)
        by_pass.append({"pass": pass_index, "metrics": summarise(results)})
    return {
        "run": run_uri,
        "folds": list(folds),
        "num_images": len(results.sample_id),
        "metrics": by_pass[-1]["metrics"],
        "by_class": summarise_by_class(results),
        "by_size": summarise_by_size(results),
        "by_source": summarise_by_source(rows),
        "by_objection": summarise_by_objection(rows),
        "millimetres": summarise_millimetres(rows),
        "uncertainty": summarise_uncertainty(rows),
        "errors": budget_errors(results, _to_map_results(rows)),
        "by_pass": by_pass,
    }


def _split_passes(predictions: pa.Table) -> list[tuple[int, pa.Table]]:
    """Return (index, rows) of every pass, in order."""
    indices = sorted(predictions.column("pass").unique().to_pylist())
    return [
        (index, predictions.filter(pa.compute.equal(predictions["pass"], index)))
        for index in indices
    ]


def summarise_by_source(predictions: pa.Table) -> dict[str, dict[str, Any]]:
    """Return metrics by collection; empty for a data set of a single collection."""
    sources = sorted(set(predictions.column("source").to_pylist()))
    if len(sources) < 2:
        return {}
    return {source: _summarise_part(predictions, "source", source) for source in sources}


def summarise_by_objection(predictions: pa.Table) -> dict[str, dict[str, Any]]:
    """Return metrics of the images without an objection, and of the images with each objection.

    The key of images without an objection is `none`. Empty if no image has an objection.
    """
    objections = sorted(set(predictions["objection"].to_pylist()) - {""})
    if not objections:
        return {}
    return {
        objection or "none": _summarise_part(predictions, "objection", objection)
        for objection in ("", *objections)
    }


def _summarise_part(predictions: pa.Table, column: str, value: str) -> dict[str, Any]:
    """Return number of images and metrics of the rows with a value in a column."""
    results = to_metric_results(predictions.filter(pa.compute.equal(predictions[column], value)))
    return {
        "num_images": len(results),
        "num_tumours": int(results.tumour.sum()),
        "metrics": summarise(results),
    }


def fill_sources(predictions: pa.Table, manifest: Manifest) -> pa.Table:
    """Fill the empty `source` of rows with the name of the first collection.

    In a data set of a single collection, later appended to, the ids of the first collection have no
    prefix, and the `source` of its rows is empty.
    """
    column = predictions["source"]
    first = manifest.name_source("")
    named = pa.compute.if_else(pa.compute.equal(column, ""), first, column)
    return predictions.set_column(predictions.schema.get_field_index("source"), "source", named)


def summarise_millimetres(predictions: pa.Table) -> dict[str, float | None]:
    """Return the mean outline distances over tumour images with known pixel size."""
    known = predictions.filter(pa.compute.is_finite(predictions["hd95_mm"]))
    return {
        "count": known.num_rows,
        "hd95": pa.compute.mean(known["hd95_mm"]).as_py(),
        "assd": pa.compute.mean(known["assd_mm"]).as_py(),
    }


def summarise_uncertainty(predictions: pa.Table) -> dict[str, dict[str, float]]:
    """Return whether the spread of several models finds the tumour images with errors.

    `masks` compares 1 minus Dice with the spread of the masks, `classes` wrong calls with the
    spread of the probabilities; see `summarise_risk`. Empty for a single model.
    """
    results = to_metric_results(predictions)
    spreads = [
        predictions.sort_by("sample_id")[name].to_numpy()[results.tumour]
        for name in ("mask_spread", "probability_spread")
    ]
    tumours = results.select(results.tumour)
    if not len(tumours) or not np.isfinite(spreads).all():
        return {}
    wrong = (tumours.predicted != (tumours.label == Label.MALIGNANT)).astype(np.float64)
    return {
        "masks": summarise_risk(1 - tumours.dice, spreads[0]),
        "classes": summarise_risk(wrong, spreads[1]),
    }


def store_predictions(
    run: Run,
    manifest: Manifest,
    tables: Sequence[pa.Table],
    number: int,
    folds: Sequence[int],
    role: Role = "test",
    others: Sequence[str] = (),
) -> pa.Table:
    """Check a round's scored rows, write each fold's tables to the run and return all scores.

    The pictures of a fold get a table of their own, beside that of the scores.

    Args:
        run: where the tables go.
        manifest: the run's version of the data set.
        tables: scored rows of the folds, in any order.
        number: the round whose models scored them.
        folds: which folds.
        role: the role of the rows in the folds.
        others: URIs of the further runs of an ensemble.

    Returns:
        the rows, ordered by fold, id and pass.

    Raises:
        DataError: if an image was not scored exactly once in each pass.
    """
    predictions = fill_sources(pa.concat_tables(tables), manifest).sort_by(
        [("fold", "ascending"), ("sample_id", "ascending"), ("pass", "ascending")]
    )
    for fold in folds:
        of_fold = predictions.filter(pa.compute.equal(predictions["fold"], fold))
        check_predictions_complete(
            of_fold, count_rows(manifest, select_rows(manifest, fold, role)), fold
        )
        name = run.predictions_name(number, fold, role, others)
        drawn = of_fold.filter(pa.compute.is_valid(of_fold["mask_png"]))
        _write_table(run, pictures_name(name), drawn.select(PICTURES_SCHEMA.names))
        _write_table(run, name, of_fold.select(PREDICTIONS_SCHEMA.names))
    return predictions.select(PREDICTIONS_SCHEMA.names)


def _write_table(run: Run, name: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    run.store.write(name, sink.getvalue())


def check_predictions_complete(predictions: pa.Table, expected: int, fold: int) -> None:
    """Check that every pass has all images of a fold in a role exactly once.

    Raises:
        DataError: if a pass misses or repeats images.
    """
    # Without any rows there is no pass either, and the check must still fail.
    for pass_index, rows in _split_passes(predictions) or [(0, predictions)]:
        ids = rows.column("sample_id").to_pylist()
        if len(ids) != expected or len(set(ids)) != expected:
            raise DataError(
                f"Predictions of fold {fold} are incomplete: pass {pass_index} has {len(ids)} rows "
                f"of {len(set(ids))} images, but must have each of the {expected} images once."
            )
