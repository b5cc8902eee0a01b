"""Load cluster files of five kinds into a common form for rules and prices.

Files of Ray's cluster launcher (`ray up`) are for AWS, GCP or existing machines (`local`). KubeRay
and SkyPilot have their own files.
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
"""The checkout. Paths in a cluster file are relative to the checkout."""

RAY_UP_KINDS = ("aws", "gcp", "local")
"""Kinds of files for `ray up`."""

RENTED_KINDS = ("aws", "gcp")
"""Kinds with machines rented from a cloud on demand."""

TOKEN_MODE = "RAY_AUTH_MODE=token"
"""Assignment for token authentication of Ray. Must be set before Ray is imported."""

_QUANTITY_UNITS = {"": 1.0, "m": 1e-3}
UNLIMITED = 2**31 - 1
"""Default `maxReplicas` of a KubeRay worker group."""
_WORKER_GROUP_DEFAULTS = {"replicas": 0, "minReplicas": 0, "maxReplicas": UNLIMITED}
"""Defaults of a worker group in KubeRay's resource definitions (ray.io/v1)."""
_GPU_SELECTORS = ("ray.io/accelerator-type", "cloud.google.com/gke-accelerator")


@dataclass(frozen=True)
class MachineGroup:
    """Machines of one kind in a cluster. A field is None if the file does not state the value."""

    name: str
    is_head: bool
    machine: str | None = None
    """The cloud's name of the machine type, such as `g6.xlarge`."""
    cpus: float | None = None
    gpus: float | None = None
    accelerators: tuple[str, ...] = ()
    """Accepted GPU types; any of the types will do."""
    smallest: int = 0
    """Minimum number of machines."""
    largest: int = 1
    """Maximum number of machines."""
    spot: bool = False
    image: str | None = None
    setup: tuple[str, ...] = ()
    """Commands that install software, in order."""
    start: tuple[str, ...] = ()
    """Commands that start Ray, in order."""
    variables: tuple[tuple[str, str], ...] = ()
    """Names and values of environment variables for every command."""


@dataclass(frozen=True)
class ClusterFile:
    """A parsed cluster file. `document` is the YAML content, without defaults."""

    path: Path
    kind: str
    document: dict[str, Any]
    groups: tuple[MachineGroup, ...]
    region: str | None = None
    max_workers: int | None = None

    @property
    def head(self) -> MachineGroup:
        """The group of the head node."""
        return next(group for group in self.groups if group.is_head)

    @property
    def workers(self) -> tuple[MachineGroup, ...]:
        """All groups except the head's."""
        return tuple(group for group in self.groups if not group.is_head)


def load_cluster_file(path: Path) -> tuple[str, dict[str, Any]]:
    """Read a file. Return kind and content, without validating the content.

    A KubeRay file may hold other Kubernetes objects beside the Ray object.

    Raises:
        UsageError: if the file cannot be read, or is not a cluster file.
    """
    documents = reading.read_yaml_file(path)
    typed = [(kind, doc) for doc in documents if (kind := _detect_kind(doc)) is not None]
    ray_objects = [_without_nulls(doc) for kind, doc in typed if kind == "kuberay"]
    clusters = [doc for doc in ray_objects if not _uses_existing_cluster(doc)]
    if ray_objects and not clusters:
        raise UsageError(
            f"A file must name a cluster's machines, but the job of {path} runs on the existing "
            "cluster named in `clusterSelector`; check the cluster's file."
        )
    ray_objects = clusters
    if len(ray_objects) == 1:
        return "kuberay", ray_objects[0]
    if len(ray_objects) > 1:
        names = ", ".join(f"{doc.get('kind')} {_object_name(doc)}" for doc in ray_objects)
        raise UsageError(
            f"A file must have one Ray object, but {path} has {len(ray_objects)} ({names}); put "
            "each object into its own file."
        )
    if not typed:
        problem = "is none of these" if len(documents) == 1 else "has none of these"
        raise UsageError(
            "A cluster file must have a `provider.type` of aws, gcp or local, or be KubeRay's or "
            f"SkyPilot's, but {path} {problem}; start from a template in cluster/templates."
        )
    if len(documents) > 1:
        raise UsageError(
            f"A cluster file of the kind {typed[0][0]} must be one YAML document, but {path} has "
            f"{len(documents)}; only KubeRay files may have more."
        )
    return typed[0]


def _detect_kind(document: Any) -> str | None:
    """Return a document's kind of cluster file, or None."""
    if not isinstance(document, dict):
        return None
    if str(document.get("apiVersion", "")).startswith("ray.io/"):
        return "kuberay"
    provider = document.get("provider")
    if isinstance(provider, dict):
        return provider["type"] if provider.get("type") in RAY_UP_KINDS else None
    return "skypilot" if "run" in document else None


def _without_nulls(node: Any) -> Any:
    """Return a document without null fields, which Kubernetes treats as missing."""
    if isinstance(node, dict):
        return {key: _without_nulls(value) for key, value in node.items() if value is not None}
    return [_without_nulls(item) for item in node] if isinstance(node, list) else node


def _uses_existing_cluster(document: dict[str, Any]) -> bool:
    """Return whether a KubeRay job runs on an existing cluster."""
    spec = document.get("spec")
    return isinstance(spec, dict) and "clusterSelector" in spec and "rayClusterSpec" not in spec


def _object_name(document: dict[str, Any]) -> object:
    metadata = document.get("metadata")
    return metadata.get("name") if isinstance(metadata, dict) else None


def parse_cluster_file(path: Path, kind: str, document: dict[str, Any]) -> ClusterFile:
    """Convert a file with a valid structure to the common form."""
    if kind == "kuberay":
        return _parse_kuberay(path, document)
    if kind == "skypilot":
        return _parse_skypilot(path, document)
    return _parse_local(path, document) if kind == "local" else _parse_cloud(path, kind, document)


def describe_workers(path: Path) -> str | None:
    """Return a cluster's possible workers as JSON for `MTIL_MACHINES`.

    None if the file does not state the workers' CPUs and GPUs. Jobs then count only the machines
    present.

    Raises:
        UsageError: if the file is not a cluster file.
    """
    return describe_parsed_workers(parse_cluster_file(path, *load_cluster_file(path)))


def describe_parsed_workers(file: ClusterFile) -> str | None:
    """Return a parsed file's possible workers as JSON, or None; see `machines`."""
    kinds = [
        {"cpus": group.cpus, "gpus": group.gpus, "most": group.largest} for group in file.workers
    ]
    if not kinds or any(kind["cpus"] is None or kind["gpus"] is None for kind in kinds):
        return None
    most = file.max_workers
    if most is None:
        most = sum(group.largest for group in file.workers)
    return json.dumps({"most": most, "kinds": kinds})


def walk_scalars(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value except lists and mappings, with a path such as `a.b[0]`."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield from walk_scalars(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from walk_scalars(value, f"{key}[{index}]")
    else:
        yield key, node


def _read_commands(document: dict[str, Any], role: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    setup = [*document.get("setup_commands", []), *document.get(f"{role}_setup_commands", [])]
    return tuple(setup), tuple(document.get(f"{role}_start_ray_commands", []))


def _parse_cloud(path: Path, kind: str, document: dict[str, Any]) -> ClusterFile:
    groups = []
    for name, node_type in document["available_node_types"].items():
        is_head = name == document["head_node_type"]
        role = "head" if is_head else "worker"
        config, resources = node_type["node_config"], node_type["resources"]
        setup, start = _read_commands(document, role)
        docker = document.get("docker", {}) | node_type.get("docker", {})
        image = docker.get(f"{role}_image") or docker.get("image")
        groups.append(
            MachineGroup(
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
    """Return whether machines are spot instances."""
    # GCP's `scheduling` may be a list of mappings with a single key, so look at all values by name.
    settings = {key.rpartition(".")[2]: value for key, value in walk_scalars(config)}
    return (
        settings.get("MarketType") == "spot"
        or settings.get("provisioningModel") == "SPOT"
        or settings.get("preemptible") is True
    )


def _machine_image(kind: str, config: dict[str, Any]) -> str | None:
    if kind == "aws":
        return config.get("ImageId")
    disks = [disk for disk in config.get("disks", []) if disk.get("boot")]
    return disks[0].get("initializeParams", {}).get("sourceImage") if disks else None


def _parse_local(path: Path, document: dict[str, Any]) -> ClusterFile:
    num_hosts = len(document["provider"].get("worker_ips", []))
    setup, start = _read_commands(document, "head")
    head = MachineGroup(name="head", is_head=True, smallest=1, setup=setup, start=start)
    setup, start = _read_commands(document, "worker")
    smallest, largest = (
        document.get("min_workers", num_hosts),
        document.get("max_workers", num_hosts),
    )
    workers = MachineGroup(
        name="workers", is_head=False, smallest=smallest, largest=largest, setup=setup, start=start
    )
    return ClusterFile(path, "local", document, (head, workers), None, largest)


def _parse_kuberay(path: Path, document: dict[str, Any]) -> ClusterFile:
    spec = find_ray_cluster_spec(document)
    groups = [_parse_pods(spec["headGroupSpec"], "head", is_head=True)]
    groups += [
        _parse_pods(group, group["groupName"], is_head=False)
        for group in list_worker_groups(document)
    ]
    return ClusterFile(path, "kuberay", document, tuple(groups))


def find_ray_cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """Return the cluster spec of any KubeRay object."""
    job = find_job_spec(document)
    spec: dict[str, Any] = document["spec"]
    if job is not None:
        spec = job["rayClusterSpec"]
    return spec["rayClusterConfig"] if document["kind"] == "RayService" else spec


def find_job_spec(document: dict[str, Any]) -> dict[str, Any] | None:
    """Return the job spec of a `RayJob` or `RayCronJob`, or None."""
    spec: dict[str, Any] = document.get("spec", {})
    if document.get("kind") == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec if document.get("kind") in ("RayJob", "RayCronJob") else None


def find_job_key(document: dict[str, Any]) -> str:
    """Return the path of the job spec in a `RayJob` or `RayCronJob`."""
    return "spec.jobTemplate" if document.get("kind") == "RayCronJob" else "spec"


def list_worker_groups(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the worker groups of a KubeRay object, with defaults filled in."""
    groups: list[dict[str, Any]] = find_ray_cluster_spec(document).get("workerGroupSpecs", [])
    return [_WORKER_GROUP_DEFAULTS | group for group in groups]


def _parse_pods(group: dict[str, Any], name: str, *, is_head: bool) -> MachineGroup:
    container = group["template"]["spec"]["containers"][0]
    limits = (container.get("resources") or {}).get("limits") or {}
    params = group.get("rayStartParams") or {}
    # Options of `ray start` override the limits of the container.
    cpus = params.get("num-cpus", limits.get("cpu"))
    selector = group["template"]["spec"].get("nodeSelector") or {}
    gpu_names = [selector.get(key) for key in _GPU_SELECTORS]
    return MachineGroup(
        name=name,
        is_head=is_head,
        cpus=None if cpus is None else _parse_quantity(cpus),
        gpus=_parse_quantity(params.get("num-gpus", limits.get("nvidia.com/gpu", 0))),
        accelerators=tuple(str(name) for name in gpu_names if name is not None),
        smallest=1 if is_head else group["minReplicas"],
        largest=1 if is_head else group["maxReplicas"],
        image=container["image"],
        variables=tuple(
            (env["name"], str(env["value"])) for env in container.get("env") or [] if "value" in env
        ),
    )


def _parse_quantity(value: Any) -> float:
    """Parse a Kubernetes quantity of CPUs, such as `500m`. Return 0 if malformed."""
    match = re.fullmatch(r"([\d.]+)(m?)", str(value))
    return float(match[1]) * _QUANTITY_UNITS[match[2]] if match else 0.0


def _parse_skypilot(path: Path, document: dict[str, Any]) -> ClusterFile:
    resources = document.get("resources", {})
    choices = [resources, *resources.get("any_of", []), *resources.get("ordered", [])]
    accelerators = [
        pair for choice in choices for pair in _parse_accelerators(choice.get("accelerators"))
    ]
    cpus = re.match(r"[\d.]+", str(resources.get("cpus", "")))
    num_nodes = document.get("num_nodes", 1)
    envs = document.get("envs") or {}
    head = MachineGroup(
        name="head",
        is_head=True,
        machine=resources.get("instance_type"),
        cpus=float(cpus[0]) if cpus else None,
        gpus=max((count for _, count in accelerators), default=0.0),
        accelerators=tuple(name for name, _ in accelerators),
        smallest=1,
        spot=bool(resources.get("use_spot", False)),
        image=resources.get("image_id"),
        setup=(str(document.get("setup", "")),),
        start=(str(document["run"]),),
        variables=tuple((name, str(value)) for name, value in envs.items() if value is not None),
    )
    groups = [head]
    if num_nodes > 1:
        changes = {
            "name": "workers",
            "is_head": False,
            "smallest": num_nodes - 1,
            "largest": num_nodes - 1,
        }
        groups.append(MachineGroup(**{**vars(head), **changes}))
    return ClusterFile(path, "skypilot", document, tuple(groups))


def _parse_accelerators(accelerators: Any) -> Iterator[tuple[str, float]]:
    """Yield GPU types and counts from SkyPilot's forms: `L4:1`, `{L4: 1}`, or lists of these."""
    if isinstance(accelerators, str):
        name, _, count = accelerators.partition(":")
        yield name.strip(), float(count) if re.fullmatch(r"[\d.]+", count.strip()) else 1.0
    elif isinstance(accelerators, dict):
        for name, count in accelerators.items():
            yield str(name), float(count or 1)
    elif isinstance(accelerators, list):
        for item in accelerators:
            yield from _parse_accelerators(item)
