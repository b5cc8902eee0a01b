"""Validate the structure of cluster files by schemas, before any rule."""

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from cluster import ec2
from cluster.errors import UsageError
from cluster.files import RENTED_KINDS

_SCHEMAS = Path(__file__).with_name("schemas.yaml")
"""Schemas of the fields of KubeRay and SkyPilot, with their sources."""


def check_structure(kind: str, document: dict[str, Any]) -> list[str]:
    """Return schema violations: by Ray's schema for files of `ray up`, else by schemas.yaml."""
    schema = _load_schemas()[kind] if kind in ("kuberay", "skypilot") else _load_ray_schema()
    if kind == "local":
        errors = _validate(kind, _load_schemas()[kind], document)
        # Ray accepts `min_workers` for this provider, although Ray's schema does not know the key.
        document = {key: value for key, value in document.items() if key != "min_workers"}
        return errors + _validate(kind, schema, document)
    errors = _validate(kind, schema, document)
    return errors if errors or kind not in RENTED_KINDS else _check_node_types(kind, document)


def _validate(kind: str, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)
    return [
        f"The file must fit the schema of {kind}, but at `{error.json_path}`: {_describe(error)}"
        for error in sorted(validator.iter_errors(document), key=lambda error: error.json_path)
    ]


def _check_node_types(kind: str, document: dict[str, Any]) -> list[str]:
    """Return problems of `available_node_types`, which Ray's schema hardly checks."""
    required = ("max_workers", "available_node_types", "head_node_type")
    missing = [key for key in required if not document.get(key) and document.get(key) != 0]
    if missing:
        return [f"The file must have {', '.join(missing)}, but does not."]
    types = document["available_node_types"]
    if document["head_node_type"] not in types:
        return [
            "`head_node_type` must be one of `available_node_types`, but is "
            f"{document['head_node_type']}."
        ]
    if kind == "gcp":
        return _validate(kind, _load_schemas()[kind], document)
    return [
        problem
        for name, node_type in types.items()
        for problem in ec2.check_node_config(name, node_type["node_config"])
    ]


def _describe(error: jsonschema.ValidationError) -> str:
    message = error.message
    return f"{message if len(message) < 200 else message[:200] + '…'}."


@cache
def _load_schemas() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_SCHEMAS.read_text())
    return {kind: table["definitions"] | table[kind] for kind in table if kind != "definitions"}


def _load_ray_schema() -> dict[str, Any]:
    spec = find_spec("ray")
    if spec is None or spec.origin is None:
        raise UsageError("The check needs Ray's schema; run `pip install 'mtil[cluster]'`.")
    path = Path(spec.origin).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text())
    return schema
