"""Refuse resource plans that would hang, before anything starts. No Ray."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass as validated

from mtil.config import STRICT, NonNegative
from mtil.documents import Document
from mtil.errors import ResourceError

DATA_TASK_CPUS = 0.25
"""CPUs reserved by a Ray Data task. Workers must leave at least as much free, or Ray Data hangs
silently."""

_PREFERRED_SPARE_CPUS = 1.0


@dataclass(frozen=True)
class NodeResources:
    """Total resources of a cluster node."""

    cpus: float
    gpus: float


_MachineCount = Annotated[int, Field(ge=0, le=100_000)]


@validated(frozen=True, config=STRICT)
class _MachineKind:
    cpus: NonNegative
    gpus: NonNegative
    most: _MachineCount


@validated(frozen=True, config=STRICT)
class _MachineLimits:
    most: _MachineCount
    kinds: list[_MachineKind]


_MACHINES: TypeAdapter[_MachineLimits] = TypeAdapter(_MachineLimits)


def list_startable_nodes(live: Sequence[NodeResources], machines: str) -> list[NodeResources]:
    """Return the nodes that a cluster can still start.

    Args:
        live: the live nodes.
        machines: JSON such as `{"most": 4, "kinds": [{"cpus": 4, "gpus": 1, "most": 2}, …]}`. The
            outer `most` limits all worker nodes, the inner `most` the nodes of a kind.

    Raises:
        ResourceError: if `machines` is malformed.
    """
    document = Document(
        "MTIL_MACHINES",
        'write it like {"most": 2, "kinds": [{"cpus": 4, "gpus": 1, "most": 2}]}',
        ResourceError,
    )
    limits = document.validate(_MACHINES, document.object(machines.encode(errors="replace")))
    # A head without CPUs runs no workers and does not count as a worker node.
    num_startable = limits.most - sum(node.cpus > 0 for node in live)
    nodes: list[NodeResources] = []
    for kind in limits.kinds:
        node = NodeResources(cpus=kind.cpus, gpus=kind.gpus)
        missing = min(kind.most - list(live).count(node), num_startable - len(nodes))
        nodes += [node] * max(missing, 0)
    return nodes


def plan_cpus_per_worker(
    nodes: Sequence[NodeResources], *, num_workers: int, cpus: float | None, gpus: float
) -> float:
    """Return the CPUs reserved by each worker.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers that run side by side.
        cpus: requested CPUs per worker. By default an equal share of the CPUs not left to Ray Data,
            at most 1.
        gpus: GPUs per worker.

    Raises:
        ResourceError: if the workers do not fit, or leave no room for Ray Data.
    """
    total_cpus, total_gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    # NCCL refuses two ranks on a GPU: "Duplicate GPU detected" (ray-project/ray#48012).
    if gpus % 1 and num_workers > 1:
        raise ResourceError(
            f"Several workers need whole GPUs, but got {num_workers} workers with {gpus:g} GPUs "
            "per worker. Set `train.gpus_per_worker` to 1, or to 0 for the CPU."
        )
    if gpus * num_workers > total_gpus:
        raise ResourceError(
            f"{num_workers} workers with {gpus:g} GPUs each need {gpus * num_workers:g} GPUs, but "
            f"the cluster has {total_gpus:g}. Lower `train.num_workers` or `train.gpus_per_worker`."
        )
    if cpus is None:
        spare = max(total_cpus - _PREFERRED_SPARE_CPUS, total_cpus / 2)
        share = min(1.0, math.floor(100 * spare / num_workers) / 100)
        if not share:
            raise ResourceError(
                f"{num_workers} workers are too many for the {total_cpus:g} CPUs of the cluster. "
                "Lower `train.num_workers`."
            )
        with suppress(ResourceError):
            return plan_cpus_per_worker(nodes, num_workers=num_workers, cpus=share, gpus=gpus)
        # The free CPUs may be split over small nodes. With a smaller share even a node with a
        # single CPU keeps room for a data task.
        cpus = min(share, 1 - DATA_TASK_CPUS)
    # Workers holding all CPUs starve Ray Data: the training would hang without a warning.
    if cpus * num_workers + DATA_TASK_CPUS > total_cpus:
        raise ResourceError(
            f"The workers must leave {DATA_TASK_CPUS} CPUs to Ray Data, but {num_workers} workers "
            f"with {cpus:g} CPUs each leave {total_cpus - cpus * num_workers:g} of {total_cpus:g}. "
            "Lower `train.num_workers` or `train.cpus_per_worker`."
        )
    num_places = sum(_count_places(node, cpus, gpus) for node in nodes)
    if num_places < num_workers:
        raise ResourceError(
            f"{num_workers} workers with {cpus:g} CPUs and {gpus:g} GPUs each do not fit: the "
            f"nodes have room for {num_places}. Lower `train.num_workers` or "
            "`train.cpus_per_worker`."
        )
    if not any(
        _has_room_for_data_task(node, num_places - num_workers, cpus, gpus) for node in nodes
    ):
        raise ResourceError(
            f"The workers must leave {DATA_TASK_CPUS} CPUs of one node to Ray Data, but "
            f"{num_workers} workers with {cpus:g} CPUs each leave less on every node. "
            "Lower `train.num_workers` or `train.cpus_per_worker`."
        )
    return cpus


def plan_elastic_cpus_per_worker(
    nodes: Sequence[NodeResources],
    *,
    min_workers: int,
    num_workers: int,
    cpus: float | None,
    gpus: float,
) -> float:
    """Return the CPUs reserved by each worker of an elastic training.

    Ray Train counts places for elastic workers without leaving room for Ray Data. Every node
    therefore needs room for a data task, for any number of workers on the node.

    Args:
        nodes: the cluster's nodes.
        min_workers: the lowest number of workers.
        num_workers: the highest number. Equal numbers give the result of `plan_cpus_per_worker`.
        cpus: requested CPUs per worker. By default an equal share of the CPUs not left to Ray Data.
        gpus: GPUs per worker.

    Raises:
        ResourceError: if the lowest number of workers does not fit, or some number of workers
            leaves no room for Ray Data.
    """
    if min_workers == num_workers:
        return plan_cpus_per_worker(nodes, num_workers=num_workers, cpus=cpus, gpus=gpus)
    # Start from the share of the largest group that fits now.
    for worker_count in range(num_workers, min_workers, -1):
        with suppress(ResourceError):
            share = plan_cpus_per_worker(nodes, num_workers=worker_count, cpus=cpus, gpus=gpus)
            break
    else:
        share = plan_cpus_per_worker(nodes, num_workers=min_workers, cpus=cpus, gpus=gpus)
    if cpus is None:
        # Lower the share in steps of 0.01 CPUs until every node keeps room for a data task.
        steps = range(round(100 * share), 0, -1)
        fitting = (
            step / 100
            for step in steps
            if _every_node_has_room(nodes, num_workers, step / 100, gpus)
        )
        return next(fitting, share)
    if not _every_node_has_room(nodes, num_workers, cpus, gpus):
        raise ResourceError(
            f"With `train.min_workers`, workers must leave {DATA_TASK_CPUS} CPUs of each node to "
            f"Ray Data, but workers with {cpus:g} CPUs each may fill a node. Change or remove "
            "`train.cpus_per_worker`."
        )
    return share


def count_parallel_trainings(
    nodes: Sequence[NodeResources], *, num_workers: int, cpus: float, gpus: float
) -> int:
    """Return the number of trainings that fit side by side with a data task each; at least 1.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers per training.
        cpus: CPUs reserved by each worker.
        gpus: GPUs reserved by each worker.
    """
    num_places = sum(_count_places(node, cpus, gpus) for node in nodes)
    total_cpus = sum(node.cpus for node in nodes)
    num_trainings = min(
        num_places // num_workers, int(total_cpus / (num_workers * cpus + DATA_TASK_CPUS))
    )
    while num_trainings > 1:
        spare_places = num_places - num_trainings * num_workers
        if any(_has_room_for_data_task(node, spare_places, cpus, gpus) for node in nodes):
            break
        num_trainings -= 1
    return max(1, num_trainings)


def plan_threads_per_worker(
    nodes: Sequence[NodeResources],
    *,
    num_workers: int,
    cpus: float,
    gpus: float,
    num_trainings: int = 1,
) -> int:
    """Return the CPU threads per worker; at least 1.

    No placement of a training's workers overcommits a node, and all trainings together have at
    most one thread per CPU of the cluster.

    Args:
        nodes: the cluster's nodes.
        num_workers: workers per training.
        cpus: CPUs reserved by each worker.
        gpus: GPUs reserved by each worker.
        num_trainings: trainings that run side by side.
    """
    cpus_and_places = [
        (node.cpus, places) for node in nodes if (places := _count_places(node, cpus, gpus))
    ]
    if not cpus_and_places:
        return 1
    total_cpus, total_places = map(sum, zip(*cpus_and_places, strict=True))
    own_share = min(node_cpus / min(places, num_workers) for node_cpus, places in cpus_and_places)
    common_share = total_cpus / min(total_places, num_trainings * num_workers)
    return max(1, int(min(own_share, common_share)))


def _every_node_has_room(
    nodes: Sequence[NodeResources], max_workers: int, cpus: float, gpus: float
) -> bool:
    """Return True if every node keeps room for a data task beside up to `max_workers`."""
    taken = (
        (node, min(_count_places(node, cpus, gpus), max_workers) * cpus)
        for node in nodes
        if node.cpus
    )
    return all(node.cpus - cpus_taken >= DATA_TASK_CPUS - 1e-9 for node, cpus_taken in taken)


def _has_room_for_data_task(
    node: NodeResources, places_to_spare: int, cpus: float, gpus: float
) -> bool:
    """Return True if a data task on the node takes no place needed by a worker."""
    beside = NodeResources(cpus=max(node.cpus - DATA_TASK_CPUS, 0), gpus=node.gpus)
    fits = node.cpus >= DATA_TASK_CPUS
    return (
        fits
        and _count_places(node, cpus, gpus) - _count_places(beside, cpus, gpus) <= places_to_spare
    )


def _count_places(node: NodeResources, cpus: float, gpus: float) -> int:
    # 1e-9 absorbs float error: 0.3 / 0.1 is 2.9999999999999996.
    by_cpu = math.floor(node.cpus / cpus + 1e-9)
    return min(by_cpu, math.floor(node.gpus / gpus + 1e-9)) if gpus else by_cpu
