import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtil import presets
from mtil.config import config_from_dict, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.shards import read_shard
from mtil.errors import ConfigError, DataError
from mtil.storage import open_store
from tests.searches import create_search
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget, make_study_name


def _asked(**changes: Any) -> SearchRequest:
    values: dict[str, Any] = {
        "data": "/data",
        "fingerprint": "f" * 64,
        "config": config_to_dict(presets.cpu()),
        "budget": vars(TrialBudget(num_epochs=6, image_size=96, num_workers=1)),
        "space": ["attention", "loss"],
        "narrowing": {"loss.boundary": 0.5},
        "objective": "dice",
        "sampler": "tpe",
        "seed": 0,
        "rule": vars(StoppingRule()),
        "storage": None,
        "study": "s",
    }
    return SearchRequest(**values | changes)


def test_trials_have_the_budget_and_the_winner_the_whole_schedule(tmp_path: Path) -> None:
    search = create_search(str(tmp_path / "s"), _asked())
    point = {"loss.dice": 0.3, "model.attention.kind": "none"}
    trial, whole = search.trial_config(point), search.full_config(point)
    assert (trial.train.num_epochs, whole.train.num_epochs) == (6, 24)
    assert (trial.data.image_size, whole.data.image_size) == (96, 160)
    assert (trial.train.num_workers, whole.train.num_workers) == (1, 2)
    assert trial.train.warmup_epochs == pytest.approx(0.25)  # 6 / 24 of 1 epoch
    assert whole.train.warmup_epochs == 1.0
    for config in (trial, whole):
        assert config.loss.dice == 0.3
        assert config.loss.boundary == 0.5  # fixed for all
        assert config.model.attention.kind == "none"


def test_a_winner_can_be_laid_over_another_configuration(tmp_path: Path) -> None:
    search = create_search(str(tmp_path / "s"), _asked())
    laid = search.full_config({"loss.dice": 0.3}, presets.base())
    expected = config_from_dict({"loss": {"dice": 0.3, "boundary": 0.5}}, presets.base())
    assert laid == expected


def test_the_same_search_is_taken_up_and_another_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "s")
    first = create_search(uri, _asked())
    again = create_search(uri, _asked(version="0.0.1", study="other"))
    assert again.asked == first.asked
    for changes, named in (
        ({"objective": "auc"}, "`--objective` 'dice', but 'auc' is requested"),
        ({"seed": 1}, "`--search-seed` 0, but 1"),
        ({"config": config_to_dict(presets.demo())}, "`--config` data.image_size = 160, but 96"),
        ({"budget": vars(TrialBudget(num_epochs=7))}, "`budget` num_epochs = 6, but 7"),
        ({"rule": vars(StoppingRule(kind="median"))}, "`--stop-early` kind = 'none', but 'median'"),
        ({"space": ["loss"]}, "`--space`"),
    ):
        with pytest.raises(ConfigError, match=named):
            create_search(uri, _asked(**changes))


def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    median = vars(StoppingRule(kind="median"))
    for changes, message in (
        ({"objective": "dice,auc", "rule": median}, "Early stopping needs a single goal"),
        (
            {"space": ["prior"]},
            r"`prior` has an effect only in a whole circle\. Add --circle",
        ),
        ({"space": ["circle", "loss"]}, "Add --circle"),
        (
            {"rule": vars(StoppingRule(kind="median", first=0))},
            "`--first-check` must be at least 1",
        ),
        ({"rule": vars(StoppingRule(kind="halving", factor=1))}, "`--check-factor` at least 2"),
        ({"space": ["loss"], "narrowing": {"loss.dise": 1}}, "`loss.dise` is not in the space"),
        ({"budget": vars(TrialBudget(image_size=100))}, "data.image_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            create_search(str(tmp_path / "s"), _asked(**changes))
    assert list(tmp_path.iterdir()) == []


def test_a_plan_writes_nothing(tmp_path: Path) -> None:
    planned = Search.plan(str(tmp_path / "s"), _asked())
    assert list(tmp_path.iterdir()) == []
    planned.keep()
    with pytest.raises(ConfigError, match="`--objective`"):
        Search.plan(str(tmp_path / "s"), _asked(objective="auc"))
    other = Search.plan(str(tmp_path / "o"), _asked(objective="auc"))
    create_search(str(tmp_path / "o"), _asked())  # by a concurrent command
    with pytest.raises(ConfigError, match="`--objective`"):
        other.keep()


@pytest.mark.parametrize(
    ("searched", "compared", "unseen"),
    [
        ([0], [0], lambda fold, part: fold == 0),
        ([1], [0, 1], lambda fold, part: fold == 1 or (fold == 0 and part != 1)),
        ([0, 1], [0, 1], lambda fold, part: (fold, part != 1 - fold) in ((0, True), (1, True))),
    ],
)
def test_rows_that_a_searched_fold_has_validated_on_are_left_out(
    searched: list[int],
    compared: list[int],
    unseen: Callable[[int, int], bool],
    data_uri: str,
    tmp_path: Path,
) -> None:
    store = open_store(data_uri)
    manifest = manifests.load_manifest(store)
    asked = _asked(
        data=data_uri,
        fingerprint=manifest.fingerprint,
        budget=vars(TrialBudget(folds=searched)),
        config=config_to_dict(presets.demo()),
    )
    columns = ("sample_id", "fold", "part")
    tables = [read_shard(store, shard, columns) for shard in manifest.shards]
    rows = [row for table in tables for row in table.to_pylist()]
    tested = [row for row in rows if row["fold"] in compared]
    expected = {row["sample_id"] for row in tested if unseen(row["fold"], row["part"])}
    found, left_out = Search.plan(str(tmp_path / "s"), asked).find_fresh_rows(compared)
    assert found == expected
    assert left_out == len(tested) - len(expected)
    assert (left_out > 0) == (searched != compared or len(searched) > 1)


def test_a_bucket_needs_a_storage_for_the_study() -> None:
    with pytest.raises(ConfigError, match="cannot hold the study"):
        create_search("s3://bucket/search", _asked())


def test_the_journal_lies_in_the_run_unless_told_otherwise(tmp_path: Path) -> None:
    uri = str(tmp_path / "s")
    assert create_search(uri, _asked()).storage == f"{uri}/study.journal"
    other = create_search(str(tmp_path / "o"), _asked(storage="sqlite:///x.db"))
    assert other.storage == "sqlite:///x.db"


def test_a_folder_without_a_search_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"search\.json is missing\. Start a search with `mtil-tune run`"
    ):
        Search.open(str(tmp_path))
    (tmp_path / "search.json").write_text("{}")
    with pytest.raises(DataError, match=r"search\.json .*; restore it, or name another search"):
        Search.open(str(tmp_path))
    (tmp_path / "search.json").write_text("[")
    with pytest.raises(DataError, match=r"search\.json .*; restore it, or name another search"):
        Search.open(str(tmp_path))


def test_a_search_is_what_its_file_says(tmp_path: Path) -> None:
    search = create_search(str(tmp_path / "s"), _asked())
    stored = json.loads((tmp_path / "s" / "search.json").read_text())
    assert stored == dataclasses.asdict(search.asked)
    assert Search.open(str(tmp_path / "s")).asked == search.asked


def test_studies_of_different_searches_have_different_names() -> None:
    assert make_study_name("/a/busi").startswith("busi-")
    assert (
        len(
            {make_study_name("/a/busi"), make_study_name("/b/busi"), make_study_name("s3://a/busi")}
        )
        == 3
    )
    assert make_study_name("/a/busi") == make_study_name("/a/busi")


def test_a_rule_asks_at_its_declared_epochs() -> None:
    doubled = StoppingRule(kind="median", first=2, factor=2)
    assert [epoch for epoch in range(20) if doubled.is_checked_after(epoch)] == [2, 4, 8, 16]
    tripled = StoppingRule(kind="halving", first=1, factor=3)
    assert [epoch for epoch in range(30) if tripled.is_checked_after(epoch)] == [1, 3, 9, 27]
    assert not any(StoppingRule().is_checked_after(epoch) for epoch in range(20))
