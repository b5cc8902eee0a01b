"""The report of a run: figures match `mtil evaluate`, tables match values worked by hand."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow.parquet as pq
import pytest

import mtil
from mtil.cli import main
from mtil.errors import DataError
from mtil.metrics import Results
from mtil.report.build import build_report
from mtil.report.charts.theme import draw_chart
from mtil.report.elements import Report, Table, format_interval
from mtil.report.scored import ScoredRun, name_runs, read_run
from mtil.report.sections.circle import make_circle_section
from mtil.report.sections.figures import list_warnings, summarise_by_marks
from mtil.report.sections.tasks import make_classification_section
from mtil.report.sections.training import find_preset
from mtil.run.folder import Run


def _table(report: Report, name: str) -> Table:
    (table,) = (table for table in report.tables() if table.name == name)
    return table


def _evaluate(uri: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["evaluate", "--local", "--run", uri, "--json"]) == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def test_the_report_says_the_numbers_of_evaluate(
    scored_uri: str, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = _evaluate(scored_uri, capsys)
    rows = {row[0]: row[1:] for row in _table(report, "figures").rows}
    assert rows == {
        name: (interval["value"], interval["low"], interval["high"])
        for name, interval in figures["metrics"].items()
    }
    for row in _table(report, "by-class").rows:
        part = figures["by_class"][row[0]]
        assert row[1:3] == (part["count"], part["dice"])
    bands = [row[2] for row in _table(report, "error-budget").rows]
    assert bands == [band["images"] for band in figures["errors"]["bands"]]
    passes = _table(report, "passes").rows
    assert [row[3] for row in passes] == [
        format_interval(entry["metrics"]["dice"]) for entry in figures["by_pass"]
    ]
    for text in ("Dice", format_interval(figures["metrics"]["auc"])):
        assert text in report.summary


def test_passes_are_compared_image_by_image(scored: ScoredRun) -> None:
    section = make_circle_section(scored)
    assert section is not None
    differences = section.tables[1]
    first, last = scored.of_pass(0), scored.of_pass(-1)
    gain = (last.dice - first.dice)[first.tumour]
    *_, row = differences.rows
    assert str(row[1]).startswith(f"{gain.mean():+.3f} [")
    assert row[-1] == f"{100 * (gain < -0.01).mean():.0f} %"


def test_confusion_matrices_count_the_images(scored: ScoredRun) -> None:
    section = make_classification_section(scored)
    assert section is not None
    results = scored.of_pass(-1)
    plain, steady, *_ = section.tables
    for label, row in enumerate(plain.rows):
        of_class = results.label == label
        called = int((of_class & results.predicted).sum())
        assert row[1:] == (int(of_class.sum()) - called, called)
    (_, true_negative, false_positive), _ = steady.rows
    benign = int((results.label == 0).sum())
    assert true_negative + false_positive == benign
    assert 0.9 <= true_negative / benign < 0.9 + 1 / benign + 1e-9


def test_warnings_name_what_could_mislead(scored: ScoredRun) -> None:
    text = " ".join(list_warnings(scored))
    assert "Only 2 of 3 folds have scores; missing: 2." in text
    malignant = int((scored.of_pass(-1).label == 1).sum())
    assert f"Only {malignant} test images are malignant" in text
    assert "leak" not in text
    assert scored.manifest is not None
    leaking = replace(scored, manifest=replace(scored.manifest, protocol="paper"))
    assert "The folds leak" in " ".join(list_warnings(leaking))


def test_marks_divide_the_images(scored: ScoredRun) -> None:
    parts = summarise_by_marks(scored)
    total = scored.figures["num_images"]
    for mark in ("calipers", "burnt-in text"):
        sizes = [parts[f"{word} {mark}"]["num_images"] for word in ("with", "without")
                 if f"{word} {mark}" in parts]  # fmt: skip
        assert sum(sizes) == total


def test_the_nearest_preset_is_named_with_all_differences(scored: ScoredRun) -> None:
    preset, differences = find_preset(scored)
    assert preset in ("demo", "cpu", "best", "base")
    assert differences["circle.maps"] == ("in_sample", "recycle")
    assert differences["data.image_size"][1] == 32


def test_trainings_have_seconds_and_speed(report: Report) -> None:
    columns = _table(report, "trainings").columns
    for row in _table(report, "trainings").rows:
        values = dict(zip(columns, row, strict=True))
        assert (values["seconds"], values["of these in epochs"]) == ("12", "10")
        assert (values["workers"], values["images/s"]) == (1, "8.0")
    data = {str(row[0]): str(row[1]) for row in _table(report, "data").rows}
    assert "% of the tumour images" in data["leaks of folds of single images"]


def test_a_run_without_scores_has_curves_and_a_warning(unscored_uri: str) -> None:
    report = build_report(read_run(unscored_uri))
    assert "mtil evaluate" in report.warnings[0]
    assert [section.name for section in report.sections] == ["training", "provenance"]
    (losses,) = report.charts()
    assert losses.name == "round-0-losses"


def test_scores_without_pictures_give_a_report_without_a_gallery(
    make_scored: Callable[..., str],
) -> None:
    uri = make_scored("bare", folds=(0,))
    run = Run.open(uri)
    run.store.delete("rounds/0/fold-0/predictions-pictures.parquet")
    report = build_report(read_run(uri))
    assert report.cards == []
    assert any("no pictures" in warning for warning in report.warnings)
    assert _table(report, "figures").rows


def test_a_report_without_the_data_set_keeps_the_figures(
    scored_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = json.loads((Path(scored_uri) / "run.json").read_text())
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "run.json").write_text(json.dumps(moved | {"data": str(tmp_path / "gone")}))
    for file in Path(scored_uri).rglob("*"):
        if file.is_file() and file.name != "run.json":
            target = copy / file.relative_to(scored_uri)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    report = build_report(read_run(str(copy)))
    assert "could not be read" in report.warnings[0]
    assert len(report.cards) == report_images(report)
    assert all(card.thumbnail == "" for card in report.cards)


def report_images(report: Report) -> int:
    return int(str(report.summary).split()[1])


def test_scores_of_another_data_set_are_refused(make_scored: Callable[..., str]) -> None:
    uri = make_scored("other", folds=(0,))
    path = Path(uri) / "rounds/0/fold-0/predictions.parquet"
    table = pq.read_table(path)
    column = ["0" * 64] * table.num_rows
    index = table.schema.get_field_index("fingerprint")
    pq.write_table(table.set_column(index, "fingerprint", [column]), path)
    with pytest.raises(DataError, match=r"fingerprint 0000.*Run `mtil evaluate"):
        read_run(uri)


def test_other_runs_are_compared_on_common_images(
    scored: ScoredRun, make_scored: Callable[..., str]
) -> None:
    other = read_run(make_scored("second", folds=(1, 2), seed=5))
    report = build_report(scored, [other])
    ours, theirs = scored.of_pass(-1), other.of_pass(-1)
    common = np.intersect1d(ours.sample_id, theirs.sample_id)
    assert 0 < len(common) < len(ours.sample_id)

    def dice(results: Results) -> float:
        return float(np.nanmean(results.dice[np.isin(results.sample_id, common)]))

    rows = dict(_table(report, "differences").rows)
    assert str(rows["dice"]).startswith(f"{dice(theirs) - dice(ours):+.3f} [")
    apart = read_run(make_scored("third", folds=(2,)))
    with pytest.raises(DataError, match="share none"):
        build_report(scored, [apart])


def test_every_chart_is_a_drawing_in_colours_of_the_page_or_of_paper(report: Report) -> None:
    names = [chart.name for chart in report.charts()]
    assert len(set(names)) == len(names)
    for chart in report.charts():
        page, paper = (draw_chart(chart, in_page=in_page) for in_page in (True, False))
        assert "https:" not in page
        assert "var(--" in page
        assert "var(--" not in paper
        for text in (page, paper):
            root = ET.fromstring(text)
            assert root.tag.endswith("svg")
            assert len(list(root.iter())) > 20


def test_points_lead_to_images(report: Report) -> None:
    (chart,) = (chart for chart in report.charts() if chart.name == "dice-by-size")
    root = ET.fromstring(draw_chart(chart, in_page=True))
    links = {
        value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")
    }
    assert links == {f"#{card.anchor}" for card in report.cards if card.label != "normal"}


def test_runs_get_the_shortest_names_that_tell_them_apart() -> None:
    assert name_runs(["/a/one", "/a/two"]) == ["one", "two"]
    assert name_runs(["/a/x/seed-0", "s3://b/y/seed-0"]) == ["x/seed-0", "y/seed-0"]
    assert name_runs(["/a/one/"]) == ["one"]
    with pytest.raises(DataError, match="each run once"):
        name_runs(["/a/one", "/a/one/"])


def test_the_command_writes_page_figures_and_images(
    scored_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "out" / "r.html"
    figures = tmp_path / "figures"
    words = ["report", scored_uri, "--to", str(page), "--figures", str(figures), "--originals"]
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bytes"] == page.stat().st_size
    assert len(list((page.parent / "r-images").iterdir())) == result["images"] > 30
    assert (figures / "roc.svg").exists()
    head, *rows = (figures / "figures.csv").read_text().splitlines()
    assert head == "figure,value,95 % low,95 % high"
    assert float(rows[0].split(",")[1]) == mtil.evaluate(scored_uri)["metrics"]["dice"]["value"]
    text = page.read_text()
    assert "http://www.w3.org" in text  # the SVG namespace is the only address
    assert text.count("http") == text.count("http://www.w3.org") + text.count("http-equiv")


@pytest.mark.parametrize("to", ["report.pdf", "folder/"])
def test_the_page_needs_the_name_of_a_page(
    scored_uri: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", scored_uri, "--to", to]) == 2
    assert "must be an .html file" in capsys.readouterr().err
