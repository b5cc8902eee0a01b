import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from mtil import presets
from mtil.config import config_to_dict
from tests.searches import create_search
from tune import space as spaces
from tune import study as studies
from tune.cli import main
from tune.record import Search, SearchRequest, StoppingRule, TrialBudget

COMMANDS = ("run", "status", "show", "export", "report", "confirm")


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_no_failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: mtil-tune")


def test_help_needs_nothing_heavy() -> None:
    code = """
import sys
from tune.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = ("ray", "torch", "optuna", "jinja2", "vl_convert", "pyarrow", "sklearn", "numpy")
sys.exit(str([name for name in heavy if name in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--num-trials", "0"], "`--num-trials` must be at least 1, but got 0"),
        (["--max-concurrent", "0"], "`--max-concurrent` must be at least 1, but got 0"),
        (["--space", "attention,losses"], "`--space` must name some of attention"),
        (["--objective", "loss"], "`--objective` must be of dice, auc, f1"),
        (["--space", "prior"], "`prior` has an effect only in a whole circle"),
        (
            ["--objective", "dice,auc", "--stop-early", "median"],
            "Early stopping needs a single goal",
        ),
        (["--narrow", "{tmp}/none.yaml"], "none.yaml of --narrow does not exist"),
        (["--narrow", "{tmp}/list.yaml"], "--narrow must be a mapping of keys"),
        (["--narrow", "{tmp}/broken.yaml"], "--narrow must be YAML"),
        (["--narrow", "{tmp}/key.yaml"], "`loss.dise` is not in the space; did you mean"),
        (["--fold", "9"], "A fold must be one of"),
        (["--data-version", "2"], "A version must be one of 1 to 1 of "),
        (["--fold", "holdout"], "The holdout is for a final test"),
        (["--trial-image-size", "100"], "data.image_size"),
        (["--train.lr", "1"], "`train.lr` is not a configuration key"),
        (["--config", "no.yaml"], "no.yaml does not exist"),
        (["--sampler", "grid"], "invalid choice: 'grid'"),
        (["--storage", "postgresql://me:secret@host/x"], "`--storage` must hold no password"),
        (["--storage", "nonsense://x"], "storage nonsense://x cannot be opened"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    arguments: list[str],
    says: str,
    data_uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("{")
    (tmp_path / "key.yaml").write_text("loss: {dise: 0.5}")
    run = tmp_path / "search"
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    command = ["run", "--data", data_uri, "--run", str(run), "--config", "demo", *given]
    assert main(command) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("mtil-tune: ")
    assert not run.exists()


@pytest.mark.parametrize("command", ["status", "show", "report", "confirm"])
def test_a_search_that_is_not_there_is_one_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--run", str(tmp_path / "none")]) == 2
    assert "search.json is missing. Start a search with `mtil-tune run`" in capsys.readouterr().err


def _search(folder: Path, objective: str) -> Search:
    asked = SearchRequest(
        data="/data",
        fingerprint="f" * 64,
        config=config_to_dict(presets.cpu()),
        budget=vars(TrialBudget(num_epochs=6)),
        space=["loss"],
        narrowing={},
        objective=objective,
        sampler="random",
        seed=0,
        rule=vars(StoppingRule()),
        storage=None,
        study="of-a-test",
    )
    return create_search(str(folder), asked)


@pytest.fixture(params=["dice", "dice,auc"])
def search(request: pytest.FixtureRequest, tmp_path: Path) -> Search:
    """A search with 12 completed trials and a failed trial."""
    search = _search(tmp_path / "s", request.param)
    study = optuna.create_study(
        study_name="of-a-test",
        storage=studies.open_storage(search.storage),
        directions=["maximize"] * len(search.objective.goals),
    )
    space = spaces.make_space(search.space.base, ["loss"])
    for number in range(13):
        study.sampler = studies.make_sampler("random", 0, number)
        trial = study.ask()
        point = space.suggest(trial)
        if number == 12:
            trial.set_user_attr(studies.CAUSE_ATTRIBUTE, "It does not fit in <memory>: 9 GiB")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            dice = float(point["loss.dice"])
            trial.set_user_attr(studies.FIGURES_ATTRIBUTE, [{"dice": dice, "auc": 1 - dice**2}])
            study.tell(trial, [dice, 1 - dice**2][: len(study.directions)])
    return search


def _run_json(capsys: pytest.CaptureFixture[str], search: Search, *arguments: str) -> Any:
    assert main([*arguments, "--run", search.uri, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_status_names_the_causes(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    result = _run_json(capsys, search, "status")
    assert (result["counts"]["completed"], result["counts"]["failed"]) == (12, 1)
    assert result["ended"] == 12
    assert result["trials"][12]["cause"] == "It does not fit in <memory>: 9 GiB"
    main(["status", "--run", search.uri])
    assert "trial 12 failed: It does not fit in <memory>: 9 GiB" in capsys.readouterr().out


def test_show_has_the_best_and_what_mattered(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    result = _run_json(capsys, search, "show", "--top", "3")
    two = len(search.objective.goals) == 2
    dices = [trial["overrides"]["loss.dice"] for trial in result["best"]]
    assert dices == sorted(dices, reverse=True)
    assert len(dices) == (12 if two else 3)  # every trial is on the front
    for shares in result["importances"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["loss.dice"] > 0
    assert set(result["importances"]) == set(search.objective.names)


def test_an_exported_configuration_is_taken_by_config(
    search: Search, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out" / "best.yaml"
    result = _run_json(capsys, search, "export", "--to", str(to))
    config = presets.load_config(str(to))
    assert config == search.full_config(result["overrides"])
    assert config.loss.dice == result["overrides"]["loss.dice"]
    assert config.train.num_epochs == presets.cpu().train.num_epochs
    other = _run_json(capsys, search, "export", "--to", str(to), "--trial", "3")
    assert other["trial"] == 3
    assert presets.load_config(str(to)).loss.dice == other["overrides"]["loss.dice"]
    assert main(["export", "--run", search.uri, "--to", str(to), "--trial", "12"]) == 2
    assert "trial 12 is failed" in capsys.readouterr().err


def test_the_report_needs_no_network_and_escapes_what_it_quotes(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    _run_json(capsys, search, "report")
    page = search.store.read("report.html").decode()
    assert "<figcaption>Importance: dice</figcaption>" in page
    assert ("<figcaption>Pareto front</figcaption>" in page) == (len(search.objective.goals) == 2)
    assert "It does not fit in &lt;memory&gt;: 9 GiB" in page
    assert re.search(r"<script[^>]*\ssrc=", page) is None
    assert page.count("<svg") >= 5
    assert "https:" not in page
