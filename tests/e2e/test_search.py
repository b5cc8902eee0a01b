"""Searches, step by step with commands, on a local cluster and on a cluster of two nodes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtil import presets
from mtil.run.folder import Run
from mtil.run.plan import Train
from tests.e2e.conftest import Command
from tests.e2e.places import SETTINGS, Nodes
from tune import study as studies
from tune.record import Search

TuneCommand = Callable[..., dict[str, Any]]

SMALL = (
    "--config", "demo", "--data.image-size", "64", "--model.encoder.name", "resnet10_tiny",
    "--model.encoder.pretrained", "false", "--train.num-epochs", "2",
)  # fmt: skip


@pytest.fixture(scope="session")
def tune(environment: dict[str, str]) -> TuneCommand:
    """Run `mtil-tune` with arguments. Return the printed JSON object."""

    def run(*arguments: str | Path, **variables: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "tune", *map(str, arguments), "--json"],
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    return run


@pytest.mark.long
def test_a_whole_circle_of_two_workers_is_a_trial_and_then_a_training(
    tune: TuneCommand, mtil: Command, data: Path, tmp_path: Path
) -> None:
    """The search has two objectives. `mtil train` accepts the exported file unchanged."""
    search, best = tmp_path / "search", tmp_path / "best.yaml"
    result = tune(
        *("run", "--data", data, "--run", search, *SMALL, "--circle", "--circle.num-rounds", "2"),
        *("--space", "loss,prior,circle", "--objective", "dice,auc", "--num-trials", "1"),
        *("--trial-epochs", "1", "--trial-workers", "2"),
    )
    assert (result["ended"], result["failed"], len(result["front"])) == (1, 0, 1)
    assert result["front"][0]["value"] == pytest.approx(
        [result["front"][0]["figures"][0][name] for name in ("dice", "auc")]
    )
    trial = Run.open(f"{search}/trials/0000")
    assert trial.config.train.num_workers == 2
    for number in (0, 1):
        assert len(trial.history(Train(number, 0))) == 1
    assert not list((search / "trials" / "0000").rglob("predictions*"))  # no test row was seen
    assert tune("export", "--run", search, "--to", best)["trial"] == 0
    done = mtil(
        *("train", "--config", best, "--data", data, "--run", tmp_path / "run", "--fold", "0"),
        *("--train.num-epochs", "1"),
    )
    assert done.returncode == 0, done.stderr
    trained = Run.open(str(tmp_path / "run")).config
    assert trained.loss == presets.load_config(str(best)).loss


@pytest.fixture(scope="session")
def searched(tune: TuneCommand, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search on two folds, with two trials."""
    search = tmp_path_factory.mktemp("searched") / "search"
    tune(
        *("run", "--data", data, "--run", search, *SMALL, "--trial-epochs", "1"),
        *("--space", "loss", "--objective", "dice", "--num-trials", "2", "--fold", "0,1"),
        *("--sampler", "random"),
    )
    return search


@pytest.mark.long
def test_confirming_compares_on_rows_that_the_search_was_not_judged_by(
    tune: TuneCommand, searched: Path
) -> None:
    search = Search.open(str(searched))
    result = tune("confirm", "--run", searched, "--top", "2", "--seeds", "1")
    assert result["same_as_default"] == [0]
    (contender,) = result["contenders"]
    assert contender["name"] == "trial 1"
    fresh, left_out = search.find_fresh_rows([0, 1])
    assert left_out > 0
    assert result["rows"] == {"compared": len(fresh), "left_out": left_out}
    assert result["rows"] == json.loads(search.store.read("confirm.json"))["rows"]
    assert contender["verdict"].startswith("trial 1 ")


@pytest.mark.long
def test_four_trials_at_a_time_on_two_nodes_do_not_wait_for_each_other(
    tune: TuneCommand, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight trials, more than the cluster has room for, stream rows through Ray Data."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    search = tmp_path / "search"
    with Nodes() as nodes:
        result = tune(
            *("run", "--data", data, "--run", search, *SMALL, "--data.mode", "streaming"),
            *("--train.cpus-per-worker", "0.3", "--max-concurrent", "4", "--num-trials", "8"),
            *("--space", "loss", "--objective", "dice", "--trial-epochs", "1"),
            RAY_ADDRESS=nodes.address,
        )
    assert (result["ended"], result["failed"]) == (8, 0)
    frozen = studies.load_study(Search.open(str(search))).trials
    begun = [one.datetime_start for one in frozen]
    ended = [one.datetime_complete for one in frozen]
    assert all(begun)
    assert all(ended)
    together = max(sum(b <= at < e for b, e in zip(begun, ended, strict=True)) for at in begun)
    assert together == 4
