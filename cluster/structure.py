"""Whether a cluster file has the structure that it must have: schemas, before any rule."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema

from cluster.errors import UsageError

_TEMPLATE = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "required": ["containers"],
            "properties": {
                "containers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {"type": "object", "required": ["name", "image"]},
                }
            },
        }
    },
}
_CLUSTER_SPEC = {
    "type": "object",
    "required": ["headGroupSpec", "workerGroupSpecs"],
    "properties": {
        "rayVersion": {"type": "string"},
        "enableInTreeAutoscaling": {"type": "boolean"},
        "authOptions": {
            "type": "object",
            "properties": {"mode": {"enum": ["disabled", "token"]}},
        },
        "autoscalerOptions": {
            "type": "object",
            "properties": {
                "idleTimeoutSeconds": {"type": "integer", "minimum": 0},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
            },
        },
        "headGroupSpec": {
            "type": "object",
            "required": ["rayStartParams", "template"],
            "properties": {
                "rayStartParams": {"additionalProperties": {"type": "string"}},
                "template": _TEMPLATE,
            },
        },
        "workerGroupSpecs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "groupName", "minReplicas", "maxReplicas", "rayStartParams", "template",
                ],
                "properties": {
                    "groupName": {"type": "string"},
                    "replicas": {"type": "integer", "minimum": 0},
                    "minReplicas": {"type": "integer", "minimum": 0},
                    "maxReplicas": {"type": "integer", "minimum": 0},
                    "rayStartParams": {"additionalProperties": {"type": "string"}},
                    "template": _TEMPLATE,
                },
            },
        },
    },
}  # fmt: skip
_KUBERAY: dict[str, Any] = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"enum": ["RayCluster", "RayJob"]},
        "metadata": {"type": "object", "required": ["name"]},
    },
    "if": {"properties": {"kind": {"const": "RayJob"}}},
    "then": {
        "properties": {
            "spec": {
                "type": "object",
                "required": ["entrypoint", "rayClusterSpec"],
                "properties": {
                    "entrypoint": {"type": "string"},
                    "shutdownAfterJobFinishes": {"type": "boolean"},
                    "rayClusterSpec": _CLUSTER_SPEC,
                },
            }
        }
    },
    "else": {"properties": {"spec": _CLUSTER_SPEC}},
}
_SKYPILOT: dict[str, Any] = {
    "type": "object",
    "required": ["resources", "setup", "run"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string"},
        "workdir": {"type": "string"},
        "num_nodes": {"type": "integer", "minimum": 1},
        "resources": {"type": "object"},
        "envs": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
        "secrets": {"type": "object"},
        "file_mounts": {"type": "object"},
        "config": {"type": "object"},
        "setup": {"type": "string"},
        "run": {"type": "string"},
    },
}


def problems(kind: str, document: dict[str, Any]) -> list[str]:
    """Return what a schema has against a file: Ray's own for what `ray up` reads, else ours."""
    schema = {"kuberay": _KUBERAY, "skypilot": _SKYPILOT}.get(kind) or _rays()
    if kind == "local":  # Ray takes this key for this provider, and looks at the rest after it
        document = {key: value for key, value in document.items() if key != "min_workers"}
    validator = jsonschema.Draft7Validator(schema)
    found = [
        f"The file must fit the schema of {kind}, but at `{error.json_path}`: {_told(error)}"
        for error in sorted(validator.iter_errors(document), key=lambda error: error.json_path)
    ]
    if kind in ("aws", "gcp"):
        required = ("max_workers", "available_node_types", "head_node_type")
        missing = [key for key in required if key not in document]
        if missing:
            found.append(f"The file must say {', '.join(missing)}, but does not.")
        elif document["head_node_type"] not in document["available_node_types"]:
            found.append(
                "`head_node_type` must be one of `available_node_types`, but is "
                f"{document['head_node_type']}."
            )
    return found


def _told(error: jsonschema.ValidationError) -> str:
    message = error.message
    return f"{message if len(message) < 200 else message[:200] + '…'}."


def _rays() -> dict[str, Any]:
    found = find_spec("ray")
    if found is None or found.origin is None:
        raise UsageError("Checking needs Ray's schema; run `pip install 'mtil[cluster]'`.")
    path = Path(found.origin).parent / "autoscaler" / "ray-schema.json"
    schema: dict[str, Any] = json.loads(path.read_text())
    return schema
