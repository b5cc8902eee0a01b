"""CPUs and GPUs of cloud machine types, from `machine_types.yaml`, and names of GPUs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ray.util.accelerators
import yaml

from cluster.files import ClusterFile, MachineGroup

_FILE = Path(__file__).with_name("machine_types.yaml")
# Google's custom machine types state their CPUs in the name.
_CUSTOM_TYPE = re.compile(r"^(?:(?:e2|n2|n2d|n4)-)?custom-(\d+)-\d+(?:-ext)?$")


@dataclass(frozen=True)
class MachineType:
    """A machine type of a cloud."""

    type: str
    cpus: int
    gpus: int = 0
    accelerator: str | None = None


@cache
def _load_table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(_FILE.read_text())
    return table


@cache
def load_machine_types() -> dict[tuple[str, str], MachineType]:
    """Return all known machine types by cloud and name."""
    return {
        (cloud, machine.type): machine
        for cloud in ("aws", "gcp")
        for family, row in _load_table()[cloud]["families"].items()
        for machine in _parse_family(cloud, family, row)
    }


def _parse_family(cloud: str, family: str, row: dict[str, Any]) -> Iterator[MachineType]:
    for size, entry in row["sizes"].items():
        cpus, gpus = entry if isinstance(entry, list) else (entry, 0)
        name = f"{family}{'.' if cloud == 'aws' else '-'}{size}"
        yield MachineType(name, cpus, gpus, row.get("gpu"))


def find_machine_type(file: ClusterFile, group: MachineGroup) -> MachineType | None:
    """Return a group's machine type with GPUs added by the file, or None for an unknown type."""
    name = group.machine or ""
    clouds = ("aws", "gcp") if file.kind == "skypilot" else (file.kind,)
    known = next(
        (
            load_machine_types()[cloud, name]
            for cloud in clouds
            if (cloud, name) in load_machine_types()
        ),
        None,
    )
    custom = _CUSTOM_TYPE.match(name)
    if known is None and "gcp" in clouds and custom:
        known = MachineType(name, int(custom[1]))
    if known is None or file.kind != "gcp":
        return known
    for kind, count in list_added_gpus(file, group):
        known = MachineType(name, known.cpus, count, _load_table()["gpus"]["google"].get(kind))
    return known


def list_added_gpus(file: ClusterFile, group: MachineGroup) -> Iterator[tuple[str, int]]:
    """Yield Google's names and counts of the GPUs added to a group's machines."""
    config = file.document["available_node_types"][group.name]["node_config"]
    for gpu in config.get("guestAccelerators") or []:
        yield str(gpu.get("acceleratorType", "")).rpartition("/")[2], gpu.get("acceleratorCount", 1)


def is_known_gpu(name: str) -> bool:
    """Return whether Ray, SkyPilot or Google know a GPU by the name."""
    ray_names = {value for key, value in vars(ray.util.accelerators).items() if key.isupper()}
    gpus = _load_table()["gpus"]
    return name.lower() in {gpu.lower() for gpu in (*ray_names, *gpus["skypilot"], *gpus["google"])}
