"""The commands: arguments, output streams and exit codes."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mtil import __version__
from mtil.cli import main
from mtil.config import describe_config_keys
from tests.unit.commands import Fails, process

pytestmark = pytest.mark.usefixtures("signals")

COMMANDS = (
    "phantom", "download", "prepare", "inspect", "train", "circle", "status", "stop", "gc",
    "evaluate", "predict", "doctor",
)  # fmt: skip
HEAVY = (
    "torch",
    "ray",
    "numpy",
    "pyarrow",
    "scipy",
    "sklearn",
    "pandas",
    "boto3",
    "PIL",
    "pydantic",
)

# Help and import time


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_no_failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    if arguments == ["--help"]:
        assert all(f"    {name} " in out for name in COMMANDS)
    else:
        assert out.startswith(f"usage: mtil {arguments[0]} ")
        assert "--json" in out


def test_help_needs_nothing_heavy() -> None:
    code = f"""
import sys
from mtil.cli import main
for words in (["--help"], *([name, "--help"] for name in {COMMANDS})):
    try:
        main(words)
    except SystemExit as ended:
        assert not ended.code
found = [name for name in {HEAVY} if name in sys.modules]
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = process("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


_NETWORK = ("torch", "kornia", "scipy", "sklearn")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "others"),
    [
        ("mtil.cli.views.circles", ("ray", "pandas")),
        ("tune.commands", ("ray", "pandas")),
        ("mtil.distributed.circle.coordinator", ("ray.data", "ray.train", "pandas")),
        ("mtil.distributed.circle.actions", ("ray", "pandas")),
        ("mtil.distributed.prediction.scoring", ("ray.train",)),
        ("mtil.distributed.prediction.map_writing", ("ray.train",)),
        ("mtil.distributed.data.resident", ("ray.data", "ray.train", "pandas")),
        ("mtil.distributed.training.trainer", ()),
        ("tune.search", ()),
    ],
)
def test_what_tells_or_schedules_loads_no_network(module: str, others: tuple[str, ...]) -> None:
    """Networks and unused parts of Ray take seconds to import, in every cluster process."""
    code = f"""
import sys
import {module}
found = [name for name in {_NETWORK + others} if name in sys.modules]
sys.exit(f"imported: {{found}}" if found else 0)
"""
    done = process("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_module_is_the_command() -> None:
    done = process("-m", "mtil", "--version")
    assert (done.returncode, done.stdout) == (0, f"mtil {__version__}\n")
    done = process("-m", "mtil", "nonsense")
    assert done.returncode == 2
    assert done.stdout == ""


def test_the_keys_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--keys"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [name for name, _, _ in describe_config_keys()]


# Wrong arguments


def test_a_command_is_needed_and_must_be_known(fails: Fails) -> None:
    assert "COMMAND" in fails()
    sentence = fails("nonsense")
    assert "'nonsense'" in sentence
    assert all(name in sentence for name in COMMANDS)
    assert "COMMAND" in fails("--json")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["phantom"], "required: OUT; see `mtil phantom --help`"),
        (
            ["phantom", "out", "--sed", "1"],
            "`mtil phantom` has no option '--sed'; see its `--help`",
        ),
        (["phantom", "out", "other"], "has no option 'other'"),
        (["phantom", "out", "--num-images", "many"], "--num-images: invalid int value: 'many'"),
        (["prepare", "in", "--layout", "busi"], "required: --to"),
        (["prepare", "in", "--to", "x", "--layout", "y"], "invalid choice: 'y'"),
        (["prepare", "in", "--to", "x", "--lay", "busi"], "required: --layout"),  # no abbreviations
        (["train", "--run", "r"], "required: --data"),
        (["evaluate"], "required: --run"),
        (["predict", "model.pt"], "required: INPUT, OUT"),
        (["doctor", "--train.num-epochs", "3"], "has no option '--train.num-epochs'"),
    ],
)
def test_wrong_options_are_one_sentence(
    arguments: list[str],
    expected: str,
    fails: Fails,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in fails(*arguments)
    assert list(tmp_path.iterdir()) == []


# Overrides


@pytest.fixture
def asked(fails: Fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the error of `mtil train` with overrides. Without data, the command always fails."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: fails("train", "--data", "d", "--run", "r", *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seed", "-3"], "`seed` is wrong: .* but got -3."),
        (["--seed=-3"], "`seed` is wrong: .* but got -3."),
        (["--train.learning-rate", "-1e-3"], r"`train\.learning_rate` .* but got -0\.001\."),
        (["--train.learning-rate=-.5"], r"`train\.learning_rate` .* but got -0\.5\."),
        (["--train.num-epochs", "two words"], r"`train\.num_epochs` .* but got 'two words'"),
        (["--model.encoder.name=a=b", "--sed=1"], "`sed` is not a configuration key"),
        (["--train.num_epoch", "3"], r"did you mean `train\.num_epochs`"),
        (["--seed", "4", "--seed", "-5"], "but got -5"),  # the last value counts
        (["--seed", "-5", "--seed", "4", "--sed=1"], "`sed` is not"),
        (["--train.num-workers", "17"], r"at least .* 16 for 17 workers"),
        (["--config", "cpu", "--train.num-workers", "20"], r"at least .* 16 for 20 workers"),
        (["--seed"], "`--seed` must be followed by a value, but nothing follows"),
        (["--data.normals", "--seed", "3"], "`--data.normals` must be followed by a value, but"),
        (["seed", "3"], "must look like `--train.num-epochs 5`, but got 'seed'"),
        (["-seed", "3"], "must look like `--train.num-epochs 5`, but got '-seed'"),
        (["--seed", "3", "4"], "must look like `--train.num-epochs 5`, but got '4'"),
        (["--config", "nonsense"], "demo, cpu, best, base or a YAML file, but got 'nonsense'"),
        (["--config", "none.yaml"], r"none\.yaml does not exist"),
    ],
)
def test_overrides_are_read_as_they_are_typed(
    words: list[str], expected: str, asked: Callable[..., str]
) -> None:
    assert re.search(expected, asked(*words))


def test_good_overrides_get_as_far_as_the_data(asked: Callable[..., str]) -> None:
    sentence = asked(
        "--train.num-epochs", "3", "--train.learning_rate=1e-4", "--model.baseline", "true",
        "--model.attention.levels", "[8, 16]", "--train.cpus-per-worker=null",
    )  # fmt: skip
    assert "must have a dataset.json, but " in sentence


# Requirements of a command


def test_without_ray_one_sentence_names_the_extra(
    fails: Fails, data_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("mtil.distributed.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    sentence = fails("train", "--config", "demo", "--data", data_uri, "--run", tmp_path / "run")
    assert sentence == "This command needs `ray`; run `pip install 'mtil[ray]'`, or add `--local`."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model.encoder.name", "vgg"], "must be one of efficientnet_lite0, .* but got 'vgg'"),
        (["--train.batch-size", "5000"], "must fill a batch of 5000 images, but fold 0 "),
    ],
)
@pytest.mark.parametrize("command", ["train", "circle"])
def test_what_cannot_be_trained_is_told_without_ray(
    fails: Fails,
    data_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    words: list[str],
    says: str,
) -> None:
    for name in [name for name in sys.modules if name.startswith("mtil.distributed")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert re.search(says, fails(command, "--data", data_uri, "--run", tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_a_missing_module_of_ours_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mtil.prediction.images", None)
    with pytest.raises(ModuleNotFoundError, match=r"mtil\.prediction\.images"):
        main(["predict", "m", "i", "o"])


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["--fold", "3"], "3"),
        (["--folds", "0,9"], "9"),
        (["--fold=-1"], "-1"),
        (["--fold=x"], "'x'"),
    ],
)
@pytest.mark.parametrize("command", ["train", "circle"])
def test_folds_are_checked_before_anything_starts(
    fails: Fails, data_uri: str, tmp_path: Path, words: list[str], got: str, command: str
) -> None:
    sentence = fails(command, "--data", data_uri, "--run", tmp_path / "run", *words)
    assert re.search(f"[Ff]olds? must be .*, but got {got}", sentence)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "circle"])
def test_a_version_must_be_there(fails: Fails, data_uri: str, tmp_path: Path, command: str) -> None:
    words = ("--data", data_uri, "--run", tmp_path / "run", "--data-version", "2")
    assert fails(command, *words).startswith("A version must be one of 1 to 1 of ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "circle"])
def test_the_holdout_is_not_trained(
    fails: Fails, data_uri: str, tmp_path: Path, command: str
) -> None:
    words = ("--data", data_uri, "--run", tmp_path / "run", "--fold", "holdout")
    assert "Cannot train on the holdout" in fails(command, *words)
    assert not (tmp_path / "run").exists()


def test_a_circle_of_a_chain_needs_stored_maps(fails: Fails, data_uri: str, tmp_path: Path) -> None:
    words = ("--data", data_uri, "--run", tmp_path / "run", "--circle.maps", "recycle")
    sentence = fails("circle", *words, "--circle.test", "chain")
    assert "`circle.test` must be passes, but is chain" in sentence
