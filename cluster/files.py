"""Cluster files of five kinds, read into one form that rules and prices work on.

A file of Ray's cluster launcher (`ray up`) is for AWS, GCP or machines that are there (`local`);
others are KubeRay's and SkyPilot's.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import reading
from cluster.errors import UsageError

ROOT = Path(__file__).parents[1]
"""The checkout, which paths in a file are relative to."""

LAUNCHED = ("aws", "gcp", "local")
"""Kinds that `ray up` starts."""

RENTED = ("aws", "gcp")
"""Kinds whose machines come from a cloud when they are asked for."""

TOKEN_MODE = "RAY_AUTH_MODE=token"
"""What has Ray ask for a token; set before Ray is imported, or it is not seen."""

_UNITS = {"": 1.0, "m": 1e-3}
UNLIMITED = 2**31 - 1
"""Workers of a group of KubeRay's that does not say how many there may be."""
_DEFAULTS = {"replicas": 0, "minReplicas": 0, "maxReplicas": UNLIMITED}
"""Of a group of workers, by the definition of KubeRay's resources (ray.io/v1)."""
_SELECTORS = ("ray.io/accelerator-type", "cloud.google.com/gke-accelerator")


@dataclass(frozen=True)
class Group:
    """Machines of one kind within a cluster; None stands for what the file does not say."""

    name: str
    is_head: bool
    machine: str | None = None
    """What a cloud calls the type, such as `g6.xlarge`."""
    cpus: float | None = None
    gpus: float | None = None
    accelerators: tuple[str, ...] = ()
    """What the GPUs may be, each of them enough."""
    smallest: int = 0
    largest: int = 1
    spot: bool = False
    image: str | None = None
    setup: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    """Commands that start Ray, in order."""
    variables: tuple[tuple[str, str], ...] = ()
    """Set by the file for every command."""


@dataclass(frozen=True)
class ClusterFile:
    """A cluster file; `document` is what YAML says, without any defaults."""

    path: Path
    kind: str
    document: dict[str, Any]
    groups: tuple[Group, ...]
    region: str | None = None
    max_workers: int | None = None

    @property
    def head(self) -> Group:
        """The machine that the others report to."""
        return next(group for group in self.groups if group.is_head)

    @property
    def workers(self) -> tuple[Group, ...]:
        """All groups but the head's."""
        return tuple(group for group in self.groups if not group.is_head)


def load(path: Path) -> tuple[str, dict[str, Any]]:
    """Return a file's kind and content, of which only the kind has been looked at.

    KubeRay's files may have other objects of Kubernetes beside the one of Ray's.

    Raises:
        UsageError: if it cannot be read, or is no cluster file.
    """
    documents = reading.read(path)
    found = [(kind, one) for one in documents if (kind := _kind(one)) is not None]
    rays = [_without_nulls(one) for kind, one in found if kind == "kuberay"]
    machines = [one for one in rays if not _is_guest(one)]
    if rays and not machines:
        raise UsageError(
            f"A file must say which machines a cluster has, but the job of {path} runs on the "
            "cluster that its `clusterSelector` names; check that cluster's file."
        )
    rays = machines
    if len(rays) == 1:
        return "kuberay", rays[0]
    if len(rays) > 1:
        told = ", ".join(f"{one.get('kind')} {_name(one)}" for one in rays)
        raise UsageError(
            f"A file must have one object of Ray's, but {path} has {len(rays)} ({told}); check "
            "each in a file of its own."
        )
    if not found:
        what = "is none of these" if len(documents) == 1 else "has none of these"
        raise UsageError(
            "A cluster file must have a `provider.type` of aws, gcp or local, or be KubeRay's or "
            f"SkyPilot's, but {path} {what}; start from one in cluster/templates."
        )
    if len(documents) > 1:
        raise UsageError(
            f"A cluster file of the kind {found[0][0]} must be one YAML document, but {path} has "
            f"{len(documents)}; only KubeRay's may have more."
        )
    return found[0]


def _kind(document: Any) -> str | None:
    """Return whose file a document is, if it is one of a cluster."""
    if not isinstance(document, dict):
        return None
    if str(document.get("apiVersion", "")).startswith("ray.io/"):
        return "kuberay"
    provider = document.get("provider")
    if isinstance(provider, dict):
        return provider["type"] if provider.get("type") in LAUNCHED else None
    return "skypilot" if "run" in document else None


def _without_nulls(node: Any) -> Any:
    """Return a document as Kubernetes takes it: a field that is null is not there."""
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(one) for one in node] if isinstance(node, list) else node


def _is_guest(document: dict[str, Any]) -> bool:
    """Say whether a job of KubeRay's runs on a cluster that is there already."""
    spec = document.get("spec")
    return isinstance(spec, dict) and "clusterSelector" in spec and "rayClusterSpec" not in spec


def _name(document: dict[str, Any]) -> object:
    metadata = document.get("metadata")
    return metadata.get("name") if isinstance(metadata, dict) else None


def parse(path: Path, kind: str, document: dict[str, Any]) -> ClusterFile:
    """Bring a file whose structure has been checked into the common form."""
    if kind == "kuberay":
        return _kuberay(path, document)
    if kind == "skypilot":
        return _skypilot(path, document)
    return _local(path, document) if kind == "local" else _cloud(path, kind, document)


def machines(path: Path) -> str | None:
    """Return which machines a cluster can have beside its head, as jobs are told it in JSON.

    None where the file does not say what they have: there, what counts is what is there.

    Raises:
        UsageError: if the file is none.
    """
    return machines_of(parse(path, *load(path)))


def machines_of(file: ClusterFile) -> str | None:
    """Return the same of a file that has been read."""
    kinds = [
        {"cpus": group.cpus, "gpus": group.gpus, "most": group.largest} for group in file.workers
    ]
    if not kinds or any(kind["cpus"] is None or kind["gpus"] is None for kind in kinds):
        return None
    most = file.max_workers
    if most is None:
        most = sum(group.largest for group in file.workers)
    return json.dumps({"most": most, "kinds": kinds})


def scalars(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value that is neither a list nor a mapping, with its path such as `a.b[0]`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from scalars(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from scalars(value, f"{key}[{index}]")
    else:
        yield key, node


def _commands(document: dict[str, Any], role: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    setup = [*document.get("setup_commands", []), *document.get(f"{role}_setup_commands", [])]
    return tuple(setup), tuple(document.get(f"{role}_start_ray_commands", []))


def _cloud(path: Path, kind: str, document: dict[str, Any]) -> ClusterFile:
    groups = []
    for name, node_type in document["available_node_types"].items():
        is_head = name == document["head_node_type"]
        role = "head" if is_head else "worker"
        config, resources = node_type["node_config"], node_type["resources"]
        setup, start = _commands(document, role)
        docker = document.get("docker", {}) | node_type.get("docker", {})
        image = docker.get(f"{role}_image") or docker.get("image")
        groups.append(
            Group(
                name=name,
                is_head=is_head,
                machine=config.get("InstanceType" if kind == "aws" else "machineType"),
                cpus=resources.get("CPU"),
                gpus=resources.get("GPU"),
                accelerators=tuple(
                    key.partition(":")[2]
                    for key in resources
                    if key.startswith("accelerator_type:")
                ),
                smallest=1 if is_head else node_type.get("min_workers", 0),
                largest=1 if is_head else node_type.get("max_workers", document["max_workers"]),
                spot=_is_spot(config),
                image=image or _machine_image(kind, config),
                setup=setup + tuple(node_type.get("worker_setup_commands", [])),
                start=start,
            )
        )
    region, most = document["provider"].get("region"), document.get("max_workers")
    return ClusterFile(path, kind, document, tuple(groups), region, most)


def _is_spot(config: dict[str, Any]) -> bool:
    """Say whether machines are spot ones; GCP's `scheduling` may be a list of one-key mappings."""
    said = {key.rpartition(".")[2]: value for key, value in scalars(config)}
    return (
        said.get("MarketType") == "spot"
        or said.get("provisioningModel") == "SPOT"
        or said.get("preemptible") is True
    )


def _machine_image(kind: str, config: dict[str, Any]) -> str | None:
    if kind == "aws":
        return config.get("ImageId")
    disks = [disk for disk in config.get("disks", []) if disk.get("boot")]
    return disks[0].get("initializeParams", {}).get("sourceImage") if disks else None


def _local(path: Path, document: dict[str, Any]) -> ClusterFile:
    hosts = len(document["provider"].get("worker_ips", []))
    setup, start = _commands(document, "head")
    head = Group(name="head", is_head=True, smallest=1, setup=setup, start=start)
    setup, start = _commands(document, "worker")
    smallest, largest = document.get("min_workers", hosts), document.get("max_workers", hosts)
    workers = Group(
        name="workers", is_head=False, smallest=smallest, largest=largest, setup=setup, start=start
    )
    return ClusterFile(path, "local", document, (head, workers), None, largest)


def _kuberay(path: Path, document: dict[str, Any]) -> ClusterFile:
    spec = ray_cluster_spec(document)
    groups = [_pods(spec["headGroupSpec"], "head", is_head=True)]
    groups += [_pods(group, group["groupName"], is_head=False) for group in worker_groups(document)]
    return ClusterFile(path, "kuberay", document, tuple(groups))


def ray_cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of the cluster of any object of KubeRay's."""
    job = job_spec(document)
    spec: dict[str, Any] = document["spec"]
    if job is not None:
        spec = job["rayClusterSpec"]
    return spec["rayClusterConfig"] if document["kind"] == "RayService" else spec


def job_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the spec of the job of a `RayJob` or a `RayCronJob`; None if it is neither."""
    spec: dict[str, Any] = document.get("spec", {})
    if document.get("kind") == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec if document.get("kind") in ("RayJob", "RayCronJob") else None


def job_key(document: dict[str, Any]) -> str:
    """Return where the spec of the job is in a `RayJob` or a `RayCronJob`."""
    return "spec.jobTemplate" if document.get("kind") == "RayCronJob" else "spec"


def worker_groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of workers of an object of KubeRay's, with what Kubernetes fills in."""
    groups: list[dict[str, Any]] = ray_cluster_spec(document).get("workerGroupSpecs", [])
    return [_DEFAULTS | group for group in groups]


def _pods(group: dict[str, Any], name: str, *, is_head: bool) -> Group:
    container = group["template"]["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}
    told = group.get("rayStartParams") or {}
    cpus = told.get("num-cpus", limits.get("cpu"))
    selector = group["template"]["spec"].get("nodeSelector") or {}
    named = [selector.get(key) for key in _SELECTORS]
    return Group(
        name=name,
        is_head=is_head,
        cpus=None if cpus is None else _quantity(cpus),
        gpus=_quantity(told.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        accelerators=tuple(str(name) for name in named if name is not None),
        smallest=1 if is_head else group["minReplicas"],
        largest=1 if is_head else group["maxReplicas"],
        image=container["image"],
        variables=tuple(
            (one["name"], str(one["value"])) for one in container.get("env") or [] if "value" in one
        ),
    )


def _quantity(value: Any) -> float:
    """Read Kubernetes' way of writing numbers of CPUs, such as `500m`."""
    found = re.fullmatch(r"([\d.]+)(m?)", str(value))
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def _skypilot(path: Path, document: dict[str, Any]) -> ClusterFile:
    resources = document.get("resources", {})
    choices = [resources, *resources.get("any_of", []), *resources.get("ordered", [])]
    wanted = [pair for choice in choices for pair in _wanted(choice.get("accelerators"))]
    cpus = re.match(r"[\d.]+", str(resources.get("cpus", "")))
    nodes = document.get("num_nodes", 1)
    envs = document.get("envs") or {}
    head = Group(
        name="head",
        is_head=True,
        machine=resources.get("instance_type"),
        cpus=float(cpus[0]) if cpus else None,
        gpus=max((count for _, count in wanted), default=0.0),
        accelerators=tuple(name for name, _ in wanted),
        smallest=1,
        spot=bool(resources.get("use_spot", False)),
        image=resources.get("image_id"),
        setup=(str(document.get("setup", "")),),
        start=(str(document["run"]),),
        variables=tuple((name, str(value)) for name, value in envs.items() if value is not None),
    )
    groups = [head]
    if nodes > 1:
        rest = {"name": "workers", "is_head": False, "smallest": nodes - 1, "largest": nodes - 1}
        groups.append(Group(**{**vars(head), **rest}))
    return ClusterFile(path, "skypilot", document, tuple(groups))


def _wanted(accelerators: Any) -> Iterator[tuple[str, float]]:
    """Yield GPUs and their number; SkyPilot takes `L4:1`, `{L4: 1}`, and lists of either."""
    if isinstance(accelerators, str):
        name, _, count = accelerators.partition(":")
        yield name.strip(), float(count) if re.fullmatch(r"[\d.]+", count.strip()) else 1.0
    elif isinstance(accelerators, dict):
        for name, count in accelerators.items():
            yield str(name), float(count or 1)
    elif isinstance(accelerators, list):
        for one in accelerators:
            yield from _wanted(one)
