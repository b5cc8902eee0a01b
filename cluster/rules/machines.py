"""Rules on machine types, numbers of workers, idle time and CPUs for Ray Data."""

from collections.abc import Iterator

from cluster import files
from cluster.files import RAY_UP_KINDS, RENTED_KINDS, ClusterFile
from cluster.machine_types import find_machine_type, is_known_gpu, list_added_gpus

_MAX_IDLE_MINUTES = 60


def check_idle_head(file: ClusterFile) -> Iterator[str]:
    """Require a head without GPU and tasks, if machines are rented."""
    if file.kind not in (*RENTED_KINDS, "kuberay"):
        return
    if file.head.cpus != 0:
        yield (
            "The head must offer no CPU (`CPU: 0`), or trainings run there and may take the "
            f"cluster down, but offers {_format_number(file.head.cpus)}."
        )
    if file.head.gpus:
        yield f"The head must have no GPU, since it takes no work, but has {file.head.gpus:g}."


def check_scaling_from_zero(file: ClusterFile) -> Iterator[str]:
    """Require rented workers to start on demand and to end when idle."""
    if file.kind not in (*RENTED_KINDS, "kuberay"):
        return
    for group in file.workers:
        if group.smallest:
            yield (
                f"{group.name} must start from 0 workers, or costs money while nothing runs, but "
                f"starts from {group.smallest}."
            )
    idle: float | None = file.document.get("idle_timeout_minutes")
    if file.kind == "kuberay":
        spec = files.find_ray_cluster_spec(file.document)
        if spec.get("enableInTreeAutoscaling") is not True:
            yield "`enableInTreeAutoscaling` must be true, or workers neither start nor end."
        seconds = spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds")
        idle = None if seconds is None else seconds / 60
    if idle is None or not 0 < idle <= _MAX_IDLE_MINUTES:
        yield (
            f"Idle workers must end within {_MAX_IDLE_MINUTES} minutes, but the idle timeout is "
            f"{_format_number(idle)}."
        )


def check_worker_counts(file: ClusterFile) -> Iterator[str]:
    """Require consistent numbers of workers, with at least one worker possible."""
    for group in file.workers:
        if group.smallest > group.largest:
            yield f"{group.name} must not start from more than {group.largest} workers, but does."
    if file.max_workers is not None:
        least = sum(group.smallest for group in file.workers)
        if least > file.max_workers:
            yield f"`max_workers` must be {least} or more, but is {file.max_workers}."
    if file.kind in RENTED_KINDS and file.max_workers == 0:
        yield "`max_workers` must be 1 or more, or no worker ever starts, but is 0."
    if file.kind in RAY_UP_KINDS and file.document.get("upscaling_speed") == 0:
        yield "`upscaling_speed` must be more than 0, which Ray treats as 1, but is 0."
    if file.kind == "kuberay":
        yield from _check_replicas(file)


def _check_replicas(file: ClusterFile) -> Iterator[str]:
    if not file.workers:
        yield "`workerGroupSpecs` must have a group, since the head takes no work, but has none."
    for spec in files.list_worker_groups(file.document):
        replicas, most = spec["replicas"], spec["maxReplicas"]
        if most == files.UNLIMITED:
            yield (f"{spec['groupName']} must have `maxReplicas`, or workers have no limit.")
        if replicas > most and spec["minReplicas"] <= most:
            yield (
                f"`replicas` of {spec['groupName']} must be at most `maxReplicas`, {most}, but "
                f"is {replicas}."
            )


def check_gpu_types(file: ClusterFile) -> Iterator[str]:
    """Require known GPU types."""
    reported = set()
    for group in file.groups:
        added_gpus = (
            [name for name, _ in list_added_gpus(file, group)] if file.kind == "gcp" else []
        )
        for name in (*group.accelerators, *added_gpus):
            if not is_known_gpu(name) and name not in reported:
                reported.add(name)
                yield (
                    f"The GPU of {group.name} must be of a known type, but is {name}; see "
                    "cluster/machine_types.py."
                )


def check_machine_types(file: ClusterFile) -> Iterator[str]:
    """Require known machine types, with CPUs and GPUs as stated in the file."""
    for group in file.groups if file.kind in (*RENTED_KINDS, "skypilot") else ():
        if group.machine is None:
            if file.kind in RENTED_KINDS:
                name = "InstanceType" if file.kind == "aws" else "machineType"
                yield f"{group.name} must have `{name}`, but does not."
            continue
        known = find_machine_type(file, group)
        if known is None:
            yield (
                f"{group.name} must be of a type in cluster/machine_types.yaml, but is "
                f"{group.machine}; correct the type, or add the type and its source to the table."
            )
            continue
        if file.kind in RENTED_KINDS and not group.is_head:
            missing = [
                name
                for name, value in (("CPU", group.cpus), ("GPU", group.gpus if known.gpus else 0))
                if value is None
            ]
            if missing:
                yield (
                    f"{group.name} must have {' and '.join(missing)} in its `resources`, for "
                    "MTIL_MACHINES of jobs, but does not."
                )
        if group.gpus is not None and group.gpus != known.gpus and file.kind in RENTED_KINDS:
            yield (
                f"{group.name} must have `GPU: {known.gpus}`, the GPUs of {known.type}, but has "
                f"{group.gpus:g}."
            )
        if group.cpus and group.cpus > known.cpus:
            yield (
                f"{group.name} must have at most `CPU: {known.cpus}`, the CPUs of {known.type}, "
                f"but has {group.cpus:g}."
            )


def check_cpus_for_data(file: ClusterFile) -> Iterator[str]:
    """Require a CPU for Ray Data beside a CPU for each GPU's worker."""
    for group in file.groups:
        known = find_machine_type(file, group) if file.kind in (*RENTED_KINDS, "skypilot") else None
        cpus = group.cpus if group.cpus is not None or known is None else known.cpus
        if group.gpus and cpus is not None and cpus < group.gpus + 1:
            yield (
                f"{group.name} must have a CPU for each GPU and a CPU for Ray Data, or Ray Data "
                f"waits for ever, but has {cpus:g} for {group.gpus:g}; take a larger machine."
            )


def check_pod_limits(file: ClusterFile) -> Iterator[str]:
    """Kubernetes: require limits for workers. Without limits, Ray counts the whole node."""
    if file.kind != "kuberay":
        return
    for spec in files.list_worker_groups(file.document):
        resources = spec["template"]["spec"]["containers"][0].get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in ("cpu", "memory"):
            if name not in limits and f"num-{name}s" not in (spec.get("rayStartParams") or {}):
                yield (
                    f"{spec['groupName']} must have a limit of {name}, or Ray counts the whole "
                    "node, but has none."
                )
        gpus = "nvidia.com/gpu"
        if gpus in requests and str(requests[gpus]) != str(limits.get(gpus)):
            yield (
                f"{spec['groupName']} must request as many GPUs as its limit, but requests "
                f"{requests[gpus]} with {limits.get(gpus, 'none')}."
            )


def check_announced_machines(file: ClusterFile) -> Iterator[str]:
    """Kubernetes: require MTIL_MACHINES of the head to match the worker groups."""
    value = dict(file.head.variables).get("MTIL_MACHINES") if file.kind == "kuberay" else None
    expected = files.describe_parsed_workers(file)
    if value is not None and expected is not None and value != expected:
        yield f"MTIL_MACHINES of the head must match its groups, {expected}, but is {value}."


def _format_number(value: float | None) -> str:
    return "missing" if value is None else f"{value:g}"


RULES = (
    check_idle_head, check_scaling_from_zero, check_worker_counts, check_gpu_types,
    check_machine_types, check_cpus_for_data,
    check_pod_limits, check_announced_machines,
)  # fmt: skip
