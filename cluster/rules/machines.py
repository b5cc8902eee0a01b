"""Machines are what a file says they are, come when they are needed, and leave room for data."""

from collections.abc import Iterator

from cluster import files
from cluster.files import LAUNCHED, RENTED, ClusterFile
from cluster.machine_types import added, is_accelerator, machine

_MAX_IDLE_MINUTES = 60


def head_without_work(file: ClusterFile) -> Iterator[str]:
    """Where machines are rented, the head is small, has no GPU and takes no tasks."""
    if file.kind not in (*RENTED, "kuberay"):
        return
    if file.head.cpus != 0:
        yield (
            "The head must offer no CPU (`CPU: 0`), or trainings land on it and take the cluster "
            f"down with them, but offers {_number(file.head.cpus)}."
        )
    if file.head.gpus:
        yield f"The head must have no GPU, since it takes no work, but has {file.head.gpus:g}."


def from_zero(file: ClusterFile) -> Iterator[str]:
    """Rented workers come when they are needed and go when they are idle."""
    if file.kind not in (*RENTED, "kuberay"):
        return
    for group in file.workers:
        if group.smallest:
            yield (
                f"{group.name} must start from 0 workers, or it costs while nothing runs, but "
                f"starts from {group.smallest}."
            )
    idle: float | None = file.document.get("idle_timeout_minutes")
    if file.kind == "kuberay":
        spec = files.ray_cluster_spec(file.document)
        if spec.get("enableInTreeAutoscaling") is not True:
            yield "`enableInTreeAutoscaling` must be true, or workers neither come nor go."
        seconds = spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds")
        idle = None if seconds is None else seconds / 60
    if idle is None or not 0 < idle <= _MAX_IDLE_MINUTES:
        yield (
            f"Idle workers must go within {_MAX_IDLE_MINUTES} minutes, but the idle timeout is "
            f"{_number(idle)}."
        )


def counts_fit(file: ClusterFile) -> Iterator[str]:
    """Numbers of workers agree with one another, and let some come."""
    for group in file.workers:
        if group.smallest > group.largest:
            yield f"{group.name} must not start from more than {group.largest} workers, but does."
    if file.max_workers is not None:
        least = sum(group.smallest for group in file.workers)
        if least > file.max_workers:
            yield f"`max_workers` must be {least} or more, but is {file.max_workers}."
    if file.kind in RENTED and file.max_workers == 0:
        yield "`max_workers` must be 1 or more, or no worker ever comes, but is 0."
    if file.kind in LAUNCHED and file.document.get("upscaling_speed") == 0:
        yield "`upscaling_speed` must be more than 0, which Ray takes for 1, but is 0."
    if file.kind == "kuberay":
        yield from _replicas(file)


def _replicas(file: ClusterFile) -> Iterator[str]:
    if not file.workers:
        yield "`workerGroupSpecs` must have a group, since the head takes no work, but has none."
    for spec in files.worker_groups(file.document):
        replicas, most = spec["replicas"], spec["maxReplicas"]
        if most == files.UNLIMITED:
            yield (
                f"{spec['groupName']} must say `maxReplicas`, or as many workers may come as "
                "there is room and money for, but does not."
            )
        if replicas > most and spec["minReplicas"] <= most:
            yield (
                f"`replicas` of {spec['groupName']} must be at most `maxReplicas`, {most}, but "
                f"is {replicas}."
            )


def known_gpus(file: ClusterFile) -> Iterator[str]:
    """GPUs are of a type that there is."""
    told = set()
    for group in file.groups:
        extra = [name for name, _ in added(file, group)] if file.kind == "gcp" else []
        for name in (*group.accelerators, *extra):
            if not is_accelerator(name) and name not in told:
                told.add(name)
                yield (
                    f"The GPU of {group.name} must be of a type that is known, but is {name}; "
                    "cluster/machine_types.py has those."
                )


def known_machines(file: ClusterFile) -> Iterator[str]:
    """Machines are of a type that there is, and have what the file says of them."""
    for group in file.groups if file.kind in (*RENTED, "skypilot") else ():
        if group.machine is None:
            if file.kind in RENTED:
                name = "InstanceType" if file.kind == "aws" else "machineType"
                yield f"{group.name} must say its `{name}`, but does not."
            continue
        known = machine(file, group)
        if known is None:
            yield (
                f"{group.name} must be of a type in cluster/machine_types.yaml, but is "
                f"{group.machine}; correct it, or add what it has and where that is said."
            )
            continue
        if file.kind in RENTED and not group.is_head:
            missing = [
                name
                for name, value in (("CPU", group.cpus), ("GPU", group.gpus if known.gpus else 0))
                if value is None
            ]
            if missing:
                yield (
                    f"{group.name} must say {' and '.join(missing)} in its `resources`, which jobs "
                    "are told, but does not."
                )
        if group.gpus is not None and group.gpus != known.gpus and file.kind in RENTED:
            yield (
                f"{group.name} must say `GPU: {known.gpus}`, which is what {known.type} has, but "
                f"says {group.gpus:g}."
            )
        if group.cpus and group.cpus > known.cpus:
            yield (
                f"{group.name} must not say more than `CPU: {known.cpus}`, which is what "
                f"{known.type} has, but says {group.cpus:g}."
            )


def room_for_data(file: ClusterFile) -> Iterator[str]:
    """A machine has CPUs left for Ray Data beside one for each GPU's worker."""
    for group in file.groups:
        known = machine(file, group) if file.kind in (*RENTED, "skypilot") else None
        cpus = group.cpus if group.cpus is not None or known is None else known.cpus
        if group.gpus and cpus is not None and cpus < group.gpus + 1:
            yield (
                f"{group.name} must have a CPU for each GPU and one for Ray Data, which else "
                f"waits for ever, but has {cpus:g} for {group.gpus:g}; take a larger machine."
            )


def limits_of_pods(file: ClusterFile) -> Iterator[str]:
    """Kubernetes: a worker says what it takes, or Ray counts the whole node as its own."""
    if file.kind != "kuberay":
        return
    for spec in files.worker_groups(file.document):
        told = spec["template"]["spec"]["containers"][0].get("resources") or {}
        limits, requests = told.get("limits") or {}, told.get("requests") or {}
        for name in ("cpu", "memory"):
            if name not in limits and f"num-{name}s" not in (spec.get("rayStartParams") or {}):
                yield (
                    f"{spec['groupName']} must have a limit of {name}, or Ray counts all of its "
                    "node's, but has none."
                )
        gpus = "nvidia.com/gpu"
        if gpus in requests and str(requests[gpus]) != str(limits.get(gpus)):
            yield (
                f"{spec['groupName']} must ask for as many GPUs as its limit, but asks for "
                f"{requests[gpus]} with {limits.get(gpus, 'none')}."
            )


def machines_as_jobs_are_told(file: ClusterFile) -> Iterator[str]:
    """Kubernetes: what the head tells runs of its workers is what they are."""
    told = dict(file.head.variables).get("MTIL_MACHINES") if file.kind == "kuberay" else None
    expected = files.machines_of(file)
    if told is not None and expected is not None and told != expected:
        yield f"MTIL_MACHINES of the head must be what its groups are, {expected}, but is {told}."


def _number(value: float | None) -> str:
    return "not said" if value is None else f"{value:g}"


RULES = (
    head_without_work, from_zero, counts_fit, known_gpus, known_machines, room_for_data,
    limits_of_pods, machines_as_jobs_are_told,
)  # fmt: skip
