"""Whether EC2 would take a description of a machine, by botocore's own model of RunInstances."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import boto3
from botocore.model import OperationModel, Shape
from botocore.validate import ParamValidator

_RAYS = {"SubnetIds"}
"""What Ray takes in `node_config` and does not hand on as it is."""
_COUNTS = {"MinCount": 1, "MaxCount": 1}


def problems(name: str, node_config: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each thing of a type of machine that EC2 would refuse."""
    shape = _run_instances().input_shape
    assert shape is not None
    config = {key: value for key, value in node_config.items() if key not in _RAYS}
    report = ParamValidator().validate(_COUNTS | config, shape)
    wrong = report.generate_report().splitlines() if report.has_errors() else []
    for line in wrong or _not_allowed(config, shape):
        yield f"`node_config` of {name} must be as EC2 takes it, but: {line.rstrip('.')}."


def _not_allowed(value: Any, shape: Shape, path: str = "") -> Iterator[str]:
    """Find values that are none of those that EC2 lists for their place."""
    if shape.type_name == "structure":
        for name, member in shape.members.items():  # type: ignore[attr-defined]
            if name in value:
                yield from _not_allowed(value[name], member, f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        for one in value:
            yield from _not_allowed(one, shape.member, path)  # type: ignore[attr-defined]
    elif path != "InstanceType" and value not in (allowed := getattr(shape, "enum", []) or [value]):
        yield f"{path} is {value}, not {' or '.join(allowed)}"


@cache
def _run_instances() -> OperationModel:
    client = boto3.Session().client("ec2", region_name="us-east-1")
    model: OperationModel = client.meta.service_model.operation_model("RunInstances")
    return model
