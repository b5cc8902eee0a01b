"""Validate machine descriptions against botocore's model of EC2's RunInstances."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
from botocore.model import OperationModel, Shape
from botocore.validate import ParamValidator

_RAY_KEYS = {"SubnetIds"}
"""Keys of `node_config` that Ray itself handles."""
# RunInstances requires both; Ray fills them in.
_COUNTS = {"MinCount": 1, "MaxCount": 1}


def check_node_config(name: str, node_config: dict[str, Any]) -> Iterator[str]:
    """Yield an error sentence for each part of a node type that EC2 would refuse."""
    shape = _run_instances().input_shape
    assert shape is not None
    config = {key: value for key, value in node_config.items() if key not in _RAY_KEYS}
    report = ParamValidator().validate(_COUNTS | config, shape)
    errors = report.generate_report().splitlines() if report.has_errors() else []
    for line in errors or _find_invalid_values(config, shape):
        yield f"`node_config` of {name} must be valid for EC2, but: {line.rstrip('.')}."


def _find_invalid_values(value: Any, shape: Shape, path: str = "") -> Iterator[str]:
    """Yield values outside EC2's enumerations."""
    if shape.type_name == "structure":
        for name, member in shape.members.items():  # type: ignore[attr-defined]
            if name in value:
                yield from _find_invalid_values(value[name], member, f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        for item in value:
            yield from _find_invalid_values(item, shape.member, path)  # type: ignore[attr-defined]
    # rules/machines.py checks instance types, by cluster/machine_types.yaml.
    elif path != "InstanceType" and value not in (allowed := getattr(shape, "enum", []) or [value]):
        yield f"{path} is {value}, not {' or '.join(allowed)}"


@cache
def _run_instances() -> OperationModel:
    client = boto3.Session().client("ec2", region_name="us-east-1")
    model: OperationModel = client.meta.service_model.operation_model("RunInstances")
    return model
