"""Scores per image to figures. No Ray, no torch."""

import io
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from mtil.data.dataset.manifest import Manifest
from mtil.data.dataset.selection import select, total
from mtil.errors import DataError
from mtil.metrics import Results, by_class, by_size, summarise
from mtil.run.folder import Run


def to_results(predictions: pa.Table) -> Results:
    """Turn predictions of one pass into the columns that the metrics take, ordered by id."""
    columns = {field.name: predictions.column(field.name).to_numpy() for field in fields(Results)}
    columns["sample_id"] = np.array(predictions.column("sample_id").to_pylist())
    columns["group"] = np.array(predictions.column("group").to_pylist())
    return Results(**columns).sorted()


def evaluate(predictions: pa.Table, *, run_uri: str, folds: Sequence[int]) -> dict[str, Any]:
    """Return the figures of a run's pooled test predictions."""
    by_pass = []
    for number, of_pass in _passes(predictions):
        results = to_results(of_pass)
        by_pass.append({"pass": number, "metrics": summarise(results)})
    return {
        "run": run_uri,
        "folds": list(folds),
        "num_images": len(results.sample_id),
        "metrics": by_pass[-1]["metrics"],
        "by_class": by_class(results),
        "by_size": by_size(results),
        "by_source": by_source(of_pass),
        "millimetres": in_millimetres(of_pass),
        "by_pass": by_pass,
    }


def _passes(predictions: pa.Table) -> list[tuple[int, pa.Table]]:
    """Return the number and the rows of each pass, the last one last."""
    numbers = sorted(predictions.column("pass").unique().to_pylist())
    return [
        (number, predictions.filter(pa.compute.equal(predictions["pass"], number)))
        for number in numbers
    ]


def by_source(predictions: pa.Table) -> dict[str, dict[str, Any]]:
    """Return the figures of each collection of a data set that was made from several."""
    sources = sorted(set(predictions.column("source").to_pylist()))
    if len(sources) < 2:
        return {}
    parts = {
        source: to_results(predictions.filter(pa.compute.equal(predictions["source"], source)))
        for source in sources
    }
    return {
        source: {"num_images": len(part), "metrics": summarise(part)}
        for source, part in parts.items()
    }


def with_named_sources(predictions: pa.Table, manifest: Manifest) -> pa.Table:
    """Return predictions in which each row's `source` is not empty.

    In a data set of one collection, and of what was appended to it later, the rows of the first
    collection have an empty source, as their ids begin with none. They get the collection's name.
    """
    first = [source.name for source in manifest.sources if not source.prefix]
    if not first:
        return predictions
    column = predictions["source"]
    named = pa.compute.if_else(pa.compute.equal(column, ""), first[0], column)
    return predictions.set_column(predictions.schema.get_field_index("source"), "source", named)


def in_millimetres(predictions: pa.Table) -> dict[str, float | None]:
    """Return the mean distances of outlines over the tumour images whose pixel size is known."""
    known = predictions.filter(pa.compute.is_finite(predictions["hd95_mm"]))
    return {
        "count": known.num_rows,
        "hd95": pa.compute.mean(known["hd95_mm"]).as_py(),
        "assd": pa.compute.mean(known["assd_mm"]).as_py(),
    }


def write_predictions(
    run: Run, manifest: Manifest, tables: Sequence[pa.Table], number: int, folds: Sequence[int]
) -> pa.Table:
    """Check a round's scored test rows, write each fold's table to the run and return all rows.

    Args:
        run: where the tables go.
        manifest: the run's version of the data set.
        tables: scored rows of the folds, in any order.
        number: the round whose models scored them.
        folds: which folds.

    Returns:
        the rows, ordered by fold, id and pass.

    Raises:
        DataError: if an image was not scored exactly once in each pass.
    """
    predictions = with_named_sources(pa.concat_tables(tables), manifest).sort_by(
        [("fold", "ascending"), ("sample_id", "ascending"), ("pass", "ascending")]
    )
    for fold in folds:
        of_fold = predictions.filter(pa.compute.equal(predictions["fold"], fold))
        check_complete(of_fold, total(manifest, select(manifest, fold, "test")), fold)
        sink = io.BytesIO()
        pq.write_table(of_fold, sink)
        run.store.write(run.predictions_name(number, fold), sink.getvalue())
    return predictions


def check_complete(predictions: pa.Table, expected: int, fold: int) -> None:
    """Assert that a fold's test images were each seen once in every pass.

    Raises:
        DataError: with both numbers.
    """
    for number, of_pass in _passes(predictions) or [(0, predictions)]:
        ids = of_pass.column("sample_id").to_pylist()
        if len(ids) != expected or len(set(ids)) != expected:
            raise DataError(
                f"Evaluation of fold {fold} must see each of its {expected} images once, but saw "
                f"{len(ids)} rows of {len(set(ids))} images in pass {number}."
            )
