"""An installation has a core without Ray, two commands and consistent versions."""

import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mtil
import tune

ROOT = Path(mtil.__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def _without_ray(code: str) -> "subprocess.CompletedProcess[str]":
    """Run a program in a process where `import ray` fails."""
    hidden = f"import sys\nsys.modules['ray'] = None\n{code}"
    return subprocess.run(
        [sys.executable, "-c", hidden], capture_output=True, text=True, check=False
    )


TRAINING_STEP = """
import numpy as np
import torch
from mtil.config import config_from_dict
from mtil.data.dataset.batches import Batch
from mtil.training.engine import TrainingEngine

torch.set_num_threads(1)
config = config_from_dict(
    {
        "data": {"image_size": 32},
        "model": {"encoder": {"pretrained": False}, "decoder_channels": [4, 4, 4, 4]},
    }
)
engine = TrainingEngine(config, steps_per_epoch=1, malignant_share=0.5, device=torch.device("cpu"))
rng = np.random.default_rng(0)
batch = Batch(
    sample_id=["a", "b"],
    image=rng.integers(0, 256, (2, 32, 32), np.uint8),
    mask=rng.integers(0, 256, (2, 128), np.uint8),
    label=np.array([0, 1]),
)
(step,) = engine.train_epoch([batch], epoch=0)
print(all(bool(term > 0) for term in step.terms.values()), len(engine.validate([batch])))
engine.restore(engine.state())
compiler = [name for name in ("torch._dynamo", "torch._inductor") if name in sys.modules]
print("compiler:", *compiler)
"""


@pytest.mark.slow
def test_the_core_imports_and_trains_without_ray() -> None:
    """PyTorch's compiler is not loaded: the import would take longer than PyTorch's."""
    names = [
        module.name
        for module in pkgutil.walk_packages(mtil.__path__, "mtil.")
        if not module.name.startswith("mtil.distributed.")
    ]
    assert len(names) > 40
    assert {
        "mtil.training.engine",
        "mtil.cli.commands.train",
        "mtil.models.encoders.huggingface",
    } <= set(names)
    imports = f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
    done = _without_ray(imports + TRAINING_STEP)
    assert (done.stderr, done.stdout) == ("", "True 2\ncompiler:\n")


def test_the_ray_layer_does_need_ray() -> None:
    done = _without_ray("import mtil.distributed.training.trainer")
    assert "ModuleNotFoundError: import of ray halted" in done.stderr


def test_the_commands_are_there(project: dict[str, Any]) -> None:
    scripts = project["project"]["scripts"]
    assert scripts.keys() == {"mtil", "mtil-tune"}  # `tune` is Ray's command
    for target in scripts.values():
        module, _, name = target.partition(":")
        assert callable(getattr(import_module(module), name))
    found = metadata.distribution("mtil").entry_points.select(group="console_scripts")
    assert {entry.name: entry.value for entry in found} == scripts


def test_the_packages_are_those_of_one_wheel(project: dict[str, Any]) -> None:
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert packages == ["mtil", "tune"]
    assert Path(tune.__file__).parents[1] == ROOT
    for package in packages:
        assert (ROOT / package / "__init__.py").is_file()


def test_versions_agree(project: dict[str, Any]) -> None:
    assert project["tool"]["hatch"]["version"]["path"] == "mtil/__init__.py"
    assert metadata.version("mtil") == mtil.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", mtil.__version__)
    newest = re.search(r"^## \[?(\S+?)\]?(\s|$)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] in (mtil.__version__, "Unreleased")


def _lines(project: dict[str, Any]) -> list[str]:
    """Return the direct requirements of `make install`: core, extras and the groups of `dev`."""
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    makefile = (ROOT / "Makefile").read_text()
    (chosen,) = re.findall(r"\$\(PIP\) --editable '\.\[(.+?)\]'$", makefile, re.MULTILINE)
    assert re.findall(r"\$\(PIP\) --group (\w+)$", makefile, re.MULTILINE) == ["dev"]
    lines = [*project["project"]["dependencies"]]
    for name in chosen.split(","):
        lines += extras[name]
    for entry in groups["dev"]:
        lines += groups[entry["include-group"]]
    return lines


def test_every_direct_dependency_is_pinned_within_its_bounds(project: dict[str, Any]) -> None:
    text = (ROOT / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in pins.items()}
    needs = [Requirement(line) for line in _lines(project)]
    assert len({need.name for need in needs}) > 25
    for need in needs:
        if need.name != "mtil":
            assert canonicalize_name(need.name) in pinned, f"{need.name} is not pinned"
            assert need.specifier.contains(pinned[canonicalize_name(need.name)]), str(need)


def test_constraints_are_pins_and_nothing_else() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for line in lines:
        assert re.fullmatch(r"#.*|[\w.-]+==[\w.!+]+", line), line
    names = [canonicalize_name(line.partition("==")[0]) for line in lines if line[0] != "#"]
    assert len(names) == len(set(names))
