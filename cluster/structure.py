"""Whether a cluster file has the structure that it must have: schemas, before any rule."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cluster import ec2
from cluster.errors import UsageError
from cluster.files import RENTED

_SCHEMAS = Path(__file__).with_name("schemas.yaml")
"""Of the fields of KubeRay and SkyPilot, with what is said of them where they were read."""


def problems(kind: str, document: dict[str, Any]) -> list[str]:
    """Return what a schema has against a file: Ray's own for what `ray up` reads, else ours."""
    schema = _ours()[kind] if kind in ("kuberay", "skypilot") else _rays()
    if kind == "local":  # Ray takes this key for this provider, and looks at the rest after it
        found = _errors(kind, _ours()[kind], document)
        document = {key: value for key, value in document.items() if key != "min_workers"}
        return found + _errors(kind, schema, document)
    found = _errors(kind, schema, document)
    return found if found or kind not in RENTED else _problems_of_types(kind, document)


def _errors(kind: str, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)
    return [
        f"The file must fit the schema of {kind}, but at `{error.json_path}`: {_told(error)}"
        for error in sorted(validator.iter_errors(document), key=lambda error: error.json_path)
    ]


def _problems_of_types(kind: str, document: dict[str, Any]) -> list[str]:
    """Look at the types of machines, of which Ray's schema says little."""
    required = ("max_workers", "available_node_types", "head_node_type")
    missing = [key for key in required if not document.get(key) and document.get(key) != 0]
    if missing:
        return [f"The file must say {', '.join(missing)}, but does not."]
    types = document["available_node_types"]
    if document["head_node_type"] not in types:
        return [
            "`head_node_type` must be one of `available_node_types`, but is "
            f"{document['head_node_type']}."
        ]
    if kind == "gcp":
        return _errors(kind, _ours()[kind], document)
    return [
        problem
        for name, node_type in types.items()
        for problem in ec2.problems(name, node_type["node_config"])
    ]


def _told(error: jsonschema.ValidationError) -> str:
    message = error.message
    return f"{message if len(message) < 200 else message[:200] + '…'}."


@cache
def _ours() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_SCHEMAS.read_text())
    return {kind: table["definitions"] | table[kind] for kind in table if kind != "definitions"}


def _rays() -> dict[str, Any]:
    found = find_spec("ray")
    if found is None or found.origin is None:
        raise UsageError("Checking needs Ray's schema; run `pip install 'mtil[cluster]'`.")
    path = Path(found.origin).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text())
    return schema
