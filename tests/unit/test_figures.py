"""`benchmarks.figures`: a table is declared, filled by mtil's own commands, and compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import figures, tables
from mtil import phantom
from mtil.data.prepare.pipeline import Settings, prepare
from mtil.data.prepare.sources import CollectionSource
from mtil.errors import DataError
from mtil.metrics import Results

NUM_OTHER = 15

TABLE = {
    "purpose": "Does it work?",
    "preset": "demo",
    "rows": {"plain": {"model.baseline": True}, "more classes": {"loss.classification": 0.75}},
    "against": "plain",
    "folds": [0, 1],
    "seeds": [3],
    "split": "validation",
    "budget_hours": 1.0,
}


def _results(dice: list[float], malignant: list[bool], probability: list[float]) -> Results:
    size = len(dice)
    zeros = np.zeros(size)
    return Results(
        sample_id=np.array([f"image {index}" for index in range(size)]),
        group=np.array([f"group {index}" for index in range(size)]),
        label=np.array(malignant, int),
        fold=zeros,
        probability=probability,
        predicted=np.array(probability) >= 0.5,
        tp=np.ones(size),
        fp=zeros,
        fn=zeros,
        dice=dice,
        iou=dice,
        hd95=zeros,
        assd=zeros,
        missed=np.array(dice) == 0,
        false_positive_area=zeros,
    )


def _declaration(tmp_path: Path, **changes: Any) -> tables.Declaration:
    path = tmp_path / "table.yaml"
    path.write_text(json.dumps(TABLE | changes))  # JSON is YAML
    return tables.read_declaration(path)


def test_given_values_reach_all_rows(tmp_path: Path) -> None:
    _declaration(tmp_path)
    table = tables.read_declaration(tmp_path / "table.yaml", {"train.init": "s3://bucket/run"})
    assert {tables.row_config(table, row).train.init for row in table.rows} == {"s3://bucket/run"}


def test_a_row_starts_from_its_counterpart_of_another_table(tmp_path: Path) -> None:
    _declaration(tmp_path)
    values = {"train.init": "runs/{row}/seed-0"}
    table = tables.read_declaration(tmp_path / "table.yaml", values)
    starts = {}
    for cell in tables.list_cells(table, tmp_path, threads=1):
        flags = dict(zip(cell.arguments[::2], cell.arguments[1::2], strict=True))
        starts[cell.uri] = flags["--train.init"]
    assert starts == {
        str(tmp_path / "plain" / "seed-3"): "runs/plain/seed-0",
        str(tmp_path / "more-classes" / "seed-3"): "runs/more-classes/seed-0",
    }


@pytest.mark.parametrize("text", ["train.init", ""])
def test_a_value_needs_a_key(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        figures.main(["busi", "--to", str(tmp_path), "--set", text])
    assert f"must be KEY=VALUE, but is {text!r}" in capsys.readouterr().err


def test_every_table_can_be_read() -> None:
    paths = list(tables.TABLES.glob("*.yaml"))
    assert paths
    for path in paths:
        tables.read_declaration(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"against": "nothing"}, "`against` must name a row, but is 'nothing'"),
        ({"rows": {"plain": {"model.nothing": 1}}}, "model.nothing"),
        ({"split": "train"}, "split"),
        ({"budget_hours": 0}, "budget_hours"),
        ({"ensembles": {"all": ["plain", "other"]}}, "the ensemble 'all' must"),
        ({"ensembles": {"plain": ["plain"]}}, "the ensemble 'plain' must"),
    ],
)
def test_a_wrong_table_is_one_sentence(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, ValueError), match=message):
        _declaration(tmp_path, **changes)


def test_figures_are_averaged_over_seeds_and_differences_are_paired(tmp_path: Path) -> None:
    malignant = [True, False, True, False]
    ranked, reversed_ranks = [0.9, 0.1, 0.8, 0.2], [0.1, 0.9, 0.2, 0.8]
    scored = {
        "plain": [
            _results([0.2, 0.4, 0.6, 0.8], malignant, reversed_ranks),
            _results([0.4, 0.6, 0.8, 1.0], malignant, reversed_ranks),
        ],
        "more classes": [
            _results([0.3, 0.5, 0.7, 0.9], malignant, ranked),
            _results([0.5, 0.7, 0.9, 0.9], malignant, reversed_ranks),
        ],
    }
    rows = figures.fill(
        _declaration(tmp_path),
        {row: [figures.Scores(table) for table in tables] for row, tables in scored.items()},
    )
    assert rows["plain"]["figures"]["dice"]["value"] == pytest.approx(0.6)
    assert "difference" not in rows["plain"]
    row = rows["more classes"]
    assert row["figures"]["dice"]["value"] == pytest.approx(0.675)
    assert row["seed_dice"] == pytest.approx([0.6, 0.75])
    assert row["figures"]["auc"]["value"] == pytest.approx(0.5)  # mean of 1 and 0
    # By image: +0.1, +0.1, +0.1 and 0. The group differences bound the interval.
    gain = row["difference"]["dice"]
    assert gain["value"] == pytest.approx(0.075)
    assert 0 <= gain["low"] < 0.075 < gain["high"] <= 0.1 + 1e-9
    assert row["worse_images"] == 0
    assert row["by_class"]["malignant"]["dice"] == pytest.approx(0.6)
    text = figures.format_table(_declaration(tmp_path), rows)
    assert "| more classes | 0.675 [" in text
    assert "| +0.075 [" in text


def test_passes_are_compared_and_objections_left_out_beside_all_images(tmp_path: Path) -> None:
    malignant, probability = [True, False, True, False], [0.9, 0.1, 0.8, 0.2]
    first = _results([0.2, 0.4, 0.6, 0.8], malignant, probability)
    last = _results([0.3, 0.6, 0.6, 0.7], malignant, probability)
    scores = figures.Scores(last, first, frozenset(["image 0"]))
    row = figures.fill(_declaration(tmp_path), {"plain": [scores]})["plain"]
    passes = row["last_minus_first_pass"]
    assert passes["difference"]["dice"]["value"] == pytest.approx(0.05)
    assert passes["worse_images"] == 0.25
    assert row["figures"]["dice"]["value"] == pytest.approx(0.55)
    clean = row["without_objections"]
    assert clean["tumours"] == 3
    assert clean["figures"]["dice"]["value"] == pytest.approx(1.9 / 3)


@pytest.fixture
def other_uri(tmp_path: Path) -> str:
    """A data set of unseen phantoms."""
    phantom.write_phantoms(tmp_path / "other", num_images=NUM_OTHER, seed=79, image_size=64)
    prepare(
        [CollectionSource(uri=str(tmp_path / "other"), layout="busi")],
        str(tmp_path / "other-set"),
        Settings(image_size=64, num_folds=2),
    )
    return str(tmp_path / "other-set")


@pytest.mark.slow
def test_a_table_is_filled_once_and_a_spent_budget_starts_nothing(
    data_uri: str, other_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {
        "model.encoder.name": "resnet10_tiny",
        "model.encoder.pretrained": False,
        "data.image_size": 32,
        "train.num_epochs": 1,
        "train.num_workers": 1,
    }
    rows = TABLE["rows"]
    table = TABLE | {"common": quick}
    path = tmp_path / "quick.yaml"
    ensembles = {"both": ["plain", "more classes"]}
    path.write_text(json.dumps(table | {"ensembles": ensembles}))
    shown: list[dict[str, Any]] = []
    arguments = [str(path), "--to", str(tmp_path / "to"), "--data", data_uri, "--jobs", "2"]

    def fill(seen: Callable[[dict[str, Any]], None] = shown.append) -> dict[str, Any]:
        figures.main(arguments, seen)
        return shown[-1]

    first = fill()
    assert first["rows"].keys() == {*rows, "both"}
    hours = {name: row["training_hours"] for name, row in first["rows"].items()}
    assert hours["both"] == pytest.approx(hours["plain"] + hours["more classes"])
    assert "difference" in first["rows"]["both"]
    assert first["not_trained"] == []
    assert 0 < first["used_hours"] < 1
    assert json.loads((tmp_path / "to" / "quick-validation.json").read_text()) == first
    assert first["rows"]["more classes"]["difference"]["dice"]["value"] == pytest.approx(
        first["rows"]["more classes"]["figures"]["dice"]["value"]
        - first["rows"]["plain"]["figures"]["dice"]["value"]
    )

    def refuse(*arguments: str) -> None:
        raise AssertionError(arguments)

    with monkeypatch.context() as patched:
        patched.setattr(figures, "run_mtil", refuse)
        assert fill() == first
    figures.main([*arguments, "--split", "test"], shown.append)
    assert shown[-1]["split"] == "test"
    assert shown[-1]["used_hours"] == first["used_hours"]  # nothing is trained again
    assert shown[-1]["rows"]["plain"]["figures"] != first["rows"]["plain"]["figures"]
    figures.main([*arguments, "--on", other_uri], shown.append)
    elsewhere = shown[-1]
    assert elsewhere["rows"].keys() == set(rows)  # no ensemble
    assert elsewhere["rows"]["plain"]["images"] == NUM_OTHER
    assert "difference" in elsewhere["rows"]["more classes"]
    with monkeypatch.context() as patched:
        patched.setattr(figures, "run_mtil", refuse)
        figures.main([*arguments, "--on", other_uri], shown.append)
    assert shown[-1] == elsewhere
    (scores,) = (tmp_path / "to" / "plain").glob("seed-3/rounds/0/external-*/predictions.parquet")
    rows_of = pq.read_table(scores)
    place = rows_of.schema.get_field_index("model_sha256")
    of_another = rows_of.set_column(
        place, rows_of.schema.field(place), pa.array(["0" * 64] * len(rows_of))
    )
    pq.write_table(of_another, scores)
    with monkeypatch.context() as patched:
        patched.setattr(figures, "run_mtil", refuse)
        with pytest.raises(AssertionError, match="--on"):
            figures.main([*arguments, "--on", other_uri], shown.append)
    path.write_text(json.dumps(table | {"seeds": [3, 4], "budget_hours": 1e-6}))
    poor = fill()
    assert len(poor["not_trained"]) == 4
    assert poor["rows"]["plain"]["seeds"] == 1
