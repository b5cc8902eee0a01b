"""Templates against the published schemas of SkyPilot and Kubernetes, from a package index."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from cluster.files import ROOT, find_ray_cluster_spec

TEMPLATES = ROOT / "cluster" / "templates"
SKYPILOT, KUBERNETES = "skypilot==0.14.1", "kubernetes-validate==1.37.0"


def _fetched(package: str, folder: Path) -> Path:
    """Unpack a package without dependencies. Skip the test if no index can be reached."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--retries=0", "--target", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"{package} cannot be had here: {done.stderr.strip().splitlines()[-1:]}")
    return folder


@pytest.fixture(scope="module")
def skypilot(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """SkyPilot's schemas of a task and of the task's resources."""
    folder = _fetched(SKYPILOT, tmp_path_factory.mktemp("skypilot"))
    found = subprocess.run(
        [sys.executable, "-c", _SCHEMAS, str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    schemas: dict[str, dict[str, Any]] = json.loads(found.stdout)
    return schemas


# SkyPilot's schema module imports many modules for names in the schemas. A placeholder text
# replaces all names that need SkyPilot's dependencies.
_SCHEMAS = """
import ast, enum, importlib, json, sys, types
from pathlib import Path

root = Path(sys.argv[1])
sys.path.insert(0, str(root))

def package(name):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [str(root / name.replace(".", "/"))]
    return module

class Names(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return "x"

for name in ("sky", "sky.utils", "sky.skylet"):
    package(name)
class Wait(enum.Enum):
    JOBS_AND_SSH, JOBS, NONE = "jobs_and_ssh", "jobs", "none"
    @classmethod
    def supported_modes(cls):
        return [one.value for one in cls]
for name, given in (("autostop_lib", {"AutostopWaitFor": Wait}), ("constants", {})):
    module = sys.modules[f"sky.skylet.{name}"] = Names(name)
    module.__dict__.update(given)
    setattr(sys.modules["sky.skylet"], name, module)
tree = ast.parse((root / "sky/skylet/constants.py").read_text())
for node in tree.body:
    target = getattr(node, "target", None) or (getattr(node, "targets", None) or [None])[0]
    if isinstance(target, ast.Name) and getattr(node, "value", None) is not None:
        try:
            value = ast.literal_eval(node.value)
        except ValueError:
            continue
        setattr(sys.modules["sky.skylet.constants"], target.id, value)
sys.modules["sky.skylet.constants"].ALL_CLOUDS = ("aws", "gcp", "kubernetes")
schemas = importlib.import_module("sky.utils.schemas")
schemas._task_config_schema = dict  # of SkyPilot's own settings, which the template has none of
json_schemas = {"task": schemas.get_task_schema(), "resources": schemas.get_resources_schema()}
print(json.dumps(json_schemas, default=str))
"""


@pytest.fixture(scope="module")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> jsonschema.Draft7Validator:
    """A validator of pod templates by Kubernetes' strict schemas, which reject unknown fields."""
    folder = _fetched(KUBERNETES, tmp_path_factory.mktemp("kubernetes"))
    (schemas,) = folder.glob("kubernetes_validate/kubernetes-json-schema/v1.37*-local-strict")
    definitions = json.loads((schemas / "_definitions.json").read_text())
    registry: Registry[Any] = Registry().with_resource(
        "/api/_definitions.json",
        Resource.from_contents(definitions, default_specification=DRAFT7),
    )
    schema = json.loads((schemas / "podtemplatespec-v1.json").read_text())
    return jsonschema.Draft7Validator(schema, registry=registry)


def _errors(schema: dict[str, Any], value: object) -> list[str]:
    found = jsonschema.Draft7Validator(schema).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def test_the_task_is_one_of_skypilots(skypilot: dict[str, dict[str, Any]]) -> None:
    task = yaml.safe_load((TEMPLATES / "skypilot.yaml").read_text())
    assert _errors(skypilot["task"], task) == []
    assert _errors(skypilot["resources"], task["resources"]) == []
    assert _errors(skypilot["task"], task | {"numnodes": 2})
    assert _errors(skypilot["resources"], task["resources"] | {"accelerator": "L4"})


def test_our_schema_has_the_fields_of_skypilots(skypilot: dict[str, dict[str, Any]]) -> None:
    ours = yaml.safe_load((ROOT / "cluster" / "schemas.yaml").read_text())
    published = {name for name in skypilot["task"]["properties"] if not name.startswith("_")}
    assert ours["skypilot"]["properties"].keys() == published - {"file_mounts_mapping"}
    machines = ours["definitions"]["definitions"]["machines"]["propertyNames"]["enum"]
    published = {name for name in skypilot["resources"]["properties"] if not name.startswith("_")}
    assert set(machines) == published


@pytest.mark.parametrize("name", ["kuberay-cluster", "kuberay-job"])
def test_pods_are_kubernetes_pods(name: str, kubernetes: jsonschema.Draft7Validator) -> None:
    spec = find_ray_cluster_spec(yaml.safe_load((TEMPLATES / f"{name}.yaml").read_text()))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert [error.message for error in kubernetes.iter_errors(group["template"])] == []
        wrong = group["template"] | {"spec": group["template"]["spec"] | {"nodeSelctor": {}}}
        assert list(kubernetes.iter_errors(wrong))
