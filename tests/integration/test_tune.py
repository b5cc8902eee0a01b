"""Searches through Ray Tune: suggestions, outcomes, and files of trials."""

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from mtil import presets
from mtil.config import config_from_dict, config_to_dict
from mtil.data.dataset import manifest as manifests
from mtil.data.dataset.shards import row_bytes
from mtil.distributed.runtime.preflight import NodeResources
from mtil.errors import ConfigError, DataError, OutOfMemoryError, ResourceError, RunError
from mtil.run.folder import Run
from mtil.run.plan import Train
from mtil.storage import open_store
from tests.searches import create_search
from tests.waiting import until
from tune import search as searches
from tune import study as studies
from tune.cli import main
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget, make_study_name
from tune.search import StudySearch
from tune.search.concurrency import count_dataset_copies
from tune.search.driver import UserErrorStopper
from tune.search.trial import OUTCOME_KEY, TrialContext, TrialFunction, describe_cause

Lines = list[dict[str, Any]]


def _search(folder: Path, data: str = "/none", **changes: Any) -> Search:
    config = config_from_dict(
        {
            "data": {"image_size": 64},
            "model": {"encoder": {"name": "resnet10_tiny", "pretrained": False}},
            "train": {"num_epochs": 40, "batch_size": 8},
        }
    )
    fingerprint = (
        "0" * 64 if data == "/none" else manifests.load_manifest(open_store(data)).fingerprint
    )
    values: dict[str, Any] = {
        "data": data,
        "fingerprint": fingerprint,
        "config": config_to_dict(config),
        "budget": vars(TrialBudget(num_epochs=2)),
        "space": ["attention", "loss"],
        "narrowing": {},
        "objective": "0.5*dice+0.5*auc",
        "sampler": "tpe",
        "seed": 0,
        "rule": vars(StoppingRule()),
        "storage": None,
        "study": make_study_name(str(folder)),
    }
    return create_search(str(folder), SearchRequest(**values | changes))


def _figures(point: Mapping[str, Any]) -> dict[str, float]:
    """Return figures with the maximum, 1, in the middle of two ranges."""
    off = (float(point["loss.dice"]) - 0.5) ** 2 + (float(point["loss.boundary"]) - 0.5) ** 2
    return {"dice": 1 - off, "auc": 1 - off, "f1": 0.5, "score": 1 - off}


def _drive(searcher: StudySearch, upto: int | None = None) -> int:
    """Run trials in sequence, like Tune. Return the number of ended trials."""
    ended = 0
    while upto is None or ended < upto:
        point = searcher.suggest(str(ended))
        if point == Searcher.FINISHED:
            break
        assert point is not None
        outcome = json.dumps({"figures": [_figures(point)], "seconds": 1.0})
        searcher.on_trial_complete(str(ended), {OUTCOME_KEY: outcome})
        ended += 1
    return ended


def _params(search: Search) -> list[dict[str, Any]]:
    return [dict(trial.params) for trial in studies.load_study(search).trials]


def test_the_first_trial_is_the_default(tmp_path: Path) -> None:
    search = _search(tmp_path / "s")
    searcher = StudySearch(search, 2, lambda line: None)
    first = searcher.suggest("a")
    assert first == (search.space.default() or {}) | {"trial": 0}
    second = searcher.suggest("b")
    assert second is not None
    assert second["trial"] == 1
    assert {**second, "trial": 0} != first
    assert searcher.suggest("c") is None  # both running trials may still fail


def test_a_driver_that_died_leaves_trials_that_the_next_takes_up(tmp_path: Path) -> None:
    undisturbed, killed = _search(tmp_path / "a"), _search(tmp_path / "b")
    _drive(StudySearch(undisturbed, 16, lambda line: None))
    first = StudySearch(killed, 16, lambda line: None)
    assert _drive(first, upto=7) == 7
    running = first.suggest("in flight")
    del first
    lines: Lines = []
    again = StudySearch(killed, 16, lines.append)
    again.begin(1)
    assert (lines[0]["ended"], lines[0]["taken_up"]) == (7, [7])
    assert again.suggest("x") == running
    again.on_trial_complete(
        "x", {OUTCOME_KEY: json.dumps({"figures": [_figures(running or {})], "seconds": 1.0})}
    )
    assert _drive(again) == 8
    assert studies.count_trials(studies.load_study(killed)) == {
        "completed": 16, "stopped early": 0, "failed": 0, "running": 0, "waiting": 0,
    }  # fmt: skip
    assert _params(killed) == _params(undisturbed)  # the sampler depends only on the study
    assert _drive(StudySearch(killed, 16, lambda line: None)) == 0
    assert _drive(StudySearch(killed, 18, lambda line: None)) == 2


def test_a_failed_trial_is_told_with_its_cause_and_replaced(tmp_path: Path) -> None:
    search = _search(tmp_path / "s")
    searcher = StudySearch(search, 3, lambda line: None)
    searcher.suggest("a")
    searcher.on_trial_complete("a", {OUTCOME_KEY: json.dumps({"cause": "no", "trace": "line 1"})})
    assert _drive(searcher) == 3
    searcher.raise_for_failures()
    study = studies.load_study(search)
    assert studies.count_trials(study)["failed"] == 1
    assert studies.list_trials(study)[0].cause == "no"
    assert (tmp_path / "s" / "trials" / "0000" / "error.txt").read_text() == "line 1"


def test_figures_that_are_not_numbers_are_a_failure(tmp_path: Path) -> None:
    search = _search(tmp_path / "s")
    searcher = StudySearch(search, 1, lambda line: None)
    searcher.suggest("a")
    outcome = {"figures": [{"dice": float("nan"), "auc": 0.5}], "seconds": 1.0}
    searcher.on_trial_complete("a", {OUTCOME_KEY: json.dumps(outcome)})
    (trial,) = studies.list_trials(studies.load_study(search))
    assert (trial.state, trial.values) == ("failed", None)
    assert "not numbers" in (trial.cause or "")


def test_a_search_in_which_everything_fails_ends(tmp_path: Path) -> None:
    searcher = StudySearch(_search(tmp_path / "s"), 100, lambda line: None)
    for number in range(5):
        assert searcher.suggest(str(number)) is not None
        searcher.fail(str(number), f"cause {number}")
    assert searcher.suggest("x") == Searcher.FINISHED
    with pytest.raises(RunError, match=r"5 trials failed, and 100 of 100 are missing\..*: cause 4"):
        searcher.raise_for_failures()


def test_a_users_mistake_ends_the_search_and_its_trial_goes_on_later(tmp_path: Path) -> None:
    search = _search(tmp_path / "s")
    searcher = StudySearch(search, 3, lambda line: None)
    point = searcher.suggest("a")
    mistake = {"cause": "The data set is damaged.", "trace": "", "mistake": "DataError"}
    searcher.on_trial_complete("a", {OUTCOME_KEY: json.dumps(mistake)})
    assert UserErrorStopper(searcher).stop_all()
    assert searcher.suggest("b") == Searcher.FINISHED
    with pytest.raises(DataError, match=r"^The data set is damaged\.$"):
        searcher.raise_for_failures()
    again = StudySearch(search, 3, lambda line: None)
    assert not UserErrorStopper(again).stop_all()
    assert again.suggest("a") == point


def test_a_configuration_that_cannot_be_is_a_mistake_until_a_trial_has_ended(
    tmp_path: Path,
) -> None:
    mistake = json.dumps({"cause": "No.", "trace": "", "mistake": "ConfigError"})
    first = StudySearch(_search(tmp_path / "first"), 2, lambda line: None)
    first.suggest("a")
    first.on_trial_complete("a", {OUTCOME_KEY: mistake})
    assert isinstance(first.mistake, ConfigError)
    later = StudySearch(_search(tmp_path / "later"), 2, lambda line: None)
    assert _drive(later, upto=1) == 1
    later.suggest("b")
    later.on_trial_complete("b", {OUTCOME_KEY: mistake})
    assert later.mistake is None
    assert studies.count_trials(studies.load_study(later._search))["failed"] == 1


def _mistaken(
    uri: str, number: int, point: Mapping[str, Any], means: TrialContext
) -> dict[str, Any]:
    raise DataError("The data set is damaged.")


@pytest.mark.usefixtures("local_ray")
def test_a_trials_mistake_is_the_commands(tmp_path: Path) -> None:
    search = _search(tmp_path / "s")
    with pytest.raises(DataError, match=r"^The data set is damaged\.$"):
        searches.run_search(search, 8, lambda line: None, does=_mistaken)
    counts = studies.count_trials(studies.load_study(search))
    assert counts["failed"] == counts["completed"] == 0
    assert 1 <= counts["running"] <= 2


def test_two_goals_are_kept_apart(tmp_path: Path) -> None:
    search = _search(tmp_path / "s", objective="dice,f1", sampler="nsga2")
    assert _drive(StudySearch(search, 4, lambda line: None)) == 4
    study = studies.load_study(search)
    assert study.metric_names == ["dice", "f1"]
    assert all(trial.values[1] == 0.5 for trial in study.trials)


@pytest.mark.parametrize(
    ("nodes", "train", "wanted", "expected"),
    [
        ([NodeResources(2, 0)], {}, 24, (2, 0.5)),
        ([NodeResources(2, 0)], {}, 1, (1, 1.0)),
        ([NodeResources(2, 0)], {"num_workers": 2}, 24, (1, 0.5)),
        ([NodeResources(8, 0)], {"num_workers": 2}, 24, (4, 0.87)),
        ([NodeResources(4, 0), NodeResources(4, 0)], {"cpus_per_worker": 2.0}, 24, (3, 2.0)),
        ([NodeResources(32, 4)], {"gpus_per_worker": 1.0}, 24, (4, 1.0)),
        ([NodeResources(32, 4)], {"gpus_per_worker": 1.0, "num_workers": 2}, 24, (2, 1.0)),
        ([NodeResources(32, 2)], {"gpus_per_worker": 0.5}, 24, (4, 1.0)),
        ([NodeResources(32, 4)], {"gpus_per_worker": 1.0}, 3, (3, 1.0)),
    ],
)
def test_as_many_trials_as_there_is_room_for(
    nodes: list[NodeResources], train: dict[str, Any], wanted: int, expected: tuple[int, float]
) -> None:
    config = config_from_dict({"train": {"batch_size": 16, **train}})
    assert searches.plan_concurrency(nodes, config, wanted) == expected


def test_a_trial_that_has_no_room_is_refused() -> None:
    with pytest.raises(ResourceError, match="need 1 GPUs, but the cluster has 0"):
        searches.plan_concurrency([NodeResources(2, 0)], presets.base(), 24)


def test_want_of_memory_is_named() -> None:
    for error in (
        MemoryError("3 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 B"),
        RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"),
    ):
        assert describe_cause(error).startswith("It does not fit in memory: ")
    assert describe_cause(OutOfMemoryError("The memory of the GPU is too small.")) == (
        "The memory of the GPU is too small."
    )
    assert describe_cause(ZeroDivisionError("division by zero")) == (
        "ZeroDivisionError: division by zero"
    )


def test_circles_leave_room_for_their_copies_of_the_data(dataset: str) -> None:
    manifest = manifests.load_manifest(open_store(dataset))
    one = manifest.num_rows * (row_bytes(64) + 64 * 64)
    found = [count_dataset_copies(share * one, manifest) for share in (0.5, 1.5, 2.5, 4.0)]
    assert found == [1, 1, 1, 3]


@pytest.mark.usefixtures("local_ray")
class TestOnRay:
    @pytest.fixture(scope="class")
    def lines(self) -> Lines:
        return []

    @pytest.fixture(scope="class")
    def search(
        self, dataset: str, tmp_path_factory: pytest.TempPathFactory, lines: Lines
    ) -> Search:
        """A search with two concurrent trials of two epochs."""
        search = _search(tmp_path_factory.mktemp("searches") / "real", dataset)
        searches.run_search(search, 2, lines.append)
        return search

    def test_every_trial_is_a_run_with_its_history(self, search: Search, lines: Lines) -> None:
        study = studies.load_study(search)
        assert studies.count_trials(study)["completed"] == 2
        assert [line["kind"] for line in lines] == ["begun", "trial", "trial"]
        assert (lines[0]["concurrent"], lines[-1]["ended"]) == (2, 2)
        for trial in studies.list_trials(study):
            run = Run.open(search.trial_uri(trial.number))
            assert run.config == search.trial_config(trial.point)
            result = run.result(Train(0, 0))
            assert result is not None
            assert trial.figures == [result.metrics]
            assert trial.values == [
                pytest.approx(0.5 * result.metrics["dice"] + 0.5 * result.metrics["auc"])
            ]
            assert len(run.history(Train(0, 0))) == 2
            frozen = study.trials[trial.number]
            assert list(frozen.intermediate_values) == [1, 2]
            assert frozen.intermediate_values[2] == frozen.value
            assert not run.store.exists(run.model_name(Train(0, 0), result))

    def test_no_early_stopper_is_left(self, search: Search) -> None:
        """Tune keeps the arguments of trials, also an `EarlyStopper`, until the driver ends."""
        until(
            lambda: (
                {
                    actor["State"]
                    for actor in ray._private.state.actors().values()
                    if actor["ActorClassName"] == "EarlyStopper"
                }
                <= {"DEAD"}
            )
        )

    def test_the_same_search_again_does_nothing(self, search: Search) -> None:
        lines: Lines = []
        searches.run_search(search, 2, lines.append)
        assert lines == []

    def test_commands_tell_what_was_found(
        self, search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def run_json(*arguments: str) -> dict[str, Any]:
            assert main([*arguments, "--run", search.uri, "--json"]) == 0
            answer: dict[str, Any] = json.loads(capsys.readouterr().out)
            return answer

        shown = run_json("show", "--top", "2")
        assert len(shown["best"]) == 2
        assert shown["best"][0]["value"] >= shown["best"][1]["value"]
        status = run_json("status")
        assert status["counts"]["completed"] == 2
        assert status["trials"][0]["overrides"] == search.space.default()
        to = str(tmp_path / "best.yaml")
        assert run_json("export", "--to", to)["trial"] == shown["best"][0]["trial"]
        config = presets.load_config(to)
        assert config == search.full_config(shown["best"][0]["overrides"])
        assert config.train.num_epochs == 40
        run_json("report", "--to", str(tmp_path / "report.html"))
        page = (tmp_path / "report.html").read_text()
        assert "<figcaption>Epochs</figcaption>" in page
        assert page.count("<svg") >= 2

    def test_a_trial_whose_process_is_killed_goes_on(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        search = _search(tmp_path / "s")
        searches.run_search(search, 2, lambda line: None, does=_dies_once(tmp_path))
        assert studies.count_trials(studies.load_study(search))["completed"] == 2
        assert sorted(path.name for path in tmp_path.glob("died-*")) == ["died-1"]
        assert "Number of trials" not in capfd.readouterr().out  # Tune's own progress is off

    def test_trials_have_the_memory_settings_of_workers(self, tmp_path: Path) -> None:
        search = _search(tmp_path / "s")
        searches.run_search(search, 1, lambda line: None, does=_make_environment_recorder(tmp_path))
        assert (tmp_path / "environment").read_text() == "1"
        assert "MALLOC_ARENA_MAX" not in class_cache.DEFAULT_ENV_VARS  # restored

    def test_a_trial_that_is_stopped_ends_by_itself(self, dataset: str, tmp_path: Path) -> None:
        """Halving after an unbeatable default stops a trial with a lower value after an epoch."""
        rule = vars(StoppingRule(kind="halving", first=1, factor=2))
        search = _search(
            tmp_path / "s",
            dataset,
            rule=rule,
            budget=vars(TrialBudget(num_epochs=3)),
            space=["loss"],
        )
        first = StudySearch(search, 1, lambda line: None)
        first.suggest("default")
        early_stopper = studies.EarlyStopper(search.storage, search.asked.study, search.rule)
        assert early_stopper.record(0, 1, 2.0)  # an unbeatable value
        first.on_trial_complete(
            "default",
            {OUTCOME_KEY: json.dumps({"figures": [{"dice": 2.0, "auc": 2.0}], "seconds": 1})},
        )
        searches.run_search(search, 2, lambda line: None)
        trial = studies.list_trials(studies.load_study(search))[1]
        assert (trial.state, trial.stopped_after) == ("stopped early", 1)
        run = Run.open(search.trial_uri(1))
        assert len(run.history(Train(0, 0))) == 1
        assert run.result(Train(0, 0)) is not None


def _make_environment_recorder(folder: Path) -> TrialFunction:
    def work(
        uri: str, number: int, point: Mapping[str, Any], means: TrialContext
    ) -> dict[str, Any]:
        (folder / "environment").write_text(os.environ.get("MALLOC_ARENA_MAX", ""))
        return {"figures": [{"dice": 0.5, "auc": 0.5}], "seconds": 1.0}

    return work


def _dies_once(folder: Path) -> TrialFunction:
    def work(
        uri: str, number: int, point: Mapping[str, Any], means: TrialContext
    ) -> dict[str, Any]:
        mark = folder / f"died-{number}"
        if number == 1 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"figures": [{"dice": 0.5, "auc": 0.5}], "seconds": 1.0}

    return work
