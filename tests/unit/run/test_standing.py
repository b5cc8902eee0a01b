"""`mtil status` for runs of `mtil train`: progress read from files alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtil.cli import main
from mtil.cli.views import trainings
from mtil.config import Config
from mtil.run.checkpoint import TrainedModel
from mtil.run.folder import Run
from mtil.run.plan import Train

pytestmark = pytest.mark.usefixtures("signals")

FIGURES = {"validation_dice": 0.5, "validation_auc": 0.75, "validation_score": 0.625}


@pytest.fixture
def run(make_config: Callable[..., Config], tmp_path: Path) -> Run:
    return Run.create(str(tmp_path / "run"), make_config(), "data", "f" * 64)


@pytest.fixture
def commit(run: Run, make_model: Callable[..., TrainedModel]) -> Callable[[Train], None]:
    def of(train: Train) -> None:
        metrics = {"dice": 0.625, "auc": 0.875, "f1": 0.5, "score": 0.75}
        model = make_model(config=run.config, fold=train.fold, epoch=2)
        run.commit(train, model, num_epochs=4, seconds=12.5, metrics=metrics)

    return of


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Run one callback in each pause of the command; later pauses do nothing."""
    todo: list[Callable[[], object]] = []

    def sleep(seconds: float) -> None:
        if todo:
            todo.pop(0)()

    monkeypatch.setattr(trainings, "time", SimpleNamespace(sleep=sleep))
    return todo


@pytest.fixture
def show_status(
    run: Run, pauses: list[Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[dict[str, Any], str]]:
    """Run `mtil status`; return the JSON object and the text output."""

    def ask(*words: str) -> tuple[dict[str, Any], str]:
        assert main(["status", "--run", run.uri, "--json", *words]) == 0
        captured = capsys.readouterr()
        return json.loads(captured.out), captured.err

    return ask


ShowStatus = Callable[..., tuple[dict[str, Any], str]]


def test_a_run_that_has_not_begun_to_train(run: Run, show_status: ShowStatus) -> None:
    values, seen = show_status()
    assert values == {
        "run": run.uri, "verified": True, "kind": "training", "condition": "waiting", "epochs": 4,
        "trained": [], "trainings": [],
    }  # fmt: skip
    assert "No file changed for 10 s. No training runs, or" in seen


def test_epoch_step_and_figures_are_told_of_each_fold(
    run: Run,
    show_status: ShowStatus,
    commit: Callable[[Train], None],
    pauses: list[Callable[[], object]],
) -> None:
    commit(Train(0, 0))
    run.write_history(Train(0, 2), [{"epoch": 0}, {"epoch": 1, **FIGURES}])
    where = {"epoch": 2, "steps": 9, "hosts": ["node-1"]}
    run.write_step(Train(0, 2), where | {"step": 3})
    pauses += [lambda: None, lambda: run.write_step(Train(0, 2), where | {"step": 5})]
    values, seen = show_status()
    assert (values["condition"], values["trained"]) == ("running", [0])
    done, now = values["trainings"]
    assert done == {
        "round": 0, "fold": 0, "part": None, "stage": "done", "epochs": 4, "best_epoch": 2,
        "seconds": 12.5, "figures": {"dice": 0.625, "auc": 0.875, "f1": 0.5, "score": 0.75},
    }  # fmt: skip
    assert now == {
        "round": 0, "fold": 2, "part": None, "stage": "training", "epochs": 2, "step": 5,
        "steps": 9, "hosts": ["node-1"], "figures": {"dice": 0.5, "auc": 0.75, "score": 0.625},
    }  # fmt: skip
    lines = [line.split() for line in seen.splitlines()]
    assert lines[1] == ["fold", "0", "done", "4", "0.625", "0.875", "0.500"]
    expected = "fold 2 training 2 of 4 5 of 9 0.500 0.750 n/a"
    assert lines[2] == expected.split()
    assert seen.splitlines()[-1] == "A training is running on node-1."


def test_a_step_of_an_epoch_that_is_over_is_not_told(run: Run, show_status: ShowStatus) -> None:
    run.write_history(Train(0, 0), [{"epoch": 0, **FIGURES}])
    run.write_step(Train(0, 0), {"epoch": 0, "step": 8, "steps": 9, "hosts": ["node-1"]})
    values, _ = show_status()
    assert values["condition"] == "waiting"
    assert "step" not in values["trainings"][0]


def test_a_run_that_is_trained_is_over_at_once(
    run: Run,
    show_status: ShowStatus,
    commit: Callable[[Train], None],
    pauses: list[Callable[[], object]],
) -> None:
    commit(Train(0, 0))
    pauses.append(lambda: pytest.fail("it waits"))
    values, seen = show_status()
    assert values["condition"] == "over"
    assert f"next: mtil evaluate --run {run.uri}" in seen


def test_watching_ends_when_no_fold_follows(
    run: Run,
    show_status: ShowStatus,
    commit: Callable[[Train], None],
    pauses: list[Callable[[], object]],
) -> None:
    """A fold started after the end of the previous fold belongs to the watched command."""
    run.write_history(Train(0, 0), [{"epoch": 0, **FIGURES}])
    pauses += [
        *[lambda: None] * 11,
        lambda: commit(Train(0, 0)),
        *[lambda: None] * 5,
        lambda: run.write_history(Train(0, 1), [{"epoch": 0, **FIGURES}]),
        *[lambda: None] * 20,
        lambda: commit(Train(0, 1)),
    ]
    values, seen = show_status("--watch")
    assert (values["condition"], values["trained"]) == ("over", [0, 1])
    assert seen.count("A training is running.") == 1  # during the training of fold 1
    assert seen.count("No file changed for") == 2
    assert seen.splitlines()[-1].startswith("All started folds are trained")


def test_inner_trainings_of_a_search_are_told_apart(
    run: Run, show_status: ShowStatus, commit: Callable[[Train], None]
) -> None:
    for of in (Train(0, 0, 1), Train(0, 0, 0), Train(1, 0)):
        commit(of)
    values, seen = show_status()
    assert [(one["round"], one["fold"], one["part"]) for one in values["trainings"]] == [
        (0, 0, 0), (0, 0, 1), (1, 0, None),
    ]  # fmt: skip
    assert [line.split("  ")[0] for line in seen.splitlines()[1:4]] == [
        "round 0, fold 0, part 0", "round 0, fold 0, part 1", "round 1, fold 0",
    ]  # fmt: skip
