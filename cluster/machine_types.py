"""What the machines of a cloud have, from `machine_types.yaml`, and which GPUs there are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray.util.accelerators
import yaml

from cluster.files import ClusterFile, Group

_FILE = Path(__file__).with_name("machine_types.yaml")
_CUSTOM = re.compile(r"^(?:(?:e2|n2|n2d|n4)-)?custom-(\d+)-\d+(?:-ext)?$")


@dataclass(frozen=True)
class Machine:
    """A type of machine."""

    type: str
    cpus: int
    gpus: int = 0
    accelerator: str | None = None


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    return table


@cache
def machines() -> dict[tuple[str, str], Machine]:
    """Return the types of machines that are known, by cloud and name."""
    return {
        (cloud, machine.type): machine
        for cloud in ("aws", "gcp")
        for family, row in _table()[cloud]["families"].items()
        for machine in _family(cloud, family, row)
    }


def _family(cloud: str, family: str, row: dict[str, Any]) -> Iterator[Machine]:
    for size, has in row["sizes"].items():
        cpus, gpus = has if isinstance(has, list) else (has, 0)
        name = f"{family}{'.' if cloud == 'aws' else '-'}{size}"
        yield Machine(name, cpus, gpus, row.get("gpu"))


def machine(file: ClusterFile, group: Group) -> Machine | None:
    """Return what is known of a group's type of machine, with the GPUs that the file adds to it."""
    name = group.machine or ""
    clouds = ("aws", "gcp") if file.kind == "skypilot" else (file.kind,)
    found = next((machines()[cloud, name] for cloud in clouds if (cloud, name) in machines()), None)
    custom = _CUSTOM.match(name)
    if found is None and "gcp" in clouds and custom:
        found = Machine(name, int(custom[1]))
    if found is None or file.kind != "gcp":
        return found
    for kind, count in added(file, group):
        found = Machine(name, found.cpus, count, _table()["gpus"]["google"].get(kind))
    return found


def added(file: ClusterFile, group: Group) -> Iterator[tuple[str, int]]:
    """Yield the GPUs that a file for Google adds to a machine, by Google's name."""
    config = file.document["available_node_types"][group.name]["node_config"]
    for one in config.get("guestAccelerators") or []:
        yield str(one.get("acceleratorType", "")).rpartition("/")[2], one.get("acceleratorCount", 1)


def is_accelerator(name: str) -> bool:
    """Say whether there is a GPU of that name, as Ray, SkyPilot or Google call it."""
    rays = {value for key, value in vars(ray.util.accelerators).items() if key.isupper()}
    gpus = _table()["gpus"]
    return name.lower() in {one.lower() for one in (*rays, *gpus["skypilot"], *gpus["google"])}
